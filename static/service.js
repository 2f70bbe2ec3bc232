// How the pages talk to the service: JSON over HTTP, and a stream that tells what has changed.

/**
 * Sends a request. Never throws: what could not be sent or read has the status 0, and nobody knows
 * then what became of it.
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

/** Everything in a list that is paged by `?after=`, which is the `key` of the last one seen. */
export async function all(path, key, after) {
  const LIMIT = 200;
  const found = [];
  for (;;) {
    const query = new URLSearchParams({ limit: LIMIT, ...(after === undefined ? {} : { after }) });
    const answer = await send("GET", `${path}?${query}`);
    if (!answer.ok) return answer.status === 404 ? [] : null;
    found.push(...answer.content);
    if (answer.content.length < LIMIT) return found;
    after = found.at(-1)[key];
  }
}

/** What a refusal says, in a sentence or two. */
export function refusal(answer) {
  if (answer.status === 0) return "The connection was lost before the answer came.";
  const { title, detail } = answer.content ?? {};
  const said = [title, detail].filter(Boolean).join(": ");
  return said ? `${answer.status} ${said.replace(/[^.!?]$/, "$&.")}` : `${answer.status}.`;
}

/**
 * A stream of server-sent events, open while the page is looked at: a browser opens only a few
 * connections to one host, and every tab would keep one. `heard` has a function of the data for each
 * name of an event; `opened` and `lost` are called whenever the stream is, the latter with whether it
 * is the service that cannot be reached.
 */
export function stream(path, heard, opened, lost) {
  const AGAIN_MS = 1000;
  let source = null;

  function open() {
    if (source) return;
    source = new EventSource(path);
    source.onopen = opened;
    source.onerror = () => {
      lost(true);
      // The browser tries again by itself, but not after an answer that is no stream.
      if (source?.readyState === EventSource.CLOSED) { close(); setTimeout(look, AGAIN_MS); }
    };
    for (const [name, hear] of Object.entries(heard)) {
      source.addEventListener(name, (event) => hear(event.data));
    }
  }
  function close() {
    source?.close();
    source = null;
  }
  function look() {
    if (!document.hidden) return open();
    close();
    lost(false);
  }

  document.addEventListener("visibilitychange", look);
  look();
}

/**
 * Calls `changed` when `list` may have changed: at once, when the service says so, when it is back
 * after it was away, and now and then for what other processes change. Calls `away` with whether
 * the service is out of reach.
 */
export function follow(list, changed, away) {
  const OTHERS_MS = 5000;
  let isAway = false;
  const told = (now) => { isAway = now; away(now); };

  changed();
  stream(
    "/changes",
    { changed: (which) => { if (which === list) changed(); } },
    () => { told(false); changed(); },
    told,
  );
  setInterval(() => { if (!document.hidden && !isAway) changed(); }, OTHERS_MS);
}
