// The actions and the faults that the console offers.

import { all, send } from "./service.js";

const todos = async () => {
  const response = await send("GET", "/todos");
  return response.ok ? response.content : null;
};
const aggregates = () => all("/aggregates/todos", "id");
const aggregate = (id, command) => `/aggregates/todos/${encodeURIComponent(id)}/${command}`;
const now = () => new Date().toLocaleTimeString();

/**
 * The actions. If an action needs a todo or an aggregate, `on` reads the list of them, and the
 * action uses the last one. `reaches` names a point that only some actions pass; faults with the
 * same `at` act there.
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

/** Returns the id that an action needs, or in `missing` the reason why there is none. */
export async function subject(action) {
  if (!action.on) return {};
  const list = await action.on();
  if (list === null) return { missing: "The service did not return the list. Try again." };
  return list.length > 0 ? { id: list.at(-1).id } : { missing: "There is nothing to run this action on yet. Create one first." };
}

/** Returns the reason why a fault has no effect on an action; `null` if it has an effect. */
export function idle(action, fault) {
  if (!fault.at || fault.at === action.reaches) return null;
  const reaching = actions.filter((other) => other.reaches === fault.at).map(({ label }) => `“${label}”`);
  return `This fault has no effect on this action. Choose ${reaching.join(" or ")}.`;
}

/**
 * The faults, grouped by the part that fails. `fault` makes the value of `X-Fault`. `at` is the
 * point that an action must reach for the fault to act. `amount` is a field that the user can
 * change: its label and its first value.
 */
export const faults = [
  ["Nothing", [
    { label: "nothing", fault: () => null,
      says: "The handler succeeds, and both databases commit." },
  ]],
  ["The response", [
    { label: "the response is a failure", fault: (status) => `respond=${status}`, amount: ["Status", 502],
      says: "The handler does all its work. Then the response becomes a failure, so all of this work is rolled back." },
    { label: "the request is doomed", fault: () => "doom",
      says: "Some part of the service dooms the request: it must roll back, whatever the handler returns." },
  ]],
  ["The handler", [
    { label: "it panics", fault: () => "panic",
      says: "The handler panics after it has written to both databases." },
    { label: "it swallows a SQL error", fault: () => "swallow",
      says: "A statement fails, the handler ignores the error and returns a success. The library detects this and rolls back. Without the library, Postgres would turn the COMMIT into a ROLLBACK, and the client would still receive a success." },
    { label: "it leaks its transaction", fault: (ms) => `leak=${ms}`, amount: ["Milliseconds", 3000],
      says: "A task still holds the transaction when the request ends. The transaction is condemned: it can never commit. It is shown under “Outstanding now” until the task drops it." },
    { label: "it is slow", fault: (ms) => `delay=${ms}`, amount: ["Milliseconds", 2000],
      says: "Nothing fails, but the handler takes long. Meanwhile the transaction is shown under “Outstanding now”." },
  ]],
  ["The database", [
    { label: "COMMIT is refused", fault: () => "commit",
      says: "A deferred constraint is broken, which only COMMIT checks. The library checks both databases before the first one commits, so both roll back." },
    { label: "the session ends (Postgres)", fault: () => "disconnect",
      says: "The server ends the session just before the transaction is settled. SQLite has no server, so there the fault has no effect." },
  ]],
  ["The downstream service", [
    { label: "it refuses (share)", at: "downstream", fault: (status) => `downstream=${status}`, amount: ["Status", 502],
      says: "Sharing a todo calls another service within the transaction. That service refuses, so the todo is not shared, and no audit entry is kept." },
    { label: "it does not respond (share)", at: "downstream", fault: () => "downstream=timeout",
      says: "Sharing a todo calls another service within the transaction. That service does not respond in time, so the todo is not shared." },
  ]],
  ["The lease (aggregates)", [
    { label: "it is held for a long time", at: "loaded", fault: (ms) => `delay=${ms}@loaded`, amount: ["Milliseconds", 3000],
      says: "The request waits after it has loaded the aggregate. It holds the lease (see “Leases”), so no other request can write the aggregate. It holds no transaction and no connection." },
    { label: "another holder takes it over", at: "loaded", fault: () => "expire-lease",
      says: "Another holder takes the lease over, as if this process had been stopped until the lease expired. The late commit is refused. The other holder is only simulated and never releases the lease, so free it under “Leases”." },
  ]],
  ["The process", [
    { label: "it is killed before COMMIT", fault: () => "crash=before-commit",
      says: "The service aborts before the first COMMIT. Start it again: nothing of the request was kept." },
    { label: "it is killed between two COMMITs", fault: () => "crash=between-commits",
      says: "The service aborts after the first database has committed and before the second one commits. Two databases have no common log, so only the first one keeps the change. Start the service again to see it." },
    { label: "it is killed after COMMIT", fault: () => "crash=after-commit",
      says: "The service aborts after both databases have committed. The client receives no response, but the change was kept. Start the service again to see it." },
  ]],
];
