// Deciding something of the run that is shown: each asks first, by whom and why.

import { ask, runPath } from "./api.js";
import { confirm } from "./dialogs.js";
import { byId, count } from "./dom.js";

let run = () => null; // the status of the run that is shown
let look = () => {}; // looks at it again

function decide(id, what, body) {
  return ask("POST", runPath(id, ...what), body).then(look);
}

/** Asks, and has `what` of the run decided with what `bodyOf(answer)` makes of the answer. */
function question(what, words, bodyOf) {
  const { run_id: id } = run();
  confirm({ ...words, act: (answer) => decide(id, what, bodyOf(answer)) });
}

function askToClose() {
  const { run_id: id, nodes, incarnation } = run();
  question(["close"], {
    title: `Close ${id}?`,
    text: `No further round will form: ${count(nodes.length, "node is", "nodes are")} in it. Members keep their ranks until they leave.`,
    yes: "Close the run",
  }, ({ by, reason }) => ({ by, reason, incarnation }));
}

function askToReopen() {
  const { run_id: id, incarnation } = run();
  question(["reopen"], {
    title: `Reopen ${id}?`,
    text: "Nodes that are still in it are let go; whoever joins after that meets in a new round.",
    yes: "Reopen the run",
    reason: false,
  }, ({ by }) => ({ by, incarnation }));
}

export function askToDrain(node) {
  question(["members", node, "drain"], {
    title: `Drain ${node}?`,
    text: "It is asked to finish and leave, and removed when the time is over. A spare takes its place, if there is one.",
    yes: "Drain the node",
    seconds: "Seconds that it may still take",
  }, ({ by, reason, seconds }) => ({ seconds, reason: reason ? `${reason} (by ${by})` : `by ${by}` }));
}

export function askToQuarantine(node) {
  question(["quarantine"], {
    title: `Quarantine ${node}?`,
    text: "It leaves the run at once, the others are told, and it is let in again when the time is over or it is pardoned.",
    yes: "Quarantine the node",
    seconds: "Seconds; 0: until it is pardoned",
    limit: 0,
  }, ({ by, reason, seconds }) => ({ by, target: node, seconds: seconds || null, reason }));
}

export function askToPardon({ target, is_label }) {
  question(["pardon"], {
    title: `Pardon ${target}?`,
    text: is_label ? "All nodes with this label may come in again." : "The node may come in again.",
    yes: "Pardon",
    reason: false,
  }, ({ by }) => ({ by, target, is_label }));
}

function askToHold() {
  question(["hold"], {
    title: `Hold ${run().run_id}?`,
    text: "No round completes until the run is released. Nodes come and go, and a round that is complete goes on.",
    yes: "Hold the run",
    seconds: "Seconds; 0: until it is released",
    limit: 0,
  }, ({ by, reason, seconds }) => ({ by, seconds: seconds || null, reason }));
}

function askToRelease() {
  question(["release"], {
    title: `Release ${run().run_id}?`,
    text: "A round that is due completes.",
    yes: "Release the run",
    reason: false,
  }, ({ by }) => ({ by }));
}

function askToResize() {
  const { run_id: id, settings, resized } = run();
  const now = resized[0] ?? settings;
  question(["resize"], {
    title: `Resize ${id}?`,
    text: "If its round has more nodes, they are told, and meet again: the last of them become spares. Empty: as they agreed.",
    yes: "Resize the run",
    nodes: now ? `${now.min_nodes}:${now.max_nodes}` : "",
  }, ({ by, reason, nodes }) => {
    const [least, most] = nodes.split(":").map(Number);
    const sizes = nodes.trim() ? { min_nodes: least, max_nodes: most ?? least } : { min_nodes: 0, max_nodes: 0 };
    return { by, ...sizes, role: now?.role ?? "", reason };
  });
}

/** Shows what can be decided of a run as it is. */
export function drawSteering({ closed, held, settings }) {
  byId("close-button").hidden = closed !== null;
  byId("reopen-button").hidden = closed === null;
  byId("hold-button").hidden = held !== null || closed !== null;
  byId("release-button").hidden = held === null;
  byId("resize-button").hidden = settings === null || closed !== null;
}

/** `current()` is the status of the run that is shown; `again()` looks at it again. */
export function setUpSteering(current, again) {
  run = current;
  look = again;
  byId("hold-button").addEventListener("click", askToHold);
  byId("release-button").addEventListener("click", askToRelease);
  byId("resize-button").addEventListener("click", askToResize);
  byId("close-button").addEventListener("click", askToClose);
  byId("reopen-button").addEventListener("click", askToReopen);
}
