// The table of a run's nodes: capped, so that thousands of them do no harm, and filtered.

import { keepFilter } from "./address.js";
import { copyButton, offer } from "./copying.js";
import { byId, count, lay, make, mark, say, seconds } from "./dom.js";
import { drawActs } from "./link.js";

const STEP = 200;
const SHORT = 48; // characters of JSON that are shown as they are
const PHASES = {
  member: { text: "member", kind: "good" },
  gathering: { text: "gathering", kind: "accent" },
  waiting: { text: "waits for the next round", kind: "warn" },
  spare: { text: "spare", kind: "" },
};

let run = null;
let drain = null; // what to do when somebody wants a node to drain
let quarantine = null; // or to be kept out
let most = STEP;

function interval() {
  return run.settings?.keep_alive_interval ?? 5;
}

function expiry() {
  return interval() * (run.settings?.keep_alive_max_attempt ?? 3);
}

function late(node) {
  return node.heartbeat_age > 1.5 * interval();
}

function trouble(node) {
  return [node.grace_left, node.drain_left, node.skew, node.stalled].some((one) => one !== null) || late(node);
}

/** What to say of a node's state, `elapsed` seconds after the server said so. */
function stateOf(node, elapsed) {
  if (node.grace_left !== null) {
    return { text: `connection lost, ${seconds(node.grace_left - elapsed)} left`, kind: "bad" };
  }
  if (node.stalled !== null) {
    return { text: `stalls for ${seconds(node.stalled + elapsed)}`, kind: "warn" };
  }
  if (node.drain_left !== null) {
    return { text: `draining, ${seconds(node.drain_left - elapsed)} left`, kind: "warn" };
  }
  return PHASES[node.phase] ?? { text: node.phase, kind: "" };
}

function addressesOf({ desc }) {
  return desc.addresses.length ? desc.addresses : [desc.addr].filter(Boolean);
}

function matches(node, words, state) {
  if (state && (state === "trouble" ? !trouble(node) : node.phase !== state)) {
    return false;
  }
  const { name, addr, addresses, label } = node.desc;
  const text = `${name} ${addr} ${addresses.join(" ")} ${label} ${node.desc.brings?.role ?? ""}`;
  return words.every((word) => String(node.rank) === word || text.toLowerCase().includes(word));
}

function cell(name, ...children) {
  return make("td", { "data-name": name }, ...children);
}

function create(node) {
  const { name } = node.desc;
  const act = (text, what) => {
    const button = make("button", { type: "button", class: "quiet", text: `${text}…`, "aria-label": `${text} ${name}`, "data-act": "yes" });
    button.addEventListener("click", () => what(name));
    return button;
  };
  const row = make("tr", {},
    make("td", { class: "rank", "data-name": "Rank" }),
    make("th", { class: "name", scope: "row" }, make("span", { class: "full" }), copyButton(name, `the name ${name}`), make("span", { class: "label" })),
    make("td", { class: "address", "data-name": "Address" }, make("span", { class: "full" }), copyButton("", "the address")),
    cell("State", make("span", { class: "chip" }), make("span", { class: "for" }), make("span", { class: "note" })),
    cell("Last heartbeat", make("span", { class: "beat" }, make("meter", { min: 0, optimum: 0 }), make("span"))),
    make("td", { class: "work", "data-name": "Role and step" }, make("span"), make("span", { class: "note" })),
    make("td", { class: "brings-cell", "data-name": "State and data" }, make("div", { class: "brings" })),
    make("td", { class: "act" }, act("Drain", drain), act("Quarantine", quarantine)));
  return row;
}

/** What a node has said of itself, and brings for the others: by name, what there is. */
function saidBy(node) {
  return [["state", node.state], ["data", node.desc.brings?.data]].filter(([, value]) => value !== null && value !== undefined);
}

function roleOf({ desc: { brings } }) {
  const slots = brings?.slots > 1 ? count(brings.slots, "slot", "slots") : "";
  return [brings?.role, slots].filter(Boolean).join(" · ");
}

function drawBrings(box, node) {
  lay(box, saidBy(node), ([name]) => name, () =>
    make("div", {}, make("span", { class: "what" }), make("code"), make("details", {}, make("summary"), make("pre"))),
  (one, [name, value]) => {
    const [what, code, long] = one.children;
    const text = typeof value === "string" ? value : JSON.stringify(value);
    const isLong = text.length > SHORT;
    say(what, name);
    code.hidden = isLong;
    long.hidden = !isLong;
    say(code, isLong ? "" : text);
    say(long.firstElementChild, isLong ? `${text.slice(0, SHORT)}…` : "");
    say(long.lastElementChild, isLong ? (typeof value === "string" ? value : JSON.stringify(value, null, 2)) : "");
  });
}

function update(row, node) {
  const [rank, name, address, state, , work, brings, act] = row.children;
  row.node = node;
  say(rank, node.rank >= 0 ? String(node.rank) : "–");
  say(name.firstElementChild, node.desc.name);
  say(name.lastElementChild, node.desc.label);
  const addresses = addressesOf(node);
  say(address.firstElementChild, addresses.join(", ") || "–");
  address.lastElementChild.hidden = addresses.length === 0;
  offer(address.lastElementChild, addresses[0] ?? "", `the address of ${node.desc.name}`);
  say(state.lastElementChild, node.drain_left === null ? "" : node.drain_reason);
  say(work.firstElementChild, roleOf(node));
  say(work.lastElementChild, node.step === null ? "" : `step ${node.step.toLocaleString("en")}`);
  drawBrings(brings.firstElementChild, node);
  mark(act.firstElementChild, "data-act", run.closed !== null || node.drain_left !== null ? "no" : "yes");
}

/** Lets the ages in the table grow by the seconds since the server told them. */
export function tickMembers(elapsed) {
  if (run === null) {
    return;
  }
  for (const row of byId("members").children) {
    const [, , , state, beat] = row.children;
    const { node } = row;
    const now = stateOf(node, elapsed);
    say(state.firstElementChild, now.text);
    mark(state.firstElementChild, "data-kind", now.kind);
    say(state.children[1], `for ${seconds(node.since + elapsed)}`);
    drawBeat(beat.firstElementChild, node, elapsed);
  }
}

/** Draws a heartbeat in the colour that it had when the server told of it: what is not known since is not bad. */
function drawBeat(box, { heartbeat_age: told }, elapsed) {
  const [meter, text] = box.children;
  meter.max = expiry();
  meter.low = 1.5 * interval();
  meter.high = 0.8 * expiry();
  meter.value = told;
  mark(meter, "aria-label", `${seconds(told)} of ${seconds(expiry())} until it counts as dead`);
  mark(box, "data-kind", told > 0.8 * expiry() ? "bad" : told > 1.5 * interval() ? "warn" : "");
  say(text, `${seconds(told + elapsed)} ago`);
}

/** Shows the columns for which some node has something. */
function drawColumns() {
  const has = {
    work: run.nodes.some((node) => roleOf(node) || node.step !== null),
    brings: run.nodes.some((node) => saidBy(node).length),
  };
  for (const [name, is] of Object.entries(has)) {
    mark(byId("members-table"), `data-${name}`, is ? "yes" : "no");
  }
}

export function drawMembers(status) {
  if (run?.run_id !== status.run_id) {
    most = STEP;
  }
  run = status;
  const words = byId("members-filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  const state = byId("members-state").value;
  drawColumns();
  const found = run.nodes.filter((node) => matches(node, words, state));
  lay(byId("members"), found.slice(0, most), (node) => node.desc.name, create, update);
  const all = run.nodes.length;
  byId("members-scroll").hidden = found.length === 0;
  say(byId("members-count"), found.length === all ? count(all, "node", "nodes") : `${found.length} of ${all} nodes`);
  byId("members-more").hidden = found.length <= most && found.length > 0;
  byId("members-more-button").hidden = found.length <= most;
  const none = all ? "No node is like that." : "Nobody is in this run.";
  say(byId("members-more-text"), found.length ? `The first ${most} of ${found.length} are shown.` : none);
}

export function setUpMembers(onDrain, onQuarantine) {
  drain = onDrain;
  quarantine = onQuarantine;
  const again = () => {
    if (run !== null) {
      drawMembers(run);
      tickMembers(0);
      drawActs();
    }
  };
  keepFilter(byId("members-filter"), "nodes", again);
  keepFilter(byId("members-state"), "state", again);
  byId("members-more-button").addEventListener("click", () => {
    most += STEP;
    again();
  });
}
