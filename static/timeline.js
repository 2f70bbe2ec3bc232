// The card of one request: the request, the events of its transactions, and the response.

import { element } from "./element.js";
import { refusal } from "./service.js";

// For each row count: the database, the field of the event, and the label.
const TABLES = [
  ["main", "todos", "todos"],
  ["main", "aggregates", "aggregates"],
  ["main", "events", "events of aggregates"],
  ["audit", "audit", "entries"],
];
const MOMENTS = ["before", "inside", "after"];

export class Card {
  #events = [];
  #sent = null; // if this page sent the request: method, path and fault
  #response = null; // if this page sent the request: its response
  #isLost = false;
  #isConcurrent = false;

  constructor() {
    this.element = element("article", { className: "card request" });
  }

  /** A request of another client is shown only once it has something outstanding. */
  get isWorthShowing() {
    return this.#sent !== null || this.#find("began") !== undefined;
  }

  get isOpen() {
    return this.#find("began") !== undefined && !this.#find("settled") && !this.#response && !this.#isLost;
  }

  #find(what) {
    return this.#events.find((event) => event.what === what);
  }

  addEvent(event) {
    this.#events.push(event);
    this.#show();
  }

  setRequest(sent) {
    this.#sent = sent;
    this.#show();
  }

  setResponse(sent, response) {
    this.#response = response;
    this.setRequest(sent);
  }

  /** Other requests ran at the same time, so the row counts include their changes. */
  markConcurrent() {
    this.#isConcurrent = true;
    this.#show();
  }

  /** The feed was disconnected, so later events of this request are missing. */
  disconnect() {
    if (!this.isOpen) return;
    this.#isLost = true;
    this.#show();
  }

  #outcome() {
    const reported = this.#find("settled")?.outcome ?? this.#response?.outcome;
    if (reported) return reported;
    if (this.#isLost || this.#response?.status === 0) return "unknown";
    return this.#response ? "nothing begun" : "open";
  }

  #show() {
    if (!this.isWorthShowing) return;
    const outcome = this.#outcome();
    const status = this.#find("settled")?.status ?? this.#response?.status;
    this.element.replaceChildren(
      element("header", {},
        element("span", { className: `badge ${outcome}` }, outcome),
        element("h2", {}, this.#sent?.what ?? `${this.#find("began").route ?? "a request"} (from another client)`),
        ...(this.#sent?.fault ? [element("code", {}, this.#sent.fault)] : []),
        ...(status ? [element("strong", { className: "status" }, `→ ${status}`)] : [])),
      element("p", { className: "said" }, this.#summary(outcome)),
      ...this.#rows(outcome),
      element("ol", { className: "timeline" }, ...lines(this.#events)),
    );
  }

  /** Describes the result of the request in a sentence or two. */
  #summary(outcome) {
    const status = this.#find("settled")?.status;
    const response = this.#response;
    const received = response?.status ? `The client received ${refusal(response)}` : status ? `The client received ${status}.` : "";
    const hasCommitted = this.#events.some((event) => COMMITS.includes(event.action));
    if (response?.status === 0 && this.#find("settled")) {
      return `The connection was lost. The outcome is ${outcome}, but the client received no response. Check the rows when the service is back.`;
    }
    switch (outcome) {
      case "committed": return hasCommitted
        ? "The client received a success, and both databases keep the changes."
        : "The client received a success. There was nothing to commit.";
      case "rolled-back": return `${received} Everything was rolled back. Neither database keeps a change.`;
      case "partial": return `${received} One database had committed before the other one refused.`;
      case "unknown": return status
        ? `${received} COMMIT was sent, but the server did not reply.`
        : "The connection was lost before the outcome was reported. Check the rows when the service is back.";
      case "open": return "The request is still running.";
      default: return `${received} No transaction was begun.`;
    }
  }

  /** The table of row counts: committed before, inside the request, committed after. */
  #rows(outcome) {
    const counted = new Map(this.#events
      .filter((event) => event.what === "note" && event.about === "rows")
      .map((event) => [event.says.at, event.says]));
    if (counted.size === 0) return [];
    const rows = TABLES.map(([database, counting, name]) => {
      const [before, inside, after] = MOMENTS.map((moment) => counted.get(moment)?.[counting] ?? null);
      const isChanged = !this.#isConcurrent && inside !== null && inside !== before;
      const fate = outcome === "committed" && after === inside ? "kept" : outcome === "rolled-back" && after === before ? "gone" : "";
      const cells = [[before, ""], [inside, isChanged ? "more" : ""], [after, isChanged ? fate : ""]];
      return element("tr", {},
        element("th", { scope: "row" }, name, " ", element("span", { className: "soft" }, `in ${database}`)),
        ...cells.map(([count, kind]) => element("td", { className: `number ${kind}` }, count ?? "–")));
    });
    const heads = ["Rows", ...MOMENTS].map((name, place) => element("th", { scope: "col", className: place ? "number" : "" }, name));
    const table = element("table", { className: "rows" }, element("thead", {}, element("tr", {}, ...heads)), element("tbody", {}, ...rows));
    return [element("div", { className: "scroll" }, table), ...this.#caveats().map((text) => element("p", { className: "empty" }, text))];
  }

  #caveats() {
    const hasAggregates = this.#events.some((event) => event.what === "began" && event.resource.startsWith("aggregates"));
    return [
      ...(this.#isConcurrent ? ["Other requests ran at the same time. The counts include their rows."] : []),
      ...(hasAggregates ? ["Events are written during settlement, in the same transaction. So the count inside does not include them."] : []),
    ];
  }
}

const millis = (us) => `${(us / 1000).toFixed(us < 10_000 ? 2 : 0)} ms`;

/** Makes a line of the timeline for each event. Successive statements share one line. */
function lines(events) {
  const start = events[0]?.at_us ?? 0;
  const made = [];
  for (const event of folded(events)) {
    const [text, kind, took] = describe(event);
    made.push(element("li", { className: kind },
      element("span", { className: "number soft" }, `+${millis(event.at_us - start)}`),
      element("span", {}, text),
      element("span", { className: "number soft" }, took === undefined ? "" : millis(took))));
  }
  return made;
}

/** Removes the check-outs that the counting of rows causes, and merges successive statements. */
function folded(events) {
  const kept = [];
  for (const event of events) {
    const last = kept.at(-1);
    if (event.about === "rows") {
      if (event.says.at !== "inside") continue;
      while (kept.at(-1)?.what === "checked-in" && kept.at(-2)?.what === "checked-out") kept.splice(-2);
      kept.push(event);
    } else if (event.about === "statement" && last?.about === "statement") {
      last.count += 1;
      last.took_us += event.says.took_us;
    } else if (event.about === "statement") {
      kept.push({ ...event, count: 1, took_us: event.says.took_us });
    } else {
      kept.push(event);
    }
  }
  return kept;
}

const ACTIONS = {
  prepare: "prepare",
  commit: "COMMIT",
  rollback: "ROLLBACK",
  "prepare-transaction": "PREPARE TRANSACTION",
  decide: "COMMIT with the decision",
  "commit-prepared": "COMMIT PREPARED",
};

/** The actions after which something is committed. */
const COMMITS = ["commit", "decide", "commit-prepared"];

/** Returns the text of an event, its CSS class, and its duration if it is known. */
function describe(event) {
  switch (event.what) {
    case "began": return [`${event.resource} joined, by ${event.guard}${event.route ? ` in ${event.route}` : ""}`, ""];
    case "checked-out": return [`${event.resource}: checked out`, ""];
    case "checked-in": return [`${event.resource}: checked in`, ""];
    case "verdict": return [`Verdict: ${event.commit ? "commit" : "roll back"} — ${event.reason}`, "mark"];
    case "step": {
      const kind = event.failed || event.action === "rollback" ? "bad" : COMMITS.includes(event.action) ? "good" : "";
      const failed = event.failed ? `, refused: ${event.failed}` : "";
      return [`${event.resource}: ${ACTIONS[event.action]}${failed}`, kind, event.took_us];
    }
    case "settled": return [`${event.outcome}; response: ${event.status}`, event.outcome === "committed" ? "mark good" : "mark bad", event.took_us];
    default: return describeNote(event);
  }
}

function describeNote(event) {
  switch (event.about) {
    case "statement": return [event.count === 1 ? "1 statement" : `${event.count} statements`, "", event.took_us];
    case "rows": return ["the rows inside were counted", ""];
    default: return [event.about ?? event.what, ""];
  }
}
