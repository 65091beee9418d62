// One run: what it looks like now, asked for anew whenever something happens to it.

import { Problem, ask, follow, runPath, token } from "./api.js";
import { curl, offer } from "./copying.js";
import { byId, lay, make, say } from "./dom.js";
import { drawFigures, drawGone, drawKeptOut, tickLists } from "./figures.js";
import { asking, broken, drawActs, dropped, heard, isLive, opened } from "./link.js";
import { drawMembers, setUpMembers, tickMembers } from "./members.js";
import { clearRounds, drawRounds, setRounds, setUpRounds } from "./rounds.js";
import { dropRun } from "./runs.js";
import { askToDrain, askToQuarantine, drawSteering, setUpSteering } from "./steering.js";
import { addEvent, addGap, clearTimeline, drawTimeline, speak, tickTimeline } from "./timeline.js";

const SOONEST = 200; // milliseconds between two looks at a run in which much happens
const STREAM = "run";

let shown = null; // what is shown: { id, status, at, stop, timer, busy, due, happened }

/** Shows the run; null shows none. `noToken(problem)` is called if the server asks for a token. */
export function showRun(runId, noToken) {
  if (shown !== null) {
    shown.stop();
    dropped(STREAM);
    clearTimeout(shown.timer);
  }
  const before = runId === shown?.id ? shown : null; // it goes on, perhaps with another token
  clearTimeline();
  byId("run").hidden = before === null;
  if (before === null) {
    clearRounds();
  }
  shown = null;
  if (runId === null) {
    return;
  }
  const mine = { id: runId, status: before?.status ?? null, at: before?.at ?? 0, timer: 0, busy: false, due: false,
    happened: true };
  shown = mine;
  mine.stop = follow(runPath(runId, "events"), {
    open: () => {
      opened(STREAM);
      refresh(mine);
    },
    lost: (milliseconds) => mine === shown && broken(STREAM, milliseconds),
    denied: (problem) => (problem.status === 401 ? noToken(problem) : refused(problem)),
    event: (name, data) => take(mine, name, data),
  });
}

function take(mine, name, data) {
  if (name === "happened") {
    addEvent(data);
    mine.happened = true;
  } else if (name === "reset" && data.missed === null) {
    clearTimeline(); // the server was started again, or forgot: it tells all that it knows
  } else if (name === "reset") {
    addGap(data.missed);
  }
  schedule(mine, SOONEST);
}

/** Looks at the run again, after so many milliseconds at the latest. */
function schedule(mine, milliseconds) {
  mine.due = true;
  if (mine === shown && !mine.soon && !mine.busy) {
    mine.soon = setTimeout(() => {
      mine.soon = 0;
      refresh(mine);
    }, milliseconds);
  }
}

/** Asks for the run, and for its rounds if something has happened to it. */
async function lookAt(mine) {
  const asksRounds = mine.happened;
  mine.happened = false;
  const [status, told] = await Promise.all([
    ask("GET", runPath(mine.id)),
    asksRounds ? ask("GET", runPath(mine.id, "rounds")).catch(() => null) : null,
  ]);
  if (mine !== shown) {
    return;
  }
  mine.status = status;
  mine.at = performance.now();
  heard();
  if (asksRounds) {
    setRounds(told?.rounds);
  }
  draw();
}

async function refresh(mine) {
  if (mine !== shown || mine.busy) {
    mine.due = true;
    return;
  }
  mine.busy = true;
  mine.due = false;
  const began = performance.now();
  try {
    asking();
    await lookAt(mine);
  } catch (error) {
    mine.happened = true;
    if (error instanceof Problem && error.status && mine === shown) {
      heard();
    }
    if (error instanceof Problem && error.status === 404 && mine === shown) {
      nobody(mine);
    }
  }
  mine.busy = false;
  const took = performance.now() - began;
  if (mine.due) {
    schedule(mine, Math.max(SOONEST, 2 * took)); // half the time at most, however long the run is
  }
  clearTimeout(mine.timer);
  if (mine.status === null) {
    return; // its first event will tell
  }
  // Heartbeats are no events, so their ages have to be asked for; less often where that is much.
  const nodes = mine.status.nodes.length;
  const later = nodes < 500 ? 2_000 : nodes < 5_000 ? 5_000 : 15_000;
  mine.timer = setTimeout(() => document.hidden || refresh(mine), later);
}

export function refreshRun() {
  if (shown !== null) {
    refresh(shown);
  }
}

function showInstead(title, text) {
  byId("run").hidden = true;
  byId("empty").hidden = false;
  say(byId("empty-title"), title);
  say(byId("empty-text"), text);
  byId("empty-command").hidden = true;
}

function nobody(mine) {
  mine.status = null;
  showInstead(`There is no run ${mine.id} here`, "It appears as soon as its first node joins, without a reload.");
  dropRun(mine.id);
}

function refused(problem) {
  showInstead("This run cannot be shown", problem.message);
}

/** The first line, without the name of the run, which is above it. */
function headline(text) {
  const rest = text.replace(/^run .*?: (?=round |ended)/, "");
  return rest === text ? text : `${rest[0].toUpperCase()}${rest.slice(1)}`;
}

function draw() {
  const { status } = shown;
  byId("empty").hidden = true;
  byId("run").hidden = false;
  say(byId("run-title"), status.run_id);
  offer(byId("copy-name"), status.run_id, "the name of the run");
  offer(byId("copy-curl"), curl(runPath(status.run_id), token() !== ""), "as a curl command");
  document.title = `${status.run_id} · arendezvous`;
  drawSteering(status);
  lay(byId("explain"), status.explain.map((text, at) => ({ text, at })), (line) => line.at, () => make("li"),
    (item, line) => say(item, line.at ? line.text : headline(line.text)));
  drawMembers(status);
  drawKeptOut(status);
  drawGone(status);
  drawTimeline();
  drawActs();
  tick();
  speak();
}

/** How many seconds ago the server told of what is shown. */
function elapsed() {
  return (performance.now() - shown.at) / 1000;
}

/** Lets all ages grow; they stand still while the server does not answer, as nothing is known of them then. */
export function tick() {
  if (!shown?.status || !isLive()) {
    return;
  }
  drawFigures(shown.status, elapsed());
  tickMembers(elapsed());
  tickLists(elapsed());
  tickTimeline();
  drawRounds();
}

export function setUpRun() {
  setUpMembers(askToDrain, askToQuarantine);
  setUpSteering(() => shown.status, refreshRun);
  setUpRounds();
}
