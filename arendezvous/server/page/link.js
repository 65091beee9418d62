// Whether the server is still there. Without it what is shown is old: it is dimmed, and nothing can be done.

import { byId, clock, mark, say, seconds } from "./dom.js";

const SLOW = 10_000; // milliseconds for an answer, after which what is shown counts as old

const streams = new Map(); // by name: when it is tried again, or null while it stands
const wakes = new Set();
let heardAt = performance.now(); // when what is shown was true
let askedAt = null; // since when an answer is due; null: none is
let refusal = "";
let grant = { only: null, read_only: false };

/** Notes that a stream stands. */
export function opened(name) {
  streams.set(name, null);
  refusal = "";
  if (isLive()) {
    heard();
  } else {
    drawLink();
  }
}

/** Notes that a stream broke, and is tried again after so many milliseconds. */
export function broken(name, milliseconds) {
  if (isLive() && askedAt === null) {
    heardAt = performance.now();
  }
  streams.set(name, performance.now() + milliseconds);
  drawLink();
}

/** Notes that a stream is not followed any more. */
export function dropped(name) {
  streams.delete(name);
}

/** Notes that the server refuses what is asked for, and why. */
export function refusedBy(problem) {
  refusal = problem.message;
  drawLink();
}

/** Notes that something is asked for; the answer is `heard`, or does not come. */
export function asking() {
  askedAt ??= performance.now();
}

/** Notes that the server has answered: what is shown is as things are now. */
export function heard() {
  heardAt = performance.now();
  askedAt = null;
  drawLink();
}

/** Notes what the token is good for, as the list of runs says. */
export function allowed(page) {
  grant = page;
  drawLink();
}

/** Whether what is shown is how things are now. */
export function isLive() {
  const stands = [...streams.values()].every((due) => due === null);
  return stands && (askedAt === null || performance.now() - askedAt < SLOW);
}

/** Has `wake` called when somebody does not want to wait for the next attempt; returns how to take it back. */
export function onRetry(wake) {
  wakes.add(wake);
  return () => wakes.delete(wake);
}

function liveText() {
  const text = grant.read_only ? "live, read-only" : "live";
  return grant.only === null ? text : `${text}, for run ${grant.only}: your token is good for no other`;
}

function drawLost() {
  const age = (performance.now() - heardAt) / 1000;
  const dues = [...streams.values()].filter((due) => due !== null);
  const left = dues.length ? (Math.min(...dues) - performance.now()) / 1000 : 0;
  say(byId("lost-time"), clock(age));
  say(byId("lost-age"), `${seconds(age)} ago`);
  say(byId("lost-next"), left > 0.3 ? `Next attempt in ${seconds(left)}` : "Trying now");
}

/** Lets what changes something be used, or not; `data-act` is "no" where it makes no sense anyway. */
export function drawActs() {
  const off = !isLive();
  for (const button of document.querySelectorAll("[data-act]")) {
    button.disabled = off || button.dataset.act === "no";
  }
}

export function drawLink() {
  const known = streams.size > 0;
  const lost = !refusal && known && !isLive();
  const text = refusal || (lost ? "connection lost, trying again" : known ? liveText() : "connecting");
  mark(byId("link"), "data-state", refusal || lost ? "lost" : known ? "live" : "connecting");
  say(byId("link-text"), text);
  mark(document.documentElement, "data-link", lost ? "lost" : "live");
  mark(document.documentElement, "data-may", grant.read_only ? "look" : "act");
  byId("lost").hidden = !lost;
  if (lost) {
    drawLost();
  }
  drawActs();
}

export function setUpLink() {
  byId("retry-button").addEventListener("click", () => wakes.forEach((wake) => wake()));
}
