// Draws requests as lanes: one for each database, time to the right.

import { element, svg } from "./element.js";
import { COMMITS, action, describe, folded, laneOf, millis } from "./events.js";

// ---------------------------------------------------------------- what to draw

/**
 * Makes the lanes of one request from its events. A shape has the numbers of the events that it
 * stands for, so every event is drawn, and nothing else is.
 */
function model({ name, events, isOver }) {
  const shown = folded(events);
  const origin = shown[0]?.at_us;
  const lanes = new Map();
  const lines = []; // what concerns the whole request: the verdict, the end, and notes
  shown.forEach((event, number) => {
    const at = event.at_us;
    const key = laneOf(event);
    if (key === null) {
      lines.push({ kind: event.what === "note" ? "note" : event.what, from: at, to: at, events: [number], event });
      return;
    }
    if (!lanes.has(key)) lanes.set(key, { name: key, shapes: [], began: null, out: null, wait: null, last: null });
    addTo(lanes.get(key), event, number);
  });
  const settled = shown.find((event) => event.what === "settled");
  for (const lane of lanes.values()) finish(lane, settled, isOver);
  const resources = [...lanes.values()].filter((lane) => lane.name !== "statements");
  const statements = lanes.has("statements") ? [lanes.get("statements")] : [];
  return { name, shown, origin, lanes: [...resources, ...statements], lines };
}

function addTo(lane, event, number) {
  const at = event.at_us;
  const add = (kind, from) => {
    const shape = { kind, from, to: at, events: [number] };
    lane.shapes.push(shape);
    return shape;
  };
  const close = (shape) => { shape.to = at; shape.isOpen = false; shape.events.push(number); };
  switch (event.what) {
    case "began":
      lane.began = add("began", at);
      break;
    case "checked-out":
      lane.out = add("out", at);
      lane.out.isOpen = true;
      break;
    case "checked-in":
      if (lane.out) close(lane.out); else add("out", null);
      lane.out = null;
      break;
    case "step": {
      const kind = event.failed ? "refused" : event.action === "rollback" ? "rolled-back" : COMMITS.includes(event.action) ? "committed" : "prepared";
      add(kind, at - event.took_us);
      lane.last = event;
      break;
    }
    default:
      addNote(lane, event, add, close);
  }
}

function addNote(lane, event, add, close) {
  if (event.about === "statement") {
    Object.assign(add("statement", event.from_us), { to: event.until_us });
    return;
  }
  lane.hasLease = true;
  if (event.says.state === "waiting") {
    lane.wait = add("waiting", event.at_us);
    lane.wait.isOpen = true;
    return;
  }
  if (lane.wait) close(lane.wait); else lane.wait = add("waiting", null);
  lane.wait.state = event.says.state;
}

/** Adds the line of what is outstanding, from its begin to its end, and the state in words. */
function finish(lane, settled, isOver) {
  const hasEnded = lane.last && (lane.last.action === "rollback" || COMMITS.includes(lane.last.action)) && !lane.last.failed;
  lane.isResource = lane.name !== "statements" && (lane.began !== null || lane.out !== null || lane.last !== null || lane.shapes.some(({ kind }) => kind === "out"));
  lane.isCutOff = lane.isResource && lane.began === null;
  lane.isCondemned = lane.out !== null && settled !== undefined;
  if (lane.isResource) {
    lane.line = { from: lane.began?.from ?? null, to: hasEnded ? lane.last.at_us : null, isUnfinished: !hasEnded && (settled !== undefined || isOver) };
  }
  if (lane.isCondemned) lane.out.kind = "condemned";
  lane.state = stateOf(lane, settled);
}

/** Returns the state of a lane in words, and its CSS class. */
function stateOf(lane, settled) {
  const { last } = lane;
  if (lane.name === "statements") return ["", ""];
  if (lane.isCondemned) return ["condemned", "bad"];
  if (last && !last.failed) {
    if (COMMITS.includes(last.action)) return ["committed", "good"];
    if (last.action === "rollback") return ["rolled back", "bad"];
    if (settled) return last.action === "prepare-transaction" ? ["in doubt", "odd"] : ["prepared, its end is not in the feed", "odd"];
    return ["prepared", ""];
  }
  if (last?.action === "commit-prepared") return ["in doubt", "odd"];
  if (last) return [`${action(last)} refused`, last.action === "prepare" ? "bad" : "odd"];
  if (settled && lane.isResource) return ["its end is not in the feed", "odd"];
  if (lane.out) return ["checked out", ""];
  if (lane.wait?.isOpen) return ["waits", "odd"];
  if (lane.wait?.state === "acquired") return ["lease acquired", ""];
  if (lane.wait?.state) return ["no lease", "bad"];
  return ["open", ""];
}

// ---------------------------------------------------------------- the scale of time

/**
 * Returns a function from a time to a place in percent. Later is further to the right. Long gaps
 * are shortened: with a true scale, one slow call would press all other events into one line.
 */
function scale(times) {
  const instants = [...new Set(times)].sort((one, other) => one - other);
  const places = [0];
  for (let i = 1; i < instants.length; i++) {
    places.push(places[i - 1] + 1 + Math.log1p((instants[i] - instants[i - 1]) / 100));
  }
  const whole = places.at(-1) || 1;
  const LEFT = 1.5;
  const x = (time) => {
    const next = instants.findIndex((instant) => instant >= time);
    if (next <= 0) return next === 0 ? LEFT : 100 - LEFT;
    const [before, after] = [instants[next - 1], instants[next]];
    const part = (time - before) / (after - before);
    return LEFT + (100 - 2 * LEFT) * (places[next - 1] + part * (places[next] - places[next - 1])) / whole;
  };
  return { x, start: instants[0], end: instants.at(-1), instants };
}

// ---------------------------------------------------------------- the picture

const ROW = 40;
const BAR = 14;
const MARKS = { committed: "✓", "rolled-back": "✗", refused: "!" };

const percent = (place) => `${place.toFixed(2)}%`;

/** The picture of one request, or of several with a common scale, and a field to step through its events. */
export class Lanes {
  #requests = [];
  #models = [];
  #scale = null;
  #isDue = false;
  #hasMoved = false;
  #picture = svg("svg", { role: "img", class: "picture" });
  #field = element("input", { type: "range", min: 1, step: 1 });
  #caption = element("p", { className: "caption" });
  #selected;

  /** `selected` is called with the number of a request and of its event when the user steps to it. */
  constructor(selected = () => {}) {
    this.#selected = selected;
    this.#field.addEventListener("input", () => { this.#hasMoved = true; this.#draw(); });
    this.#picture.addEventListener("click", (event) => this.#pick(event));
    this.element = element("div", { className: "lanes", hidden: true },
      this.#picture, element("label", {}, "Step through the events ", this.#field), this.#caption);
  }

  /** Draws these requests: `name`, `events`, and `isOver` if no more events are expected. */
  update(requests) {
    this.#requests = requests;
    if (this.#isDue) return;
    this.#isDue = true;
    requestAnimationFrame(() => { this.#isDue = false; this.#draw(); });
  }

  /** All shown events in the order of time. */
  #steps() {
    return this.#models
      .flatMap(({ shown }, request) => shown.map((event, number) => ({ request, number, event })))
      .sort((one, other) => one.event.at_us - other.event.at_us);
  }

  #draw() {
    this.#models = this.#requests.map(model);
    const steps = this.#steps();
    this.element.hidden = steps.length === 0;
    if (steps.length === 0) return;
    const all = this.#models.flatMap(({ lanes, lines }) => [...lines, ...lanes.flatMap(({ shapes }) => shapes)]);
    this.#scale = scale(all.flatMap(({ from, to }) => [from ?? to, to]));
    // The same zero as in the text, which tells when things were reported: at their end.
    this.#scale.origin = Math.min(...this.#models.filter(({ shown }) => shown.length > 0).map(({ origin }) => origin));
    this.#field.max = steps.length;
    if (!this.#hasMoved) this.#field.value = steps.length;
    const step = steps[this.#field.value - 1];
    const text = this.#say(step);
    this.#field.setAttribute("aria-valuetext", text);
    this.#caption.textContent = text;
    if (this.#hasMoved) this.#selected(step.request, step.number);
    this.#paint(step);
  }

  #say({ request, event }) {
    const [text, , took] = describe(event);
    const { name } = this.#models[request];
    const after = `+${millis(event.at_us - this.#scale.origin)}`;
    return `${after}  ${name ? `${name} — ` : ""}${text}${took === undefined ? "" : ` (${millis(took)})`}`;
  }

  #paint(step) {
    const { x, start, end, origin, instants } = this.#scale;
    const content = [];
    let y = 0;
    for (const one of this.#models) {
      const drawn = paintRequest(one, y, this.#scale);
      content.push(...drawn.content);
      y = drawn.y + 8;
    }
    const axis = y;
    content.push(svg("line", { class: "axis", x1: "0", x2: "100%", y1: axis, y2: axis }));
    content.push(...instants.map((instant) => svg("line", { class: "axis", x1: percent(x(instant)), x2: percent(x(instant)), y1: axis, y2: axis + 4 })));
    if (start === origin) content.push(svg("text", { class: "soft", x: "0", y: axis + 17 }, "0"));
    content.push(svg("text", { class: "soft", x: "100%", y: axis + 17, "text-anchor": "end" }, `+${millis(end - origin)}`));
    content.push(...longGap(this.#scale, axis + 17));
    if (this.#hasMoved) {
      const at = percent(x(step.event.at_us));
      content.push(svg("line", { class: "cursor", x1: at, x2: at, y1: 0, y2: axis }));
    }
    this.#picture.setAttribute("height", axis + 22);
    this.#picture.setAttribute("aria-label", summary(this.#models));
    this.#picture.replaceChildren(...content);
  }

  /** Steps to the event that is next to the place of a click. */
  #pick({ clientX }) {
    const { left, width } = this.#picture.getBoundingClientRect();
    const place = (clientX - left) / width * 100;
    const far = ({ event }) => Math.abs(this.#scale.x(event.at_us) - place);
    const steps = this.#steps();
    const nearest = steps.reduce((best, step, number) => far(step) < far(steps[best]) ? number : best, 0);
    this.#field.value = nearest + 1;
    this.#hasMoved = true;
    this.#draw();
  }
}

/** The duration of the longest gap, if it is most of the time: it is drawn shorter than it was. */
function longGap({ x, start, end, instants }, y) {
  const gaps = instants.slice(1).map((to, before) => ({ from: instants[before], to, took: to - instants[before] }));
  const longest = gaps.reduce((best, gap) => gap.took > best.took ? gap : best, { took: 0 });
  const middle = (x(longest.from) + x(longest.to)) / 2;
  if (gaps.length < 3 || longest.took < (end - start) * .4 || middle < 15 || middle > 75) return [];
  return [svg("text", { class: "soft", x: percent(middle), y, "text-anchor": "middle" }, `↔ ${millis(longest.took)}`)];
}

function paintRequest(one, top, time) {
  const { x, origin } = time;
  const content = [];
  let y = top;
  if (one.name) {
    content.push(svg("text", { class: "name", x: "0", y: y + 14 }, one.name));
    y += 20;
  }
  const lineTop = y;
  y += 18;
  const bottom = y + one.lanes.length * ROW;
  for (const line of one.lines) {
    const at = x(line.from);
    const place = percent(at);
    content.push(titled(svg("line", { class: `across ${line.kind}`, x1: place, x2: place, y1: lineTop + 4, y2: bottom }), one, line));
    if (line.kind !== "verdict") continue;
    const isRight = at > 55;
    const text = `verdict: ${line.event.commit ? "commit" : "roll back"}, +${millis(line.from - origin)}`;
    content.push(svg("text", { class: "verdict", x: percent(at + (isRight ? -1 : 1)), y: lineTop + 12, "text-anchor": isRight ? "end" : "start" }, text));
  }
  for (const lane of one.lanes) {
    content.push(...paintLane(lane, y, x));
    // Each shape names its events, for a pointer and for whoever compares the picture with the feed.
    lane.shapes.forEach((shape) => titled(shape.drawn, one, shape, lane));
    y += ROW;
  }
  return { content, y };
}

function titled(drawn, { name, shown }, { kind, from, to, events }, lane) {
  Object.assign(drawn.dataset, { request: name ?? "", lane: lane?.name ?? "", kind, from: from ?? "", to: to ?? "", events: events.join(" ") });
  const texts = events.map((number) => describe(shown[number])[0]);
  drawn.append(svg("title", {}, texts.join(" … ")));
  return drawn;
}

function paintLane(lane, y, x) {
  const [state, kind] = lane.state;
  const middle = y + 18 + BAR / 2;
  const content = [
    svg("text", { x: "0", y: y + 13 }, lane.isCutOff ? `${lane.name} (its beginning was not seen)` : lane.name),
    svg("text", { class: `state ${kind}`, x: "100%", y: y + 13, "text-anchor": "end" }, state),
    svg("line", { class: "track", x1: "0", x2: "100%", y1: middle, y2: middle }),
  ];
  if (lane.line) {
    const from = lane.line.from === null ? 0 : x(lane.line.from);
    const to = lane.line.to === null ? 100 : x(lane.line.to);
    const ends = `${lane.line.from === null ? " cut-off" : ""}${lane.line.isUnfinished ? " unfinished" : ""}`;
    content.push(svg("line", { class: `held${ends}`, x1: percent(from), x2: percent(to), y1: middle, y2: middle }));
  }
  for (const shape of lane.shapes) {
    const from = shape.from === null ? 0 : x(shape.from);
    const to = shape.isOpen ? 100 : x(shape.to);
    if (shape.kind === "began") {
      shape.drawn = svg("circle", { class: "began", cx: percent(from), cy: middle, r: 5 });
      content.push(shape.drawn);
      continue;
    }
    const inset = shape.kind === "out" || shape.kind === "statement" ? 2 : 0;
    shape.drawn = svg("rect", { class: `bar ${shape.kind}`, x: percent(from), width: percent(Math.max(to - from, .6)), y: middle - BAR / 2 + inset, height: BAR - 2 * inset, rx: 2 });
    content.push(shape.drawn);
    if (!MARKS[shape.kind]) continue;
    const place = to > 95 ? { x: percent(from), dx: -3, "text-anchor": "end" } : { x: percent(to), dx: 3 };
    content.push(svg("text", { class: `sign ${shape.kind}`, y: middle + 4, ...place }, MARKS[shape.kind]));
  }
  return content;
}

/** The picture in a few sentences. The text timeline has every event. */
function summary(models) {
  return models.map(({ name, lanes, lines }) => [
    ...lanes.filter(({ state }) => state[0]).map((lane) => `${lane.name}: ${lane.isCutOff ? "its beginning was not seen, " : ""}${lane.state[0]}.`),
    ...lines.filter(({ kind }) => kind === "verdict" || kind === "settled").map(({ event }) => `${describe(event)[0]}.`),
  ].join(" ").replace(/^/, name ? `${name}: ` : "")).join(" ");
}

/** Explains the shapes. */
export function legend() {
  const entries = [
    [svg("circle", { class: "began", cx: 14, cy: 8, r: 5 }), "begun, or joined"],
    [svg("line", { class: "held", x1: 2, x2: 26, y1: 8, y2: 8 }), "outstanding"],
    [svg("rect", { class: "bar out", x: 2, y: 3, width: 24, height: 10, rx: 2 }), "checked out by the handler"],
    [svg("rect", { class: "bar statement", x: 2, y: 3, width: 24, height: 10, rx: 2 }), "statements"],
    [svg("rect", { class: "bar waiting", x: 2, y: 1, width: 24, height: 14, rx: 2 }), "waits for a lease"],
    [svg("rect", { class: "bar prepared", x: 2, y: 1, width: 24, height: 14, rx: 2 }), "prepared"],
    [svg("rect", { class: "bar committed", x: 2, y: 1, width: 24, height: 14, rx: 2 }), "✓ committed"],
    [svg("rect", { class: "bar rolled-back", x: 2, y: 1, width: 24, height: 14, rx: 2 }), "✗ rolled back"],
    [svg("rect", { class: "bar refused", x: 2, y: 1, width: 24, height: 14, rx: 2 }), "! refused"],
    [svg("rect", { class: "bar condemned", x: 2, y: 1, width: 24, height: 14, rx: 2 }), "condemned"],
    [svg("line", { class: "across verdict", x1: 14, x2: 14, y1: 0, y2: 16 }), "the verdict"],
    [svg("line", { class: "across note", x1: 14, x2: 14, y1: 0, y2: 16 }), "the rows are counted"],
    [svg("line", { class: "across settled", x1: 14, x2: 14, y1: 0, y2: 16 }), "settled: the response leaves"],
  ];
  return element("ul", { className: "legend" }, ...entries.map(([shape, text]) =>
    element("li", {}, svg("svg", { width: 28, height: 16, "aria-hidden": "true" }, shape), ` ${text}`)));
}
