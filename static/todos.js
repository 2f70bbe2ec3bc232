// The todo app, by the TodoMVC application specification. The service stores the todos. The page
// shows a change at once. If the service refuses it, the page undoes it and shows the reason.

import { follow, refusal, send } from "./service.js";

const find = (selector) => document.querySelector(selector);
// Not `fault`: the service would apply that to the request for this page. A value that is not valid
// in a header is ignored.
const wanted = new URLSearchParams(location.search).get("with-fault");
const fault = /^[ -~]+$/.test(wanted ?? "") ? wanted : null;

const filters = {
  "#/": () => true,
  "#/active": (todo) => !todo.completed,
  "#/completed": (todo) => todo.completed,
};

let confirmed = []; // the todos as the service last returned them
let shown = []; // the same, with the changes that are still pending
let pending = 0; // the number of these changes
let changes = Promise.resolve(); // changes are sent one after another, in the order of the clicks
let created = 0; // for the temporary ids of new todos

// ---------------------------------------------------------------- changes

/** Shows `todos` at once and sends the change. The service's list later replaces them. */
function change(todos, method, path, body, refused = () => {}) {
  shown = todos;
  pending += 1;
  render();
  changes = changes.then(async () => {
    const response = await send(method, path(), { body, fault });
    pending -= 1;
    if (response.ok) {
      confirm(response);
    } else {
      complain(`${refusal(response)} ${undone(response)}`);
      refused();
    }
    await refresh();
  });
}

/** Keeps a todo that the service has returned, in case the list cannot be loaded afterwards. */
function confirm(response) {
  find(".refusal").hidden = true;
  const todo = response.content;
  if (todo === null) return;
  const known = confirmed.some((other) => other.id === todo.id);
  confirmed = known ? confirmed.map((other) => (other.id === todo.id ? todo : other)) : [...confirmed, todo];
}

const undone = (response) => (response.status === 0 ? "The page shows the last known state." : "The change was undone.");

function complain(text) {
  find(".refusal p").textContent = text;
  find(".refusal").hidden = false;
}

/** Loads the list, unless a change is pending: after the last pending change this runs again. */
async function refresh() {
  if (pending > 0) return;
  const response = await send("GET", "/todos");
  if (pending > 0) return;
  if (response.ok) confirmed = response.content;
  shown = confirmed;
  if (edited !== null && !shown.some((todo) => todo.id === edited)) {
    complain(`The todo that you were editing was deleted by another client. You had typed “${find(".edit")?.value ?? ""}”.`);
    edited = null;
  }
  render();
}

function create(title) {
  created += 1;
  const todo = { id: `new-${created}`, title, completed: false };
  const field = find(".new-todo");
  // If the service refuses the todo, put the title back, so that it need not be typed again.
  change([...shown, todo], "POST", () => "/todos", { title }, () => { field.value ||= title; });
}

/** A todo that is not stored yet has no URL, and cannot be changed until it has one. */
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
  edited = null; // first, because removing the field causes a blur event, which calls `leave` again
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

let isRendering = false; // moving a row causes a blur event, which must not end the editing

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
  // Rows are moved only if necessary, because a moved row loses the focus.
  for (const row of [...list.children]) if (!kept.includes(row)) row.remove();
  kept.forEach((row, place) => {
    if (list.children[place] !== row) list.insertBefore(row, list.children[place] ?? null);
  });
}

function showRest() {
  const active = shown.filter((todo) => !todo.completed).length;
  find(".main").hidden = find(".footer").hidden = shown.length === 0;
  find(".toggle-all").checked = shown.length > 0 && active === 0;
  find(".todoapp").ariaBusy = pending > 0;
  const count = document.createElement("strong");
  count.textContent = active;
  find(".todo-count").replaceChildren(count, active === 1 ? " item left" : " items left");
  find(".clear-completed").hidden = active === shown.length;
  for (const link of document.querySelectorAll(".filters a")) {
    link.classList.toggle("selected", link.hash === route());
    link.ariaCurrent = link.hash === route() ? "page" : null;
  }
}

/** Creates a row for a todo. Event handlers find the todo by id, because `shown` changes often. */
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
window.addEventListener("beforeunload", (event) => { if (pending > 0) event.preventDefault(); });

// Inside the console's frame only the app itself is shown.
const isFramed = window !== window.top;
document.body.classList.toggle("framed", isFramed);
// Inside the frame the app must not take the focus away from the console.
if (!isFramed) find(".new-todo").focus();
find(".faultless").hidden = fault !== null;
find(".faulty").hidden = fault === null;
find(".faulty code").textContent = fault;

follow("todos", refresh, (isAway) => { find(".away").hidden = !isAway; });
