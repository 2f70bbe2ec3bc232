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
      ok: response.ok,
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
  const title = answer.content?.title ?? "The service refused it";
  return `${answer.status} ${title}: ${answer.content?.detail ?? "it says no more."}`;
}

/**
 * Calls `changed` when `list` may have changed: at once, when the service says so, when it is back
 * after it was away, and now and then for what other processes change. Calls `away` with whether
 * the service is out of reach. A page that nobody looks at asks for nothing: a browser opens only a
 * few connections to one host, and every tab would keep one.
 */
export function follow(list, changed, away = () => {}) {
  const OTHERS_MS = 5000;
  let stream = null;

  function open() {
    stream ??= new EventSource("/changes");
    stream.onopen = () => { away(false); changed(); };
    stream.onerror = () => {
      away(true);
      // The browser tries again by itself, but not after an answer that is no stream.
      if (stream?.readyState === EventSource.CLOSED) { close(); setTimeout(look, 1000); }
    };
    stream.addEventListener("changed", (event) => { if (event.data === list) changed(); });
  }
  function close() {
    stream?.close();
    stream = null;
  }
  function look() {
    if (document.hidden) close(); else open();
  }

  document.addEventListener("visibilitychange", look);
  setInterval(() => { if (stream?.readyState === EventSource.OPEN) changed(); }, OTHERS_MS);
  changed();
  look();
}
