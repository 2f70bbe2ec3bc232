// What the console can do, and what can be made to go wrong with it.

import { all, send } from "./service.js";

const todos = async () => {
  const answer = await send("GET", "/todos");
  return answer.ok ? answer.content : null;
};
const aggregates = () => all("/aggregates/todos", "id");
const aggregate = (id, command) => `/aggregates/todos/${encodeURIComponent(id)}/${command}`;
const now = () => new Date().toLocaleTimeString();

/**
 * `on` lists what it can be done to: the last is meant. `reaches` are the points on its way at which
 * something may go wrong that goes wrong nowhere else.
 */
export const actions = [
  { label: "Create a todo", method: "POST", path: () => "/todos", body: () => ({ title: `made at ${now()}` }) },
  { label: "Complete the newest todo", method: "PATCH", on: todos, path: (id) => `/todos/${id}`, body: () => ({ completed: true }) },
  { label: "Share the newest todo", method: "POST", reaches: "downstream", on: todos, path: (id) => `/todos/${id}/share` },
  { label: "Delete the newest todo", method: "DELETE", on: todos, path: (id) => `/todos/${id}` },
  { label: "Delete all todos", method: "DELETE", path: () => "/todos" },
  { label: "Create an aggregate", method: "POST", path: () => "/aggregates/todos", body: () => ({ user_id: "console", task: `made at ${now()}` }) },
  { label: "Rename the last aggregate by id", method: "POST", reaches: "loaded", on: aggregates, path: (id) => aggregate(id, "rename"), body: () => ({ task: `renamed at ${now()}` }) },
  { label: "Complete the last aggregate by id", method: "POST", reaches: "loaded", on: aggregates, path: (id) => aggregate(id, "complete") },
];

/** The id of what an action is for, where it needs one; or why there is none. */
export async function subject(action) {
  if (!action.on) return {};
  const list = await action.on();
  if (list === null) return { missing: "The service did not say what there is. Try again." };
  return list.length > 0 ? { id: list.at(-1).id } : { missing: "There is nothing to do this to yet: create one first." };
}

/** Why a fault does nothing to an action, if it does nothing. */
export function idle(action, fault) {
  if (!fault.at || fault.at === action.reaches) return null;
  const reaching = actions.filter((other) => other.reaches === fault.at).map(({ label }) => `“${label}”`);
  return `It does nothing here: choose ${reaching.join(" or ")}.`;
}

/** By what they disturb. `at` is the only point where it can go wrong; `amount` is what the reader may change: its name, unit and first value. */
export const faults = [
  ["Nothing", [
    { label: "nothing", fault: () => null,
      says: "The handler succeeds, and both databases commit." },
  ]],
  ["The answer", [
    { label: "the answer is a failure", fault: (status) => `respond=${status}`, amount: ["Status", 502],
      says: "The handler has done all its work. Then the client is told of a failure, so all of it is undone." },
    { label: "the request is doomed", fault: () => "doom",
      says: "Some part of the service has said that this must not be committed, whatever the handler answers." },
  ]],
  ["The handler", [
    { label: "it panics", fault: () => "panic",
      says: "A panic after both databases were written to." },
    { label: "it swallows a SQL error", fault: () => "swallow",
      says: "A statement has failed, nobody has looked, and the handler says success. Postgres would answer COMMIT with ROLLBACK, and the client would never know." },
    { label: "it leaks its transaction", fault: (ms) => `leak=${ms}`, amount: ["Milliseconds", 3000],
      says: "A task keeps the connection for longer than the request lives. The transaction is condemned: see it under “Outstanding now”, until the task is done." },
    { label: "it is slow", fault: (ms) => `delay=${ms}`, amount: ["Milliseconds", 2000],
      says: "Nothing fails, it only takes time: see the transaction under “Outstanding now”." },
  ]],
  ["The database", [
    { label: "COMMIT is refused", fault: () => "commit",
      says: "A deferred constraint that no statement has met, and COMMIT would. Both databases are asked before the first commits." },
    { label: "the session ends (Postgres)", fault: () => "disconnect",
      says: "The server ends the session just before the transaction is settled. SQLite has no session: nothing happens there." },
  ]],
  ["Another service", [
    { label: "it refuses (share)", at: "downstream", fault: (status) => `downstream=${status}`, amount: ["Status", 502],
      says: "Sharing a todo calls another service in the middle of the transaction. It refuses: the todo is not shared, and no audit line says that it was." },
    { label: "it does not answer (share)", at: "downstream", fault: () => "downstream=timeout",
      says: "Sharing a todo calls another service, which does not answer in time." },
  ]],
  ["The lease (aggregates)", [
    { label: "it is kept for long", at: "loaded", fault: (ms) => `delay=${ms}@loaded`, amount: ["Milliseconds", 3000],
      says: "The aggregate is loaded, and nobody else may write it. No transaction and no connection is held meanwhile: see “Leases”." },
    { label: "it is lost to somebody else", at: "loaded", fault: () => "expire-lease",
      says: "As if this process had been stopped for too long: another has taken the lease over, and the late commit is refused. The new holder never comes: free the lease below." },
  ]],
  ["The process", [
    { label: "it is killed before COMMIT", fault: () => "crash=before-commit",
      says: "The service ends here and now: start it again, and look for what it has left. Nothing." },
    { label: "it is killed between two COMMITs", fault: () => "crash=between-commits",
      says: "The service ends here and now. The first database has committed, the second has not: two databases have no common log. Start it again, and look." },
    { label: "it is killed after COMMIT", fault: () => "crash=after-commit",
      says: "The service ends here and now, with everything committed and nobody told. Start it again, and look." },
  ]],
];
