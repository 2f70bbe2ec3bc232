// An aggregate as it grows: its events, its version, its lease, and two commands that race on it.

import { busy, element } from "./element.js";
import { all, follow, refusal, send } from "./service.js";

const find = (selector) => document.querySelector(selector);
const { id: idField, create: createButton } = find(".choose").elements;
const { how: howField } = find(".race").elements;

let events = []; // of the aggregate that is shown

const address = (id, rest) => `/aggregates/todos/${encodeURIComponent(id)}${rest}`;
const now = () => new Date().toLocaleTimeString();

// ---------------------------------------------------------------- which

async function refresh() {
  const todos = await all("/aggregates/todos", "id");
  if (todos === null) return;
  const known = new Map([...idField.options].map((option) => [option.value, option]));
  for (const { id, task } of todos) {
    if (!known.has(id)) idField.append(new Option("", id));
    (known.get(id) ?? idField.lastElementChild).textContent = `${task} (${id})`;
  }
  find(".race").hidden = todos.length === 0;
  await grow();
}

async function create() {
  const answer = await send("POST", "/aggregates/todos", { body: { user_id: "visitor", task: `made at ${now()}` } });
  if (!answer.ok) return say(refusal(answer));
  await refresh();
  choose(answer.content.id);
}

function choose(id) {
  idField.value = id;
  events = [];
  find(".stream tbody").replaceChildren();
  find(".runners").replaceChildren();
  grow();
}

// ---------------------------------------------------------------- its events

let growing = Promise.resolve();

/** Asks for the events after those that are shown. One at a time: none is to be shown twice. */
function grow() {
  growing = growing.then(async () => {
    const id = idField.value;
    if (!id) return showStream();
    const isFirst = events.length === 0;
    const more = await all(address(id, "/events"), "sequence", events.at(-1)?.sequence);
    if (more === null || id !== idField.value) return;
    events.push(...more);
    find(".stream tbody").append(...more.map((event) => line(event, isFirst)));
    showStream();
  });
  return growing;
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
  find(".stream .empty").hidden = events.length > 0;
}

// ---------------------------------------------------------------- its lease

async function showLease() {
  const answer = await send("GET", "/leases");
  const lease = answer.content?.leases?.find((row) => row.key === `todo:${idField.value}`);
  find(".lease p").textContent = answer.status === 403
    ? "Leases are shown to operators only."
    : lease
      ? `Held by ${lease.owner}; it lasts for ${(lease.expires_in_ms / 1000).toFixed(1)} s more if nobody renews it.`
      : "Nobody holds it.";
}

// ---------------------------------------------------------------- the race

const HELD_MS = 1500;

/** `headers` are those of both commands, made of the version that both have seen. */
const ways = [
  { label: "the second waits for the first", headers: () => ({}),
    says: "The first keeps the lease for a while. Both succeed, one after the other: neither is lost." },
  { label: "both have seen the same version", headers: (version) => ({ "If-Match": `"${version}"` }),
    says: "Both say If-Match. The second waits too; then the todo is not what it was, and it is refused with 412." },
];

async function race() {
  await growing;
  const id = idField.value;
  const headers = ways[howField.value].headers(events.at(-1)?.sequence);
  const runners = ["first", "second"].map((name) => ({ name, task: `${name} at ${now()}`, answer: null, took: null }));
  const started = performance.now();
  const run = async (runner, fault) => {
    const command = (which) => send("POST", address(id, "/rename"), { body: { task: runner.task }, headers, fault: which });
    runner.answer = await command(fault);
    // Without failure injection nobody can be made slow: they race as they are.
    if (runner.answer.content?.type?.endsWith("faults-off")) runner.answer = await command(null);
    runner.took = performance.now() - started;
    showRunners(runners);
  };
  showRunners(runners);
  const watching = setInterval(showLease, 200);
  const first = run(runners[0], `delay=${HELD_MS}@loaded`);
  // So that the first is the first.
  await new Promise((resolve) => { setTimeout(resolve, 200); });
  await Promise.all([first, run(runners[1], null)]);
  clearInterval(watching);
  say(runners.map(({ name, answer }) => `${name}: ${answer.status} ${answer.version ?? ""}`).join(", "));
  await Promise.all([grow(), showLease()]);
}

function showRunners(runners) {
  const rows = runners.map(({ name, answer, took }) => {
    const said = answer === null ? "waiting…" : answer.ok ? `${answer.status}, version ${answer.version}` : refusal(answer);
    const kind = answer === null ? "" : answer.ok ? "committed" : "rolled-back";
    return element("tr", {},
      element("th", { scope: "row" }, `rename, ${name}`),
      element("td", {}, element("span", { className: `badge ${kind}` }, answer?.outcome ?? "under way")),
      element("td", {}, said),
      element("td", { className: "number" }, took === null ? "" : `${took.toFixed(0)} ms`));
  });
  find(".runners").replaceChildren(element("table", {}, element("tbody", {}, ...rows)));
}

function say(result) {
  find(".result").textContent = result;
}

// ---------------------------------------------------------------- the page

howField.append(...ways.map(({ label }, place) => new Option(label, place)));
const explain = () => { find(".race .explained").textContent = ways[howField.value].says; };
explain();
howField.addEventListener("change", explain);
idField.addEventListener("change", () => choose(idField.value));
createButton.addEventListener("click", () => busy(createButton, create));
find(".choose").addEventListener("submit", (event) => event.preventDefault());
find(".race").addEventListener("submit", (event) => { event.preventDefault(); busy(find(".race .go"), race); });
follow("aggregates", refresh, (isAway) => { find(".away").hidden = !isAway; });
showLease();
setInterval(() => { if (!document.hidden) showLease(); }, 1000);
