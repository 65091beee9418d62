// The list of runs at the side.

import { byId, count, lay, make, mark, say } from "./dom.js";

const SHOWN = 300;
const SOON = 100; // milliseconds: many runs that change at once are drawn once

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

export function linkTo(runId) {
  return `#/runs/${encodeURIComponent(runId)}`;
}

export function setRuns(page) {
  runs.clear();
  page.runs.forEach((run) => runs.set(run.run_id, run));
  more = page.next !== null;
  only = page.only;
  drawRuns();
}

export function setRun(run) {
  runs.set(run.run_id, run);
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

export function firstRun() {
  return only ?? [...runs.keys()].sort()[0] ?? null;
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

function create(run) {
  const link = make("a", { href: linkTo(run.run_id), title: run.run_id }, make("span", { class: "name" }));
  link.append(make("span", { class: "chip" }), make("span", { class: "line" }));
  return make("li", {}, link);
}

function update(item, run) {
  const link = item.firstElementChild;
  const [name, chip, under] = link.children;
  const state = stateOf(run);
  say(name, run.run_id);
  say(chip, state.text);
  mark(chip, "data-kind", state.kind);
  say(under, line(run));
  if (run.run_id === chosen) {
    mark(link, "aria-current", "page");
  } else {
    link.removeAttribute("aria-current");
  }
}

export function drawRuns() {
  const wanted = byId("runs-filter").value.trim().toLowerCase();
  const names = [...runs.keys()].filter((name) => name.toLowerCase().includes(wanted)).sort();
  const shown = names.slice(0, SHOWN).map((name) => runs.get(name));
  lay(byId("runs"), shown, (run) => run.run_id, create, update);
  say(byId("runs-count"), more ? `${runs.size}+` : String(runs.size));
  const hidden = names.length - shown.length;
  const note = byId("runs-more");
  note.hidden = !hidden && !more && (names.length > 0 || !wanted);
  if (hidden || more) {
    say(note, "There are more runs than are listed here: filter them by name.");
  } else if (wanted) {
    say(note, "No run has this in its name.");
  }
}
