// What happened, the latest first, and the same said aloud to those who listen instead of look.

import { byId, clock, lay, make, mark, say, seconds } from "./dom.js";
import { episodesOf, kindOf } from "./episodes.js";

const KEPT = 1000;
const SHOWN = 60; // episodes
const ALOUD = 3;
const FRESH = 10; // seconds: what is older is history, not news
const SHORT = 0.05; // seconds: what took less happened at once

let events = []; // the oldest first
let quiet = []; // to be said aloud

function nowInSeconds() {
  return performance.now() / 1000;
}

export function clearTimeline() {
  events = [];
  drawTimeline();
}

/** Takes in an event; `seen` is when it happened by the clock of this page, in seconds. */
export function addEvent(event) {
  events.push({ ...event, seen: nowInSeconds() - event.age });
  events = events.slice(-KEPT);
  if (kindOf(event) && event.age < FRESH) {
    quiet.push(event.text);
  }
}

export function addGap(missed) {
  const seen = nowInSeconds();
  const number = `gap ${seen}`;
  events.push({ type: "gap", number, text: `${missed} events are missing here`, data: {}, at: events.at(-1)?.at ?? 0, seen });
}

function createLine() {
  return make("li", {}, make("time"), make("span", { class: "mark", "aria-hidden": "true" }),
    make("span", { class: "text" }), make("details", { hidden: true }, make("summary"), make("span", { class: "names" })));
}

function updateLine(item, line) {
  const [, dot, text, names] = item.children;
  item.line = line;
  mark(dot, "data-kind", line.kind);
  const took = line.took >= SHORT ? `, ${seconds(line.took)}` : "";
  say(text, `${line.text}${took}`);
  names.hidden = line.names.length === 0;
  say(names.firstElementChild, "who");
  mark(names.firstElementChild, "aria-label", `Who: ${line.text}`);
  say(names.lastElementChild, line.names.join(", "));
}

function createEpisode() {
  const item = createLine();
  item.append(make("ol"));
  return item;
}

function updateEpisode(item, [first, ...rest]) {
  updateLine(item, first);
  const list = item.lastElementChild;
  list.hidden = rest.length === 0;
  lay(list, rest, (line) => line.number, createLine, (inner, line) => {
    updateLine(inner, line);
    mark(inner.firstElementChild, "title", clock(nowInSeconds() - line.seen));
    say(inner.firstElementChild, `+ ${seconds(line.at - first.at)}`);
  });
}

export function drawTimeline() {
  const episodes = episodesOf(events).slice(-SHOWN).reverse();
  lay(byId("timeline"), episodes, ([first]) => first.number, createEpisode, updateEpisode);
  byId("timeline-none").hidden = events.length > 0;
  tickTimeline();
}

export function tickTimeline() {
  const now = nowInSeconds();
  for (const { firstElementChild: time, line } of byId("timeline").children) {
    const age = now - line.seen;
    mark(time, "datetime", new Date(Date.now() - 1000 * age).toISOString());
    say(time, `${clock(age)} · ${seconds(age)} ago`);
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
