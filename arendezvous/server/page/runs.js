// The list of runs at the side: those that need somebody first, those that are over last.

import { keepFilter, linkTo } from "./address.js";
import { byId, count, lay, make, mark, say, seconds } from "./dom.js";

const SHOWN = 300;
const SOON = 100; // milliseconds: many runs that change at once are drawn once
const LOSS = 60; // to lose a member is as bad as to wait for so many seconds
const LONG = 5; // seconds: who waits no longer is about to get a rank

const runs = new Map(); // by id, as the server tells of them
let only = null; // the one run that the token is good for
let more = false; // whether the server has others that it did not list
let chosen = null;
let soon = null; // the timer of the next drawing

export function stateOf(run) {
  if (run.ended) {
    return { text: "ended", kind: "" };
  }
  if (run.closed) {
    return { text: "closed", kind: "" };
  }
  return run.complete ? { text: "complete", kind: "good" } : { text: "gathering", kind: "accent" };
}

/** For how many seconds somebody has waited in this run. */
function waited(run) {
  return run.waited ? run.waited + (performance.now() - run.heard) / 1000 : 0;
}

/** How much a run needs somebody, in seconds of waiting; -1: it is over. */
function needOf(run) {
  if (run.ended || run.closed) {
    return -1;
  }
  const need = waited(run) + (run.lost ? LOSS : 0);
  return need > LONG ? need : 0;
}

function inOrder(some) {
  return some.map((run) => ({ run, need: needOf(run) }))
    .sort((a, b) => b.need - a.need || (a.run.run_id < b.run.run_id ? -1 : 1))
    .map(({ run }) => run);
}

function put(run) {
  runs.set(run.run_id, { ...run, heard: performance.now() });
}

export function setRuns(page) {
  runs.clear();
  page.runs.forEach(put);
  more = page.next !== null;
  only = page.only;
  drawRuns();
}

export function setRun(run) {
  put(run);
  soon ??= setTimeout(() => {
    soon = null;
    drawRuns();
  }, SOON);
}

export function dropRun(runId) {
  runs.delete(runId);
  drawRuns();
}

export function chooseRun(runId) {
  chosen = runId;
  drawRuns();
}

/** The run that needs somebody most; null: there is none. */
export function neediest() {
  return only ?? inOrder([...runs.values()])[0]?.run_id ?? null;
}

function line(run) {
  if (run.ended) {
    return `round ${run.round} · all nodes have finished`;
  }
  const nodes = run.complete ? count(run.participants, "member", "members") : `${run.participants} came`;
  const parts = [`round ${run.round}`, nodes];
  if (run.waiting) {
    parts.push(`${run.waiting} waiting`);
  }
  if (run.spares) {
    parts.push(count(run.spares, "spare", "spares"));
  }
  return parts.join(" · ");
}

/** Says what somebody is needed for; empty: nothing. */
function needText(run) {
  if (needOf(run) <= 0) {
    return "";
  }
  const parts = run.lost ? [`${run.lost} lost`] : [];
  if (waited(run) > LONG) {
    parts.push(`longest wait ${seconds(waited(run))}`);
  }
  return parts.join(" · ");
}

function create(run) {
  const link = make("a", { href: linkTo(run.run_id) }, make("span", { class: "name" }), make("span", { class: "chip" }),
    make("span", { class: "line" }), make("span", { class: "need" }));
  return make("li", {}, link);
}

function update(item, run) {
  const link = item.firstElementChild;
  const [name, chip, under, need] = link.children;
  const state = stateOf(run);
  mark(link, "href", linkTo(run.run_id));
  mark(link, "data-over", run.ended || run.closed ? "yes" : "no");
  say(name, run.run_id);
  say(chip, state.text);
  mark(chip, "data-kind", state.kind);
  say(under, line(run));
  say(need, needText(run));
  mark(need, "data-kind", run.lost ? "bad" : "warn");
  if (run.run_id === chosen) {
    mark(link, "aria-current", "page");
  } else {
    link.removeAttribute("aria-current");
  }
}

export function drawRuns() {
  const wanted = byId("runs-filter").value.trim().toLowerCase();
  const found = inOrder([...runs.values()].filter((run) => run.run_id.toLowerCase().includes(wanted)));
  const shown = found.slice(0, SHOWN);
  lay(byId("runs"), shown, (run) => run.run_id, create, update);
  const all = more ? `${runs.size}+` : String(runs.size);
  say(byId("runs-count"), all);
  say(byId("runs-button"), `Runs ${all}`);
  const hidden = found.length - shown.length;
  const note = byId("runs-more");
  note.hidden = !hidden && !more && (found.length > 0 || !wanted);
  if (hidden || more) {
    say(note, "There are more runs than are listed here: filter them by name.");
  } else if (wanted) {
    say(note, "No run has this in its name.");
  }
}

/** Lets the times grow for which somebody has waited; the order stays until something happens. */
export function tickRuns() {
  for (const item of byId("runs").children) {
    const run = runs.get(item.firstElementChild.firstElementChild.textContent);
    if (run !== undefined) {
      say(item.firstElementChild.lastElementChild, needText(run));
    }
  }
}

export function setUpRuns() {
  keepFilter(byId("runs-filter"), "runs", drawRuns);
}
