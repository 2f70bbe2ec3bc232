// The lanes of concurrent commands, drawn from the event feed while they run.

import { element } from "./element.js";
import { folded } from "./events.js";
import { Lanes, legend } from "./lanes.js";
import { lines } from "./timeline.js";

export class Race {
  #section;
  #names;
  #runs; // by command: the value of its header `X-Run`, by which the feed tells it from others
  #requests = []; // by command: the id of its request
  #events = new Map(); // by request
  #missed = 0;
  #source = null;
  #lanes;

  /** Listens to the feed. Resolves when the feed is open, or cannot be opened. */
  static async listen(section, names) {
    const race = new Race(section, names);
    await race.#open();
    return race;
  }

  constructor(section, names) {
    this.#section = section;
    this.#names = names;
    this.#runs = names.map((_, place) => `${Date.now()}-${Math.random()}-${place}`);
    this.#lanes = new Lanes();
    section.querySelector(".drawn").replaceChildren(this.#lanes.element, legend());
    section.querySelector(".texts").replaceChildren();
    section.querySelector(".gap").hidden = true;
  }

  run(place) {
    return this.#runs[place];
  }

  /** The command was answered. The id in its response names its request, if the feed did not. */
  answered(place, id) {
    this.#requests[place] = id ?? this.#requests[place];
    this.#show();
  }

  /** Stops listening once both commands are settled, at the latest after a second. */
  async end() {
    const LONGEST_MS = 1000;
    const deadline = performance.now() + LONGEST_MS;
    const isSettled = (request) => this.#of(request).some((event) => event.about === "rows" && event.says.at === "after");
    while (this.#source && performance.now() < deadline && !this.#requests.every(isSettled)) {
      await new Promise((resolve) => { setTimeout(resolve, 50); });
    }
    this.#source?.close();
    this.#show(true);
  }

  #open() {
    return new Promise((resolve) => {
      this.#source = new EventSource("/registry/events");
      this.#source.onopen = () => { this.#tellSeen(true); resolve(); };
      this.#source.onerror = () => {
        // Only an operator may listen. A stream that was open reconnects, but events are missing.
        if (this.#source?.readyState !== EventSource.CLOSED) return this.#tellMissed(0);
        this.#source = null;
        this.#tellSeen(false);
        resolve();
      };
      this.#source.addEventListener("request", ({ data }) => this.#receive(JSON.parse(data)));
      this.#source.addEventListener("missed", ({ data }) => this.#tellMissed(Number(data)));
    });
  }

  #tellSeen(isSeen) {
    this.#section.querySelector(".unseen").hidden = isSeen;
    this.#section.querySelector(".seen").hidden = !isSeen;
  }

  #receive(event) {
    if (!this.#events.has(event.request)) this.#events.set(event.request, []);
    this.#events.get(event.request).push(event);
    const place = this.#runs.indexOf(event.says?.run);
    if (place >= 0) this.#requests[place] = event.request;
    if (this.#requests.includes(event.request)) this.#show();
  }

  #tellMissed(count) {
    this.#missed += count;
    const gap = this.#section.querySelector(".gap");
    gap.textContent = count ? `The feed has dropped ${this.#missed} events. Some of them may be missing here.`
      : "The connection to the feed was lost for a while. Events may be missing here.";
    gap.hidden = false;
  }

  #of(request) {
    return this.#events.get(request) ?? [];
  }

  #show(isOver = false) {
    const requests = this.#names.map((name, place) => ({ name, events: this.#of(this.#requests[place]), isOver }));
    const known = requests.filter(({ events }) => events.length > 0);
    this.#lanes.update(known);
    const start = Math.min(...known.flatMap(({ events }) => folded(events).map(({ at_us }) => at_us)));
    this.#section.querySelector(".texts").replaceChildren(...known.flatMap(({ name, events }) => [
      element("h3", {}, name), element("ol", { className: "timeline" }, ...lines(events, start)),
    ]));
  }
}
