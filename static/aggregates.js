// Shows an aggregate with its events, its version and its lease, and runs two concurrent commands
// on it.

import { busy, element } from "./element.js";
import { Race } from "./race.js";
import { all, follow, refusal, send } from "./service.js";

const find = (selector) => document.querySelector(selector);
const { id: idField, create: createButton } = find(".choose").elements;
const { how: howField } = find(".race").elements;

let events = []; // the events of the aggregate that is shown

const address = (id, rest) => `/aggregates/todos/${encodeURIComponent(id)}${rest}`;
const now = () => new Date().toLocaleTimeString();

// ---------------------------------------------------------------- the selected aggregate

async function refresh() {
  const todos = await all("/aggregates/todos", "id");
  if (todos === null) return;
  const known = new Map([...idField.options].map((option) => [option.value, option]));
  for (const { id, task } of todos) {
    if (!known.has(id)) idField.append(new Option("", id));
    (known.get(id) ?? idField.lastElementChild).textContent = `${task} (${id})`;
  }
  find(".first").hidden = todos.length > 0;
  for (const part of document.querySelectorAll(".known")) part.hidden = todos.length === 0;
  await loadEvents();
}

async function create() {
  const response = await send("POST", "/aggregates/todos", { body: { user_id: "visitor", task: `made at ${now()}` } });
  if (!response.ok) return showResult(refusal(response));
  await refresh();
  await choose(response.content.id);
}

/** Creates an aggregate, and at once runs two commands on it. */
async function example() {
  await create();
  if (!idField.value) return;
  find(".race .go").focus();
  await busy(find(".race .go"), race);
}

function choose(id) {
  idField.value = id;
  events = [];
  find(".stream tbody").replaceChildren();
  find(".runners").replaceChildren();
  return loadEvents();
}

// ---------------------------------------------------------------- its events

let loading = Promise.resolve();

/** Loads the events after the shown ones. Loads run one by one, so no event is shown twice. */
function loadEvents() {
  loading = loading.then(async () => {
    const id = idField.value;
    if (!id) return showStream();
    const isFirst = events.length === 0;
    const more = await all(address(id, "/events"), "sequence", events.at(-1)?.sequence);
    if (more === null || id !== idField.value) return;
    events.push(...more);
    find(".stream tbody").append(...more.map((event) => line(event, isFirst)));
    showStream();
  });
  return loading;
}

function line(event, isOld) {
  const recorded = new Date(event.recorded_at);
  return element("tr", { className: isOld ? "" : "new" },
    element("td", { className: "number" }, event.sequence),
    element("td", {}, event.name),
    element("td", {}, element("code", {}, JSON.stringify(event.payload))),
    element("td", { title: recorded.toISOString() }, recorded.toLocaleTimeString()));
}

function showStream() {
  find(".version").textContent = events.length === 0 ? "" : `version ${events.at(-1).sequence}`;
  find(".version").hidden = events.length === 0;
  find(".stream table").hidden = events.length === 0;
}

// ---------------------------------------------------------------- its lease

async function showLease() {
  const response = await send("GET", "/leases");
  const lease = response.content?.leases?.find((row) => row.key === `todo:${idField.value}`);
  find(".lease p").textContent = response.status === 403
    ? "Only operators can see leases."
    : lease
      ? `Held by ${lease.owner}. Without a renewal it expires in ${(lease.expires_in_ms / 1000).toFixed(1)} s.`
      : "Not held.";
}

// ---------------------------------------------------------------- the race

const HELD_MS = 1500;

/** The cases of the race. `headers` makes the headers of both commands from the current version. */
const cases = [
  { label: "the second waits for the first", headers: () => ({}),
    says: "The first command holds the lease for a while. The second one waits. Both succeed, one after the other." },
  { label: "both require the same version", headers: (version) => ({ "If-Match": `"${version}"` }),
    says: "Both commands send If-Match with the current version. The second one waits too. Then the todo has a new version, so the second command is refused with 412." },
];

async function race() {
  await loading;
  const id = idField.value;
  const headers = cases[howField.value].headers(events.at(-1)?.sequence);
  const runners = ["first", "second"].map((name) => ({ name, task: `${name} at ${now()}`, response: null, took: null }));
  showResult("");
  find(".raced").hidden = false;
  const seen = await Race.listen(find(".raced"), runners.map(({ name }) => `rename, ${name}`));
  const started = performance.now();
  const run = async (place, fault) => {
    const runner = runners[place];
    const command = (which) => send("POST", address(id, "/rename"),
      { body: { task: runner.task }, headers: { ...headers, "X-Run": seen.run(place) }, fault: which });
    runner.response = await command(fault);
    // Failure injection is off: run the command without the fault.
    if (runner.response.content?.type?.endsWith("faults-off")) runner.response = await command(null);
    runner.took = performance.now() - started;
    seen.answered(place, runner.response.id);
    showRunners(runners);
  };
  showRunners(runners);
  const watcher = setInterval(showLease, 200);
  const first = run(0, `delay=${HELD_MS}@loaded`);
  // Let the first command acquire the lease before the second one starts.
  await new Promise((resolve) => { setTimeout(resolve, 200); });
  await Promise.all([first, run(1, null)]);
  clearInterval(watcher);
  showResult(runners.map(({ name, response }) => `${name}: ${response.status} ${response.version ?? ""}`).join(", "));
  await Promise.all([loadEvents(), showLease(), seen.end()]);
}

function showRunners(runners) {
  const rows = runners.map(({ name, response, took }) => {
    const text = response === null ? "waiting…" : response.ok ? `${response.status}, version ${response.version}` : refusal(response);
    const kind = response === null ? "" : response.ok ? "committed" : "rolled-back";
    return element("tr", {},
      element("th", { scope: "row" }, `rename, ${name}`),
      element("td", {}, element("span", { className: `badge ${kind}` }, response?.outcome ?? "running")),
      element("td", {}, text),
      element("td", { className: "number" }, took === null ? "" : `${took.toFixed(0)} ms`));
  });
  find(".runners").replaceChildren(element("table", {}, element("tbody", {}, ...rows)));
}

function showResult(result) {
  find(".result").textContent = result;
}

// ---------------------------------------------------------------- the page

howField.append(...cases.map(({ label }, place) => new Option(label, place)));
const explain = () => { find(".race .explained").textContent = cases[howField.value].says; };
explain();
howField.addEventListener("change", explain);
idField.addEventListener("change", () => choose(idField.value));
createButton.addEventListener("click", () => busy(createButton, create));
find("[name=example]").addEventListener("click", ({ target }) => busy(target, example));
find(".choose").addEventListener("submit", (event) => event.preventDefault());
find(".race").addEventListener("submit", (event) => { event.preventDefault(); busy(find(".race .go"), race); });
follow("aggregates", refresh, (isAway) => { find(".away").hidden = !isAway; });
showLease();
setInterval(() => { if (!document.hidden) showLease(); }, 1000);
