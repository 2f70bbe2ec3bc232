// One request: what was asked, what the client was told, and everything in between.

import { element } from "./element.js";
import { refusal } from "./service.js";

// Database, what is counted, and what it is called.
const TABLES = [
  ["main", "todos", "todos"],
  ["main", "aggregates", "aggregates"],
  ["main", "events", "events of aggregates"],
  ["audit", "audit", "lines"],
];
const MOMENTS = ["before", "inside", "after"];

export class Card {
  #events = [];
  #asked = null; // by this page: what, and with which fault
  #answer = null; // to this page
  #isLost = false;
  #isCrowded = false;

  constructor() {
    this.element = element("article", { className: "card request" });
  }

  /** A request of somebody else's that has nothing outstanding is not. */
  get isWorthShowing() {
    return this.#asked !== null || this.#find("began") !== undefined;
  }

  get isOpen() {
    return this.#find("began") !== undefined && !this.#find("settled") && !this.#answer && !this.#isLost;
  }

  #find(what) {
    return this.#events.find((event) => event.what === what);
  }

  happened(event) {
    this.#events.push(event);
    this.#show();
  }

  asked(asked) {
    this.#asked = asked;
    this.#show();
  }

  answered(asked, answer) {
    this.#answer = answer;
    this.asked(asked);
  }

  /** Others were under way at the same time. */
  crowd() {
    this.#isCrowded = true;
    this.#show();
  }

  /** What happens from now on is not heard. */
  lose() {
    if (!this.isOpen) return;
    this.#isLost = true;
    this.#show();
  }

  #outcome() {
    const told = this.#find("settled")?.outcome ?? this.#answer?.outcome;
    if (told) return told;
    if (this.#isLost || this.#answer?.status === 0) return "unknown";
    return this.#answer ? "nothing begun" : "open";
  }

  #show() {
    if (!this.isWorthShowing) return;
    const outcome = this.#outcome();
    const status = this.#find("settled")?.status ?? this.#answer?.status;
    this.element.replaceChildren(
      element("header", {},
        element("span", { className: `badge ${outcome}` }, outcome),
        element("h2", {}, this.#asked?.what ?? `${this.#find("began").route ?? "a request"} (asked elsewhere)`),
        ...(this.#asked?.fault ? [element("code", {}, this.#asked.fault)] : []),
        ...(status ? [element("strong", { className: "status" }, `→ ${status}`)] : [])),
      element("p", { className: "said" }, this.#told(outcome)),
      ...this.#rows(outcome),
      element("ol", { className: "timeline" }, ...lines(this.#events)),
    );
  }

  /** What it comes to, in words. */
  #told(outcome) {
    const status = this.#find("settled")?.status;
    const answer = this.#answer;
    const said = answer?.status ? `The client was told ${refusal(answer)}` : status ? `The client was told ${status}.` : "";
    const hasCommitted = this.#events.some((event) => event.action === "commit");
    if (answer?.status === 0 && this.#find("settled")) {
      return `The connection was lost: it is ${outcome}, and nobody was told. Look at the rows when the service is back.`;
    }
    switch (outcome) {
      case "committed": return hasCommitted
        ? "The client was told of success, and what was written is kept, in both databases."
        : "The client was told of success. There was nothing to write.";
      case "rolled-back": return `${said} So nothing is left of it, in neither database.`;
      case "partial": return `${said} One database had committed before the other refused.`;
      case "unknown": return status
        ? `${said} COMMIT was sent, and its answer never came.`
        : "The connection was lost before the end was seen. Look at the rows when the service is back.";
      case "open": return "Nothing is decided yet.";
      default: return `${said} No transaction was begun.`;
    }
  }

  /** How many rows everybody saw before, this request saw inside, and everybody sees after. */
  #rows(outcome) {
    const counted = new Map(this.#events
      .filter((event) => event.what === "note" && event.about === "rows")
      .map((event) => [event.says.at, event.says]));
    if (counted.size === 0) return [];
    const rows = TABLES.map(([database, counting, name]) => {
      const [before, inside, after] = MOMENTS.map((moment) => counted.get(moment)?.[counting] ?? null);
      const isChanged = !this.#isCrowded && inside !== null && inside !== before;
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
      ...(this.#isCrowded ? ["Other requests were under way at the same time: their rows are counted too."] : []),
      ...(hasAggregates ? ["Events are written when the request is settled, in the same transaction: after the rows inside were counted."] : []),
    ];
  }
}

const millis = (us) => `${(us / 1000).toFixed(us < 10_000 ? 2 : 0)} ms`;

/** The events as lines; statements that follow each other share one. */
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

/** Leaves out what the counting of rows does itself, and counts statements. */
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

const ACTIONS = { prepare: "prepare", commit: "COMMIT", rollback: "ROLLBACK" };

/** Text, kind, and how long it took, if that is known. */
function describe(event) {
  switch (event.what) {
    case "began": return [`${event.resource} has joined, by ${event.guard}${event.route ? ` in ${event.route}` : ""}`, ""];
    case "checked-out": return [`${event.resource}: checked out`, ""];
    case "checked-in": return [`${event.resource}: checked in`, ""];
    case "verdict": return [`Verdict: ${event.commit ? "commit" : "roll back"} — ${event.reason}`, "mark"];
    case "step": {
      const kind = event.failed || event.action === "rollback" ? "bad" : event.action === "commit" ? "good" : "";
      const failed = event.failed ? `, refused: ${event.failed}` : "";
      return [`${event.resource}: ${ACTIONS[event.action]}${failed}`, kind, event.took_us];
    }
    case "settled": return [`${event.outcome}; the answer leaves: ${event.status}`, event.outcome === "committed" ? "mark good" : "mark bad", event.took_us];
    default: return describeNote(event);
  }
}

function describeNote(event) {
  switch (event.about) {
    case "statement": return [event.count === 1 ? "1 statement" : `${event.count} statements`, "", event.took_us];
    case "rows": return ["the rows inside are counted", ""];
    default: return [event.about ?? event.what, ""];
  }
}
