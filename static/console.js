// The console: runs a request, with something that goes wrong if the reader likes, and shows what
// happens to its transactions, as it happens.

import { busy, element } from "./element.js";
import { actions, faults, idle, subject } from "./faults.js";
import { refusal, send, stream } from "./service.js";
import { Card } from "./timeline.js";

const find = (selector) => document.querySelector(selector);
const form = find(".run");

// ---------------------------------------------------------------- what to run

// Not `form.action`: that is where a form is sent to.
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

const runs = new Map(); // of this page, by the name under which the feed tells of them

async function run() {
  const { action, fault } = chosen();
  const { id, missing } = await subject(action);
  if (missing) return show(missing);
  const path = action.path(id);
  const asked = { what: `${action.method} ${path}`, fault: fault.fault(amountField.value) };
  const name = `${Date.now()}-${Math.random()}`;
  runs.set(name, asked);
  show("");
  const answer = await send(action.method, path, { body: action.body?.(), fault: asked.fault, headers: { "X-Run": name } });
  runs.delete(name);
  const of = asked.card ?? card(answer.id ?? name);
  of.answered(asked, answer);
  put(of);
  show(answer.ok ? `${asked.what}: ${answer.status}, ${answer.outcome ?? "nothing was begun"}` : `${asked.what}: ${refusal(answer)}`);
}

function show(result) {
  find(".result").textContent = result;
}

// ---------------------------------------------------------------- what happens

const KNOWN = 50;
const SHOWN = 10;
const cards = new Map(); // by request, oldest first, also of those that are not worth showing yet

function card(request) {
  if (!cards.has(request)) {
    cards.set(request, new Card());
    if (cards.size > KNOWN) cards.delete(cards.keys().next().value);
  }
  return cards.get(request);
}

function put({ isWorthShowing, element: shown }) {
  if (!isWorthShowing || shown.isConnected) return;
  const requests = find(".requests");
  requests.querySelector(":scope > .empty")?.remove();
  requests.prepend(shown);
  if (requests.children.length > SHOWN) requests.lastElementChild.remove();
}

function hear(data) {
  const happened = JSON.parse(data);
  const of = card(happened.request);
  of.happened(happened);
  const asked = runs.get(happened.says?.run);
  if (asked) {
    asked.card = of;
    of.asked(asked);
  }
  // Rows that come and go meanwhile are counted too.
  const open = [...cards.values()].filter((one) => one.isOpen);
  if (open.length > 1) open.forEach((one) => one.crowd());
  put(of);
  lookSoon();
}

function miss(count) {
  find(".missed").textContent = `${count} events came faster than this page could read them, and are not shown.`;
  find(".missed").hidden = false;
}

function lose(isAway) {
  find(".away").hidden = !isAway;
  for (const one of cards.values()) one.lose();
}

function found() {
  find(".away").hidden = true;
  look();
}

// ---------------------------------------------------------------- what is held now

/** Without failure injection there is nothing to choose. */
function allow(areOn) {
  find(".off").hidden = areOn;
  if (faultField.disabled === !areOn) return;
  faultField.disabled = !areOn;
  faultField.value = areOn ? 1 : 0;
  explain();
}

let soon = null;
function lookSoon() {
  soon ??= setTimeout(() => { soon = null; look(); }, 100);
}

async function look() {
  const [registry, leases] = await Promise.all([send("GET", "/registry"), send("GET", "/leases")]);
  if (registry.ok) {
    showOutstanding(registry.content);
    allow(registry.content.faults);
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
  // Cell by cell: ages change all the time, and a button that has the focus keeps it.
  [...made.rows].forEach((row, place) => {
    const old = shown.rows[place];
    old.className = row.className;
    [...row.cells].forEach((cell, column) => {
      if (!old.cells[column].isEqualNode(cell)) old.cells[column].replaceWith(cell);
    });
  });
}

const seconds = (ms) => `${(ms / 1000).toFixed(1)} s`;

function showOutstanding({ outstanding, settled }) {
  const rows = outstanding.map((one) => {
    const state = one.condemned ? "condemned" : one.checked_out ? "in a handler's hands" : "open";
    const cells = [one.resource, one.route ?? "–", one.guard, seconds(one.age_ms), state];
    return element("tr", { className: one.condemned ? "condemned" : "" }, ...cells.map((cell) => element("td", {}, cell)));
  });
  table(find(".outstanding .scroll"), "Nothing: no transaction is open.", ["What", "Route", "Guard", "Age", "State"], rows);
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
  table(find(".leases .scroll"), "None: nobody is changing an aggregate.", ["", "Key", "Holder", "Left", "Wanted"], rows);
}

async function free({ target }) {
  if (target.matches("button")) {
    await send("DELETE", `/leases/${encodeURIComponent(target.value)}`);
    look();
  }
}

// ---------------------------------------------------------------- the page

offer();
faultField.addEventListener("change", explain);
actionField.addEventListener("change", explain);
form.addEventListener("submit", (event) => { event.preventDefault(); busy(find(".go"), run); });
find(".leases").addEventListener("click", free);
stream("/registry/events", { request: hear, missed: miss }, found, lose);
// Other processes change leases without telling this one.
setInterval(() => { if (!document.hidden) look(); }, 1000);
