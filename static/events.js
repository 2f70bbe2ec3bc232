// The events of the feed in words, for the text timeline and for the lanes.

export const millis = (us) => us >= 1_000_000 ? `${(us / 1_000_000).toFixed(2)} s` : `${(us / 1000).toFixed(us < 10_000 ? 2 : 0)} ms`;

const ACTIONS = {
  prepare: "prepare",
  commit: "COMMIT",
  rollback: "ROLLBACK",
  "prepare-transaction": "PREPARE TRANSACTION",
  decide: "COMMIT with the decision",
  "commit-prepared": "COMMIT PREPARED",
};
export const action = (event) => ACTIONS[event.action] ?? event.action;

/** The actions after which something is committed. */
export const COMMITS = ["commit", "decide", "commit-prepared"];

const LEASES = {
  waiting: "asks for a lease",
  acquired: "lease acquired",
  refused: "no lease was acquired",
  abandoned: "the wait for the lease was cancelled",
};

/** Returns the name of the lane that an event belongs to; `null` if it concerns the whole request. */
export function laneOf(event) {
  if (event.resource) return event.resource;
  if (event.about === "statement") return "statements";
  if (event.about === "lease") return `aggregates in ${event.says.database}`;
  return null;
}

/** Returns the text of an event, its CSS class, and its duration if it is known. */
export function describe(event) {
  switch (event.what) {
    case "began": return [`${event.resource} joined, by ${event.guard}${event.route ? ` in ${event.route}` : ""}`, ""];
    case "checked-out": return [`${event.resource}: checked out`, ""];
    case "checked-in": return [`${event.resource}: checked in`, ""];
    case "verdict": return [`Verdict: ${event.commit ? "commit" : "roll back"} — ${event.reason}`, "mark"];
    case "step": {
      const kind = event.failed || event.action === "rollback" ? "bad" : COMMITS.includes(event.action) ? "good" : "";
      const failed = event.failed ? `, refused: ${event.failed}` : "";
      return [`${event.resource}: ${action(event)}${failed}`, kind, event.took_us];
    }
    case "settled": return [`${event.outcome}; response: ${event.status}`, event.outcome === "committed" ? "mark good" : "mark bad", event.took_us];
    default: return describeNote(event);
  }
}

function describeNote(event) {
  switch (event.about) {
    case "statement": return [event.count === 1 ? "1 statement" : `${event.count} statements`, "", event.took_us];
    case "rows": return ["the rows inside were counted", ""];
    case "lease": return [`${laneOf(event)}: ${LEASES[event.says.state] ?? event.says.state}`, event.says.state === "refused" ? "bad" : ""];
    default: return [event.about ?? event.what, ""];
  }
}

/**
 * Returns the events to show. Successive statements become one event with their number. The
 * check-outs by which the service counts the rows are left out, and so are the counts before and
 * after the request: the table of rows shows them.
 */
export function folded(events) {
  const kept = [];
  for (const event of events) {
    const last = kept.at(-1);
    if (event.about === "rows") {
      if (event.says.at !== "inside") continue;
      dropCheckouts(kept, event.says.audit === null ? null : "audit");
      dropCheckouts(kept, event.says.todos === null ? null : "main");
      kept.push(event);
    } else if (event.about === "statement" && last?.about === "statement") {
      last.count += 1;
      last.took_us += event.says.took_us;
      last.until_us = event.at_us;
    } else if (event.about === "statement") {
      const { took_us } = event.says;
      kept.push({ ...event, count: 1, took_us, from_us: event.at_us - took_us, until_us: event.at_us });
    } else {
      kept.push(event);
    }
  }
  return kept;
}

/** Removes the last check-out and check-in, if they are those of the counted database. */
function dropCheckouts(kept, database) {
  const [out, back] = kept.slice(-2);
  if (database && out?.what === "checked-out" && back?.what === "checked-in" && out.resource === database && back.resource === database) {
    kept.splice(-2);
  }
}
