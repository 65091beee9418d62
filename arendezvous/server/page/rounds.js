// The rounds of a run as bars: as high as each gathered long. One is told of in words: the latest, or the one pointed at.

import { byId, clock, count, lay, make, mark, say, seconds } from "./dom.js";

const LEAST = 4; // percent: what gathered in no time is still seen
const FEW = 7; // bars for which there is room beside the words
const LATE = 0.5; // of the time that a round gathered: who came after that held the others up
const PROMPT = 0.1; // seconds: nobody is late before that

let rounds = [];
let at = 0; // when the server told of them, in milliseconds
let chosen = null; // the key of the round that has the focus; null: the latest
let pointed = null; // the one under the mouse

function keyOf(round) {
  return `${round.incarnation}.${round.round}`;
}

function elapsed() {
  return (performance.now() - at) / 1000;
}

/** For how many seconds a round has gathered, or did. */
function gathered(round) {
  return round.completed === null ? round.began + elapsed() : round.began - round.completed;
}

function lateIn(round) {
  return round.late.filter((one) => one.after > Math.max(PROMPT, LATE * gathered(round)));
}

function kindOf(round) {
  return round.completed === null ? "accent" : round.ended === null ? "good" : "";
}

function factsOf(round) {
  const since = elapsed();
  const span = (from, to) => seconds(from - (to === null ? -since : to));
  const late = lateIn(round).map((one) => `${one.node} after ${seconds(one.after)}`);
  const facts = [["Gathered", round.completed === null
    ? `for ${seconds(gathered(round))}, since ${clock(round.began + since)}`
    : `${seconds(gathered(round))}, from ${clock(round.began + since)}`]];
  facts.push(["Came late", late.join(", ") || (round.late.length ? `nobody; last ${round.late[0].node} after ${seconds(round.late[0].after)}` : "nobody")]);
  if (round.completed !== null) {
    facts.push(["Complete", `${count(round.world_size, "node", "nodes")}, for ${span(round.completed, round.ended)}`]);
    facts.push([round.ended === null ? "To end as" : "Ended as", round.why || (round.ended === null ? "nothing yet: it goes on" : "its nodes met again")]);
  }
  return facts;
}

function wordsOf(round) {
  return `Round ${round.round}: ${factsOf(round).map(([name, text]) => `${name.toLowerCase()} ${text}`).join("; ")}`;
}

function shownRound() {
  return rounds.find((round) => keyOf(round) === (pointed ?? chosen)) ?? rounds.at(-1);
}

function create(round) {
  const bar = make("button", { type: "button", class: "bar-button" }, make("span", { class: "bar-fill" }), make("span", { class: "bar-name" }));
  const key = keyOf(round);
  bar.addEventListener("pointerenter", () => point(key));
  bar.addEventListener("pointerleave", () => point(null));
  bar.addEventListener("focus", () => choose(key));
  bar.addEventListener("click", () => choose(key));
  return make("li", {}, bar);
}

function update(item, round) {
  const bar = item.firstElementChild;
  const [fill, name] = bar.children;
  const longest = Math.max(...rounds.map(gathered), PROMPT);
  fill.style.height = `${LEAST + (100 - LEAST) * (gathered(round) / longest)}%`;
  mark(fill, "data-kind", kindOf(round));
  mark(fill, "data-late", lateIn(round).length ? "yes" : "no");
  say(name, String(round.round));
  mark(bar, "aria-label", wordsOf(round));
  bar.tabIndex = round === (rounds.find((one) => keyOf(one) === chosen) ?? rounds.at(-1)) ? 0 : -1;
  mark(bar, "aria-current", String(round === shownRound()));
}

function point(key) {
  pointed = key;
  drawRounds();
}

function choose(key) {
  chosen = key;
  drawRounds();
}

function move(event) {
  const bars = [...byId("rounds").querySelectorAll("button")];
  const here = bars.indexOf(document.activeElement);
  const to = { ArrowLeft: here - 1, ArrowRight: here + 1, Home: 0, End: bars.length - 1 }[event.key];
  if (here >= 0 && bars[to] !== undefined) {
    event.preventDefault();
    bars[to].focus();
  }
}

/** Shows these rounds, the oldest first; null: the server tells of none. */
export function setRounds(told) {
  rounds = told ?? [];
  at = performance.now();
  drawRounds();
}

/** Forgets which round was looked at, as another run is shown. */
export function clearRounds() {
  chosen = pointed = null;
  setRounds(null);
}

export function drawRounds() {
  byId("rounds-panel").hidden = rounds.length === 0;
  if (rounds.length === 0) {
    return;
  }
  mark(byId("rounds-panel"), "data-many", rounds.length > FEW ? "yes" : "no");
  lay(byId("rounds"), rounds, keyOf, create, update);
  const longest = Math.max(...rounds.map(gathered));
  say(byId("rounds-scale"), `the highest bar: ${seconds(longest)}`);
  const round = shownRound();
  say(byId("round-name"), `Round ${round.round}`);
  lay(byId("round-facts"), factsOf(round), ([name]) => name, () => make("div", {}, make("dt"), make("dd")),
    (box, [name, text]) => {
      say(box.firstElementChild, name);
      say(box.lastElementChild, text);
    });
}

export function setUpRounds() {
  byId("rounds").addEventListener("keydown", move);
}
