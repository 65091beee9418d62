// What happened, the latest first, and the same said aloud to those who listen instead of look.

import { byId, lay, make, mark, say, seconds } from "./dom.js";

const KEPT = 300;
const ALOUD = 3;
const FRESH = 10; // seconds: what is older is history, not news

const KINDS = {
  RoundCompleted: "good",
  RunClosed: "bad",
  RunReopened: "good",
  NodeDraining: "warn",
  RunHeld: "warn",
  RunReleased: "good",
  RunResized: "accent",
  NodeQuarantined: "bad",
  NodePardoned: "good",
  RoundOpened: "accent",
};
const LOSSES = new Set(["connection lost", "no heartbeat"]);

let entries = []; // the latest first
let quiet = []; // to be said aloud

function kindOf(event) {
  if (event.type === "NodeDeparted") {
    return LOSSES.has(event.data.cause) ? "bad" : "warn";
  }
  return KINDS[event.type] ?? "";
}

export function clearTimeline() {
  entries = [];
  drawTimeline();
}

export function addEvent(event) {
  const kind = kindOf(event);
  entries.unshift({ number: event.number, text: event.text, kind, at: performance.now() - 1000 * event.age });
  entries.length = Math.min(entries.length, KEPT);
  if (kind && event.age < FRESH) {
    quiet.push(event.text);
  }
}

export function addGap(missed) {
  const text = `${missed} events are missing here`;
  entries.unshift({ number: `gap ${performance.now()}`, text, kind: "", at: performance.now() });
}

function create() {
  return make("li", {}, make("time"), make("span", { class: "mark", "aria-hidden": "true" }),
    make("span", { class: "text" }));
}

function update(item, entry) {
  const [, dot, text] = item.children;
  item.at = entry.at;
  mark(dot, "data-kind", entry.kind);
  say(text, entry.text);
}

export function drawTimeline() {
  lay(byId("timeline"), entries, (entry) => entry.number, create, update);
  byId("timeline-none").hidden = entries.length > 0;
  tickTimeline();
}

export function tickTimeline() {
  const now = performance.now();
  for (const item of byId("timeline").children) {
    say(item.firstElementChild, `${seconds((now - item.at) / 1000)} ago`);
  }
}

/** Says aloud what has happened since; a burst is cut short. */
export function speak() {
  const said = quiet.slice(-ALOUD);
  const left = quiet.length - said.length;
  quiet = [];
  const log = byId("news");
  for (const text of left ? [`${left} other events`, ...said] : said) {
    log.append(make("p", { text }));
  }
  while (log.childElementCount > 12) {
    log.firstElementChild.remove();
  }
}
