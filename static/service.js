// Functions with which the pages use the service: JSON over HTTP, and streams of server-sent
// events.

/**
 * Sends a request. It never throws. If the request could not be sent or the response could not be
 * read, the status is 0, and it is unknown whether the service executed the request.
 */
export async function send(method, path, { body, fault, headers = {} } = {}) {
  const request = { method, headers: { ...headers } };
  if (body !== undefined) {
    request.headers["Content-Type"] = "application/json";
    request.body = JSON.stringify(body);
  }
  if (fault) request.headers["X-Fault"] = fault;
  try {
    const response = await fetch(path, request);
    const text = await response.text();
    return {
      ok: response.status < 400,
      status: response.status,
      outcome: response.headers.get("Transaction-Outcome"),
      id: response.headers.get("X-Request-Id"),
      version: response.headers.get("ETag"),
      content: text ? JSON.parse(text) : null,
    };
  } catch {
    return { ok: false, status: 0, outcome: null, id: null, version: null, content: null };
  }
}

/** Reads all pages of a list. `?after=` of the next page is the field `key` of the last entry. */
export async function all(path, key, after) {
  const LIMIT = 200;
  const found = [];
  for (;;) {
    const query = new URLSearchParams({ limit: LIMIT, ...(after === undefined ? {} : { after }) });
    const response = await send("GET", `${path}?${query}`);
    if (!response.ok) return response.status === 404 ? [] : null;
    found.push(...response.content);
    if (response.content.length < LIMIT) return found;
    after = found.at(-1)[key];
  }
}

/** Describes a failed response in one or two sentences. */
export function refusal(response) {
  if (response.status === 0) return "The connection was lost before the response arrived.";
  const { title, detail } = response.content ?? {};
  const text = [title, detail].filter(Boolean).join(": ");
  return text ? `${response.status} ${text.replace(/[^.!?]$/, "$&.")}` : `${response.status}.`;
}

/**
 * Opens a stream of server-sent events while the page is visible. It is closed while the page is
 * hidden, because a browser opens only a few connections to one host, and every tab would keep one.
 *
 * `handlers` maps the name of an event to a function that takes its data. `opened` is called
 * whenever the stream opens. `lost` is called whenever it closes: with `true` if the service cannot
 * be reached, with `false` if the page is hidden.
 */
export function stream(path, handlers, opened, lost) {
  const RETRY_MS = 1000;
  let source = null;

  function open() {
    if (source) return;
    source = new EventSource(path);
    source.onopen = opened;
    source.onerror = () => {
      lost(true);
      // The browser reconnects by itself, except after a response that is not an event stream.
      if (source?.readyState === EventSource.CLOSED) { close(); setTimeout(update, RETRY_MS); }
    };
    for (const [name, handle] of Object.entries(handlers)) {
      source.addEventListener(name, (event) => handle(event.data));
    }
  }
  function close() {
    source?.close();
    source = null;
  }
  function update() {
    if (!document.hidden) return open();
    close();
    lost(false);
  }

  document.addEventListener("visibilitychange", update);
  update();
}

/**
 * Calls `changed` whenever `list` may have changed: at once, when the service reports a change,
 * when the service can be reached again, and every few seconds, because the service does not report
 * the changes of other processes. Calls `away` with `true` if the service cannot be reached, else
 * `false`.
 */
export function follow(list, changed, away) {
  const POLL_MS = 5000;
  let isAway = false;
  const setAway = (now) => { isAway = now; away(now); };

  changed();
  stream(
    "/changes",
    { changed: (which) => { if (which === list) changed(); } },
    () => { setAway(false); changed(); },
    setAway,
  );
  setInterval(() => { if (!document.hidden && !isAway) changed(); }, POLL_MS);
}
