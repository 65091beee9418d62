// One run: what it looks like now, asked for anew whenever something happens to it.

import { Problem, ask, follow, runPath } from "./api.js";
import { confirm } from "./dialogs.js";
import { byId, count, lay, make, mark, say, seconds } from "./dom.js";
import { drawMembers, setUpMembers, tickMembers } from "./members.js";
import { dropRun, stateOf } from "./runs.js";
import { addEvent, addGap, clearTimeline, drawTimeline, speak, tickTimeline } from "./timeline.js";

const SOONEST = 200; // milliseconds between two looks at a run in which much happens
const BY = "the live page";
const GONE = 50;

let shown = null; // what is shown: { id, status, at, stop, timer, busy, due }

/** Shows the run; null shows none. `noToken(problem)` is called if the server asks for a token. */
export function showRun(runId, noToken) {
  if (shown !== null) {
    shown.stop();
    clearTimeout(shown.timer);
  }
  const before = runId === shown?.id ? shown : null; // it goes on, perhaps with another token
  clearTimeline();
  byId("run").hidden = before === null;
  shown = null;
  if (runId === null) {
    return;
  }
  const mine = { id: runId, status: before?.status ?? null, at: before?.at ?? 0, timer: 0, busy: false, due: false };
  shown = mine;
  mine.stop = follow(runPath(runId, "events"), {
    open: () => refresh(mine),
    lost: () => {},
    denied: (problem) => (problem.status === 401 ? noToken(problem) : refused(problem)),
    event: (name, data) => {
      if (name === "happened") {
        addEvent(data);
      } else if (data.missed === null) {
        clearTimeline(); // the server was started again, or forgot: it tells all that it knows
      } else {
        addGap(data.missed);
      }
      schedule(mine, SOONEST);
    },
  });
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

async function refresh(mine) {
  if (mine !== shown || mine.busy) {
    mine.due = true;
    return;
  }
  mine.busy = true;
  mine.due = false;
  const began = performance.now();
  try {
    const status = await ask("GET", runPath(mine.id));
    if (mine === shown) {
      mine.status = status;
      mine.at = performance.now();
      draw();
    }
  } catch (error) {
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

function figures(status) {
  const { settings } = status;
  const of = (phase) => status.nodes.filter((node) => node.phase === phase).length;
  const inside = status.complete ? of("member") : of("gathering");
  const state = stateOf(status);
  const lost = status.complete ? status.world_size - inside : 0;
  const sizes = status.resized.find((one) => !one.role) ?? settings;
  const least = sizes?.min_nodes ?? 0;
  const wanted = settings && (least === sizes.max_nodes ? least : `${least} to ${sizes.max_nodes}`);
  const range = settings ? `${wanted} wanted` : "";
  const missing = status.complete || status.ended ? 0 : Math.max(0, least - inside);
  const held = status.held && (status.held.left === null ? "held" : `held, ${seconds(status.held.left - elapsed())} left`);
  const call = held ? held : status.deadline_left === null ? "" : `last call, ${seconds(status.deadline_left - elapsed())} left`;
  const rounds = status.incarnation > 1 ? `opened ${status.incarnation} times` : status.digest && `digest ${status.digest.slice(0, 8)}`;
  return [
    { name: "State", figure: state.text, note: call,
      kind: status.closed && !status.ended ? "bad" : status.held ? "warn" : state.kind },
    { name: "Round", figure: status.round, note: rounds, kind: "" },
    status.complete && !status.ended
      ? { name: "Members", figure: `${inside} of ${status.world_size}`, note: lost ? `${lost} gone` : range,
          kind: lost ? "bad" : "" }
      : { name: "Here", figure: inside, note: missing ? `${missing} more needed` : range,
          kind: missing ? "warn" : "" },
    { name: "Waiting", figure: of("waiting"), note: "for the next round", kind: of("waiting") ? "warn" : "" },
    { name: "Spares", figure: of("spare"), note: "ready to step in", kind: "" },
  ];
}

function drawFigures() {
  lay(byId("figures"), figures(shown.status), (item) => item.name, () =>
    make("div", {}, make("dt"), make("dd"), make("dd", { class: "note" })),
  (box, item) => {
    const [name, figure, note] = box.children;
    mark(box, "data-kind", item.kind);
    say(name, item.name);
    say(figure, String(item.figure));
    say(note, item.note);
  });
}

function drawGone(status) {
  const gone = status.departed.slice(-GONE).reverse();
  byId("gone-none").hidden = gone.length > 0;
  lay(byId("gone"), gone, (one) => one.node, () =>
    make("li", {}, make("time"), make("span", { class: "mark", "aria-hidden": "true" }),
      make("span", { class: "text" })),
  (item, one) => {
    const [, dot, text] = item.children;
    item.age = one.age;
    mark(dot, "data-kind", ["connection lost", "no heartbeat"].includes(one.cause) ? "bad" : "warn");
    const why = one.reason ? `: ${one.reason}` : "";
    say(text, `${one.node} (${one.cause}) in round ${one.round}${why}`);
  });
}

function draw() {
  const { status } = shown;
  byId("empty").hidden = true;
  byId("run").hidden = false;
  say(byId("run-title"), status.run_id);
  document.title = `${status.run_id} · arendezvous`;
  byId("close-button").hidden = status.closed !== null;
  byId("reopen-button").hidden = status.closed === null;
  byId("hold-button").hidden = status.held !== null || status.closed !== null;
  byId("release-button").hidden = status.held === null;
  byId("resize-button").hidden = status.settings === null;
  lay(byId("explain"), status.explain.map((text, at) => ({ text, at })), (line) => line.at, () => make("li"),
    (item, line) => say(item, line.text.replace(/^run .*?: (?=round |ended)/, "")));
  drawMembers(status);
  drawKeptOut(status);
  drawGone(status);
  drawTimeline();
  tick();
  speak();
}

function elapsed() {
  return (performance.now() - shown.at) / 1000;
}

/** Lets all ages grow. */
export function tick() {
  if (!shown?.status) {
    return;
  }
  drawFigures();
  tickMembers(elapsed());
  tickTimeline();
  for (const item of byId("gone").children) {
    say(item.firstElementChild, `${seconds(item.age + elapsed())} ago`);
  }
}

function steer(path, body) {
  return ask("POST", path, body).then(refreshRun);
}

function askToClose() {
  const { id, status } = shown;
  const nodes = status.nodes.length;
  confirm({
    title: `Close ${id}?`,
    text: `No further round will form: ${count(nodes, "node is", "nodes are")} in it. Members keep their ranks until they leave.`,
    yes: "Close the run",
    act: ({ reason }) =>
      steer(runPath(id, "close"), { by: BY, reason, incarnation: status.incarnation }),
  });
}

function askToReopen() {
  const { id, status } = shown;
  confirm({
    title: `Reopen ${id}?`,
    text: "Nodes that are still in it are let go; whoever joins after that meets in a new round.",
    yes: "Reopen the run",
    reason: false,
    act: () => steer(runPath(id, "reopen"), { incarnation: status.incarnation, by: BY }),
  });
}

function askToDrain(node) {
  const { id } = shown;
  confirm({
    title: `Drain ${node}?`,
    text: "It is asked to finish and leave, and removed when the time is over. A spare takes its place, if there is one.",
    yes: "Drain the node",
    seconds: "Seconds that it may still take",
    act: ({ reason, seconds: limit }) => steer(runPath(id, "members", node, "drain"), { seconds: limit, reason }),
  });
}

function askToQuarantine(node) {
  confirm({
    title: `Quarantine ${node}?`,
    text: "It leaves the run at once, the others are told, and it is let in again when the time is over or it is pardoned.",
    yes: "Quarantine the node",
    seconds: "Seconds; 0: until it is pardoned",
    limit: 0,
    act: ({ reason, seconds: limit }) => decide("quarantine", { target: node, seconds: limit || null, reason }),
  });
}

function askToPardon(one) {
  confirm({
    title: `Pardon ${one.target}?`,
    text: one.is_label ? "All nodes with this label may come in again." : "The node may come in again.",
    yes: "Pardon",
    reason: false,
    act: () => decide("pardon", { target: one.target, is_label: one.is_label }),
  });
}

function askToHold() {
  confirm({
    title: `Hold ${shown.id}?`,
    text: "No round completes until the run is released. Nodes come and go, and a round that is complete goes on.",
    yes: "Hold the run",
    seconds: "Seconds; 0: until it is released",
    limit: 0,
    act: ({ reason, seconds: limit }) => decide("hold", { seconds: limit || null, reason }),
  });
}

function askToRelease() {
  confirm({
    title: `Release ${shown.id}?`,
    text: "A round that is due completes.",
    yes: "Release the run",
    reason: false,
    act: () => decide("release", {}),
  });
}

function askToResize() {
  const { settings, resized } = shown.status;
  const now = resized[0] ?? settings;
  const size = now ? `${now.min_nodes}:${now.max_nodes}` : "";
  confirm({
    title: `Resize ${shown.id}?`,
    text: "If its round has more nodes, they are told, and meet again: the last of them become spares. Empty: as they agreed.",
    yes: "Resize the run",
    nodes: size,
    act: ({ reason, nodes }) => {
      const [least, most] = nodes.split(":").map(Number);
      const sizes = nodes.trim() ? { min_nodes: least, max_nodes: most ?? least } : { min_nodes: 0, max_nodes: 0 };
      return decide("resize", { ...sizes, role: now?.role ?? "", reason });
    },
  });
}

function decide(what, body) {
  return steer(runPath(shown.id, what), { by: BY, ...body });
}

function drawKeptOut(status) {
  byId("kept-out").hidden = status.quarantined.length === 0;
  lay(byId("quarantined"), status.quarantined, (one) => `${one.is_label} ${one.target}`, (one) => {
    const button = make("button", { type: "button", class: "quiet", text: "Pardon…" });
    const item = make("li", {}, make("time"), make("span", { class: "mark", "aria-hidden": "true" }),
      make("span", { class: "text" }), button);
    button.addEventListener("click", () => askToPardon(item.one));
    return item;
  }, (item, one) => {
    const [, dot, text] = item.children;
    item.one = one;
    mark(dot, "data-kind", "bad");
    const until = one.left === null ? "until pardoned" : `${seconds(one.left)} left`;
    say(text, `${one.is_label ? "label " : ""}${one.target}, by ${one.by || "somebody"}, ${until}${one.reason ? `: ${one.reason}` : ""}`);
  });
}

export function setUpRun() {
  setUpMembers(askToDrain, askToQuarantine);
  byId("hold-button").addEventListener("click", askToHold);
  byId("release-button").addEventListener("click", askToRelease);
  byId("resize-button").addEventListener("click", askToResize);
  byId("close-button").addEventListener("click", askToClose);
  byId("reopen-button").addEventListener("click", askToReopen);
}
