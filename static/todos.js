// The todo app, by the TodoMVC application specification. The todos live in the service: a change
// is shown at once, and taken back with the reason if the service refuses it.

import { follow, refusal, send } from "./service.js";

const find = (selector) => document.querySelector(selector);
// Not `fault`: that would be one of the page itself. What is no header is no fault.
const wanted = new URLSearchParams(location.search).get("with-fault");
const fault = /^[ -~]+$/.test(wanted ?? "") ? wanted : null;

const filters = {
  "#/": () => true,
  "#/active": (todo) => !todo.completed,
  "#/completed": (todo) => todo.completed,
};

let told = []; // what the service has said last
let shown = []; // with the changes that it has not answered yet
let unanswered = 0;
let changes = Promise.resolve(); // one after the other, in the order of the clicks
let made = 0;

// ---------------------------------------------------------------- changes

/** Shows `todos` now, and the truth as soon as the service has told it. */
function change(todos, method, path, body, refused = () => {}) {
  shown = todos;
  unanswered += 1;
  render();
  changes = changes.then(async () => {
    const answer = await send(method, path(), { body, fault });
    unanswered -= 1;
    if (answer.ok) {
      confirm(answer);
    } else {
      complain(`${refusal(answer)} ${undone(answer)}`);
      refused();
    }
    await refresh();
  });
}

/** What the service has agreed to is true from now on, also if it cannot be asked again. */
function confirm(answer) {
  find(".refusal").hidden = true;
  const todo = answer.content;
  if (todo === null) return;
  const known = told.some((other) => other.id === todo.id);
  told = known ? told.map((other) => (other.id === todo.id ? todo : other)) : [...told, todo];
}

const undone = (answer) => (answer.status === 0 ? "What you see is what was last known." : "The change was undone.");

function complain(text) {
  find(".refusal p").textContent = text;
  find(".refusal").hidden = false;
}

/** Asks for the list, unless a change is under way: what follows it will ask. */
async function refresh() {
  if (unanswered > 0) return;
  const answer = await send("GET", "/todos");
  if (unanswered > 0) return;
  if (answer.ok) told = answer.content;
  shown = told;
  if (edited !== null && !shown.some((todo) => todo.id === edited)) {
    complain(`What you were editing is gone: somebody else has deleted it. You had typed “${find(".edit")?.value ?? ""}”.`);
    edited = null;
  }
  render();
}

function create(title) {
  made += 1;
  const todo = { id: `new-${made}`, title, completed: false };
  const field = find(".new-todo");
  // What was refused need not be typed again.
  change([...shown, todo], "POST", () => "/todos", { title }, () => { field.value ||= title; });
}

/** Todos that are not stored yet have no address: they are left alone until they have one. */
const isStored = (todo) => todo.url !== undefined;
const address = (todo) => () => `/todos/${todo.id}`;

function update(todo, what) {
  if (!isStored(todo)) return;
  const todos = shown.map((other) => (other.id === todo.id ? { ...other, ...what } : other));
  change(todos, "PATCH", address(todo), what);
}

function destroy(todo) {
  if (!isStored(todo)) return;
  change(shown.filter((other) => other.id !== todo.id), "DELETE", address(todo));
}

// ---------------------------------------------------------------- editing

let edited = null; // the id of the todo that is edited

function edit(todo) {
  if (!isStored(todo)) return;
  edited = todo.id;
  render();
  const input = find(".editing .edit");
  input.focus();
  input.setSelectionRange(input.value.length, input.value.length);
}

function leave(save) {
  const input = find(".editing .edit");
  const todo = shown.find((other) => other.id === edited);
  if (edited === null || !input || !todo) return;
  edited = null; // first: taking the field away blurs it, which would leave again
  const title = input.value.trim();
  render();
  if (!save || title === todo.title) return;
  if (title) update(todo, { title }); else destroy(todo);
}

function editor(todo) {
  const input = document.createElement("input");
  input.className = "edit";
  input.value = todo.title;
  input.maxLength = 500;
  input.setAttribute("aria-label", "Edit the todo");
  input.addEventListener("blur", () => { if (!isRendering) leave(true); });
  input.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.isComposing) leave(true);
    if (event.key === "Escape") leave(false);
  });
  return input;
}

// ---------------------------------------------------------------- showing

const route = () => (location.hash in filters ? location.hash : "#/");

let isRendering = false; // rows that are moved lose the focus, and nobody has left them

function render() {
  isRendering = true;
  const typing = find(".edit:focus");
  showRows();
  showRest();
  typing?.focus();
  isRendering = false;
}

function showRows() {
  const list = find(".todo-list");
  const rows = new Map([...list.children].map((row) => [row.dataset.id, row]));
  const visible = shown.filter((todo) => todo.id === edited || filters[route()](todo));
  const kept = visible.map((todo) => line(rows.get(String(todo.id)) ?? blank(todo), todo));
  // Rows that stay are not moved, as far as can be: they keep the focus.
  for (const row of [...list.children]) if (!kept.includes(row)) row.remove();
  kept.forEach((row, place) => {
    if (list.children[place] !== row) list.insertBefore(row, list.children[place] ?? null);
  });
}

function showRest() {
  const active = shown.filter((todo) => !todo.completed).length;
  find(".main").hidden = find(".footer").hidden = shown.length === 0;
  find(".toggle-all").checked = shown.length > 0 && active === 0;
  find(".todoapp").ariaBusy = unanswered > 0;
  const count = document.createElement("strong");
  count.textContent = active;
  find(".todo-count").replaceChildren(count, active === 1 ? " item left" : " items left");
  find(".clear-completed").hidden = active === shown.length;
  for (const link of document.querySelectorAll(".filters a")) {
    link.classList.toggle("selected", link.hash === route());
    link.ariaCurrent = link.hash === route() ? "page" : null;
  }
}

/** A row for a todo, which it finds anew by its id whenever it is used. */
function blank(todo) {
  const row = find("#todo").content.firstElementChild.cloneNode(true);
  const { id } = todo;
  const current = () => shown.find((other) => other.id === id);
  row.dataset.id = id;
  row.querySelector(".toggle").addEventListener("change", (event) => {
    update(current(), { completed: event.target.checked });
  });
  row.querySelector(".destroy").addEventListener("click", () => destroy(current()));
  const label = row.querySelector("label");
  label.addEventListener("dblclick", () => edit(current()));
  label.addEventListener("keydown", (event) => {
    if (event.key === "Enter") { event.preventDefault(); edit(current()); }
  });
  return row;
}

function line(row, todo) {
  row.classList.toggle("completed", todo.completed);
  row.querySelector(".toggle").checked = todo.completed;
  row.querySelector(".toggle").disabled = !isStored(todo);
  row.querySelector(".toggle").ariaLabel = `${todo.title}: done`;
  row.querySelector("label").textContent = todo.title;
  row.querySelector(".destroy").ariaLabel = `Delete ${todo.title}`;

  const isEdited = todo.id === edited;
  row.classList.toggle("editing", isEdited);
  const field = row.querySelector(".edit");
  if (isEdited && !field) row.append(editor(todo));
  if (!isEdited && field) field.remove();
  return row;
}

// ---------------------------------------------------------------- the page

find(".new-todo").addEventListener("keydown", (event) => {
  const title = event.target.value.trim();
  if (event.key !== "Enter" || event.isComposing || !title) return;
  event.target.value = "";
  create(title);
});
find(".toggle-all").addEventListener("change", (event) => {
  const completed = event.target.checked;
  for (const todo of shown.filter((other) => other.completed !== completed)) {
    update(todo, { completed });
  }
});
find(".clear-completed").addEventListener("click", () => {
  for (const todo of shown.filter((other) => other.completed)) destroy(todo);
});
find(".refusal button").addEventListener("click", () => { find(".refusal").hidden = true; });
window.addEventListener("hashchange", render);
window.addEventListener("beforeunload", (event) => { if (unanswered > 0) event.preventDefault(); });

// Beside the console there is no room for what surrounds the app.
const isFramed = window !== window.top;
document.body.classList.toggle("framed", isFramed);
// Beside the console the focus is the console's.
if (!isFramed) find(".new-todo").focus();
find(".faultless").hidden = fault !== null;
find(".faulty").hidden = fault === null;
find(".faulty code").textContent = fault;

follow("todos", refresh, (isAway) => { find(".away").hidden = !isAway; });
