// The card of one request: the request, the events of its transactions, and the response.

import { element } from "./element.js";
import { COMMITS, describe, folded, millis } from "./events.js";
import { Lanes } from "./lanes.js";
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
  #hasMissed = false;
  #isConcurrent = false;
  // Kept while everything else is made anew, because its field may have the focus.
  #lanes = new Lanes((_, number) => this.#markLine(number));
  #head = element("div");
  #counts = element("div");
  #timeline = element("ol", { className: "timeline" });

  constructor() {
    this.element = element("article", { className: "card request" }, this.#head, this.#lanes.element, this.#counts, this.#timeline);
  }

  /** A request of another client is shown only if it has or had something outstanding, or waits for a lease. */
  get isWorthShowing() {
    return this.#sent !== null || this.#events.some(({ what, about }) => what !== "note" || about === "lease");
  }

  get isOpen() {
    return this.#events.some(({ what }) => what !== "note") && !this.#find("settled") && !this.#response && !this.#isLost;
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

  /** The feed has dropped events, perhaps of this request. */
  miss() {
    if (!this.isOpen) return;
    this.#hasMissed = true;
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
    const title = this.#sent?.what ?? `${this.#find("began")?.route ?? "a request"} (from another client)`;
    this.#head.replaceChildren(
      element("header", {},
        element("span", { className: `badge ${outcome}` }, outcome),
        element("h2", {}, title),
        ...(this.#sent?.fault ? [element("code", {}, this.#sent.fault)] : []),
        ...(status ? [element("strong", { className: "status" }, `→ ${status}`)] : [])),
      element("p", { className: "said" }, this.#summary(outcome)),
      ...this.#gaps().map((text) => element("p", { className: "gap" }, text)),
    );
    this.#counts.replaceChildren(...this.#rows(outcome));
    this.#timeline.replaceChildren(...lines(this.#events));
    this.#timeline.setAttribute("aria-label", `Events of ${title}`);
    this.#lanes.update([{ events: this.#events, isOver: !this.isOpen }]);
  }

  /** Marks the line of the timeline to which the user has stepped in the lanes. */
  #markLine(number) {
    [...this.#timeline.children].forEach((line, place) => {
      if (place === number) line.setAttribute("aria-current", "step"); else line.removeAttribute("aria-current");
    });
  }

  /** Says which events of the request this page does not know. */
  #gaps() {
    const began = new Set();
    const isCutOff = this.#events.some(({ what, resource }) => {
      if (what === "began") began.add(resource);
      return resource && !began.has(resource);
    });
    return [
      ...(isCutOff ? ["This request began before this page could see it. Its first events are missing."] : []),
      ...(this.#hasMissed ? ["Events were lost while this request ran, perhaps some of it."] : []),
      ...(this.#isLost ? ["The connection to the feed was lost while this request ran. Later events are missing."] : []),
    ];
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

/** Makes a line of the timeline for each event. Successive statements share one line. */
export function lines(events, start = folded(events)[0]?.at_us) {
  return folded(events).map((event) => {
    const [text, kind, took] = describe(event);
    return element("li", { className: kind },
      element("span", { className: "number soft" }, `+${millis(event.at_us - start)}`),
      element("span", {}, text),
      element("span", { className: "number soft" }, took === undefined ? "" : millis(took)));
  });
}
