// The console: runs a request, with a fault if the user chooses one, and shows live what happens to
// its transactions.

import { busy, element } from "./element.js";
import { actions, faults, idle, subject } from "./faults.js";
import { legend } from "./lanes.js";
import { refusal, send, stream } from "./service.js";
import { Card } from "./timeline.js";

const find = (selector) => document.querySelector(selector);
const form = find(".run");

// ---------------------------------------------------------------- what to run

// Not `form.action`: that property is the URL to which the form is sent.
const { action: actionField, fault: faultField, amount: amountField } = form.elements;

const chosen = () => ({
  action: actions[actionField.value],
  fault: faults.flatMap(([, some]) => some)[faultField.value],
});

function offer() {
  actionField.append(...actions.map(({ label }, place) => new Option(label, place)));
  let place = 0;
  for (const [label, some] of faults) {
    const group = element("optgroup", { label });
    group.append(...some.map((fault) => new Option(fault.label, place++)));
    faultField.append(group);
  }
  faultField.value = 1;
  explain();
}

function explain() {
  const { action, fault } = chosen();
  const [name, amount] = fault.amount ?? [];
  const isNew = find(".amount").hidden || find(".amount span").textContent !== name;
  find(".amount").hidden = amountField.disabled = !fault.amount;
  find(".amount span").textContent = name;
  if (isNew) amountField.value = amount ?? "";
  find(".explained").textContent = idle(action, fault) ?? fault.says;
}

const runs = new Map(); // the running requests of this page, by the name that the feed reports as `run`

async function run() {
  const { action, fault } = chosen();
  const { id, missing } = await subject(action);
  if (missing) return show(missing);
  const path = action.path(id);
  const sent = { what: `${action.method} ${path}`, fault: fault.fault(amountField.value) };
  const name = `${Date.now()}-${Math.random()}`;
  runs.set(name, sent);
  show("");
  const response = await send(action.method, path, { body: action.body?.(), fault: sent.fault, headers: { "X-Run": name } });
  runs.delete(name);
  const shown = sent.card ?? card(response.id ?? name);
  shown.setResponse(sent, response);
  display(shown);
  show(response.ok ? `${sent.what}: ${response.status}, ${response.outcome ?? "no transaction was begun"}` : `${sent.what}: ${refusal(response)}`);
}

function show(result) {
  find(".result").textContent = result;
}

// ---------------------------------------------------------------- what happens to requests

const KNOWN = 50;
const SHOWN = 10;
const cards = new Map(); // by request, oldest first, including cards that are not shown yet

function card(request) {
  if (!cards.has(request)) {
    cards.set(request, new Card());
    if (cards.size > KNOWN) cards.delete(cards.keys().next().value);
  }
  return cards.get(request);
}

function display({ isWorthShowing, element: shown }) {
  if (!isWorthShowing || shown.isConnected) return;
  const requests = find(".requests");
  requests.querySelector(":scope > .empty")?.remove();
  requests.prepend(shown);
  if (requests.children.length > SHOWN) requests.lastElementChild.remove();
}

function receive(data) {
  const event = JSON.parse(data);
  const shown = card(event.request);
  shown.addEvent(event);
  const sent = runs.get(event.says?.run);
  if (sent) {
    sent.card = shown;
    shown.setRequest(sent);
  }
  // Concurrent requests change the row counts of each other.
  const open = [...cards.values()].filter((one) => one.isOpen);
  if (open.length > 1) open.forEach((one) => one.markConcurrent());
  display(shown);
  refreshSoon();
}

let missed = 0; // the number of events that the feed has dropped for this page
function showMissed(count) {
  missed += Number(count);
  find(".missed").textContent = `${missed} events are not shown, because they arrived faster than this page could read them. Requests may be missing, or parts of them.`;
  find(".missed").hidden = false;
  for (const one of cards.values()) one.miss();
}

function disconnected(isAway) {
  find(".away").hidden = !isAway;
  for (const one of cards.values()) one.disconnect();
}

function connected() {
  find(".away").hidden = true;
  refresh();
}

// ---------------------------------------------------------------- what is outstanding now

/** Disables the choice of faults if failure injection is off. */
function enableFaults(areOn) {
  find(".off").hidden = areOn;
  if (faultField.disabled === !areOn) return;
  faultField.disabled = !areOn;
  faultField.value = areOn ? 1 : 0;
  explain();
}

let soon = null;
function refreshSoon() {
  soon ??= setTimeout(() => { soon = null; refresh(); }, 100);
}

async function refresh() {
  const [registry, leases] = await Promise.all([send("GET", "/registry"), send("GET", "/leases")]);
  if (registry.ok) {
    showOutstanding(registry.content);
    enableFaults(registry.content.faults);
  }
  if (leases.ok) showLeases(leases.content.leases);
}

function table(into, empty, heads, rows) {
  const head = element("tr", {}, ...heads.map((name) => element("th", { scope: "col" }, name)));
  const made = rows.length > 0
    ? element("table", {}, element("thead", {}, head), element("tbody", {}, ...rows))
    : element("p", { className: "empty" }, empty);
  const shown = into.firstElementChild;
  if (shown?.rows?.length !== made.rows?.length || !made.rows) return into.replaceChildren(made);
  // Only changed cells are replaced: ages change all the time, but a focused button must keep the
  // focus.
  [...made.rows].forEach((row, place) => {
    const old = shown.rows[place];
    old.className = row.className;
    [...row.cells].forEach((cell, column) => {
      if (!old.cells[column].isEqualNode(cell)) old.cells[column].replaceWith(cell);
    });
  });
}

const seconds = (ms) => `${(ms / 1000).toFixed(1)} s`;

function showOutstanding({ outstanding, in_doubt, settled }) {
  const rows = outstanding.map((one) => {
    const state = one.condemned ? "condemned" : one.checked_out ? "checked out" : "open";
    const cells = [one.resource, one.route ?? "–", one.guard, seconds(one.age_ms), state];
    return element("tr", { className: one.condemned ? "condemned" : "" }, ...cells.map((cell) => element("td", {}, cell)));
  });
  for (const { database, name, age_ms } of in_doubt) {
    const cells = [database, "–", name, seconds(age_ms), "in doubt"];
    rows.push(element("tr", { className: "condemned" }, ...cells.map((cell) => element("td", {}, cell))));
  }
  table(find(".outstanding .scroll"), "None: no transaction is open.", ["What", "Route", "Guard", "Age", "State"], rows);
  find(".counts").textContent = `Since the launch: ${settled.committed} committed, ${settled.rolled_back} rolled back, `
    + `${settled.partial} partial, ${settled.unknown} unknown.`;
}

function showLeases(leases) {
  const rows = leases.map((lease) => {
    const left = lease.expires_in_ms > 0 ? seconds(lease.expires_in_ms) : "expired";
    const free = element("button", { type: "button", ariaLabel: `Free ${lease.key}`, value: lease.token }, "Free");
    const cells = [free, lease.key, lease.owner, left, lease.wanted ? "yes" : "no"];
    return element("tr", {}, ...cells.map((cell) => element("td", {}, cell)));
  });
  table(find(".leases .scroll"), "None: no aggregate is being changed.", ["", "Key", "Holder", "Expires in", "Waiting"], rows);
}

async function free({ target }) {
  if (target.matches("button")) {
    await send("DELETE", `/leases/${encodeURIComponent(target.value)}`);
    refresh();
  }
}

// ---------------------------------------------------------------- the page

offer();
find(".lanes-read").append(legend());
faultField.addEventListener("change", explain);
actionField.addEventListener("change", explain);
form.addEventListener("submit", (event) => { event.preventDefault(); busy(find(".go"), run); });
find(".leases").addEventListener("click", free);
stream("/registry/events", { request: receive, missed: showMissed }, connected, disconnected);
// The feed does not report leases that other processes change.
setInterval(() => { if (!document.hidden) refresh(); }, 1000);
