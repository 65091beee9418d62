// The table of a run's nodes: capped, so that thousands of them do no harm, and filtered.

import { byId, count, lay, make, mark, say, seconds } from "./dom.js";

const STEP = 200;
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

function trouble(node) {
  return node.grace_left !== null || node.drain_left !== null || node.skew !== null || late(node);
}

function late(node) {
  return node.heartbeat_age > 1.5 * interval();
}

/** What to say of a node's state, `elapsed` seconds after the server said so. */
function stateOf(node, elapsed) {
  if (node.grace_left !== null) {
    return { text: `connection lost, ${seconds(node.grace_left - elapsed)} left`, kind: "bad" };
  }
  if (node.drain_left !== null) {
    return { text: `draining, ${seconds(node.drain_left - elapsed)} left`, kind: "warn" };
  }
  return PHASES[node.phase] ?? { text: node.phase, kind: "" };
}

function matches(node, words, state) {
  if (state && (state === "trouble" ? !trouble(node) : node.phase !== state)) {
    return false;
  }
  const { name, addr, addresses, label } = node.desc;
  const text = `${name} ${addr} ${addresses.join(" ")} ${label} ${node.desc.brings?.role ?? ""}`;
  return words.every((word) => String(node.rank) === word || text.toLowerCase().includes(word));
}

function create(node) {
  const meter = make("meter", { min: 0, optimum: 0 });
  const button = make("button", { type: "button", class: "quiet", text: "Drain…" });
  button.addEventListener("click", () => drain(node.desc.name));
  const out = make("button", { type: "button", class: "quiet", text: "Quarantine…" });
  out.addEventListener("click", () => quarantine(node.desc.name));
  const row = make("tr", {},
    make("td", { class: "rank" }),
    make("td", { class: "name" }),
    make("td", { class: "address" }),
    make("td", {}, make("span", { class: "chip" })),
    make("td", { class: "why" }),
    make("td", {}, make("span", { class: "beat" }, meter, make("span"))),
    make("td", { class: "brings" }),
    make("td", { class: "act" }, button, out));
  return row;
}

/** What a node brings, and has told since, in a few words; empty: nothing. */
function brought(node) {
  const { role, slots, data } = node.desc.brings ?? {};
  const shown = (value) => (typeof value === "string" ? value : JSON.stringify(value));
  return [
    role || "",
    slots > 1 ? count(slots, "slot", "slots") : "",
    (node.step ?? -1) >= 0 ? `step ${node.step}` : "",
    node.state ? shown(node.state) : "",
    data ? shown(data) : "",
  ].filter(Boolean).join(" · ");
}

function update(row, node) {
  const [rank, name, address, , , , brings, act] = row.children;
  row.node = node;
  say(rank, node.rank >= 0 ? String(node.rank) : "–");
  say(name, node.desc.name);
  mark(name, "title", node.desc.label ? `${node.desc.name} (${node.desc.label})` : node.desc.name);
  const addresses = node.desc.addresses.length ? node.desc.addresses : [node.desc.addr || "–"];
  say(address, addresses[0]);
  mark(address, "title", addresses.join(", "));
  say(brings, brought(node));
  mark(brings, "title", brings.textContent);
  brings.hidden = byId("brings-head").hidden;
  const button = act.firstElementChild;
  button.disabled = run.closed !== null || node.drain_left !== null;
  mark(button, "aria-label", `Drain ${node.desc.name}`);
  mark(act.lastElementChild, "aria-label", `Quarantine ${node.desc.name}`);
}

/** Lets the ages in the table grow by the seconds since the server told them. */
export function tickMembers(elapsed) {
  if (run === null) {
    return;
  }
  for (const row of byId("members").children) {
    const [, , , state, since, beat] = row.children;
    const { node } = row;
    const now = stateOf(node, elapsed);
    const age = node.heartbeat_age + elapsed;
    say(state.firstElementChild, now.text);
    mark(state.firstElementChild, "data-kind", now.kind);
    say(since, seconds(node.since + elapsed));
    const box = beat.firstElementChild;
    const [meter, text] = box.children;
    meter.max = expiry();
    meter.low = 1.5 * interval();
    meter.high = 0.8 * expiry();
    meter.value = age;
    mark(meter, "aria-label", `${seconds(age)} of ${seconds(expiry())} until it counts as dead`);
    mark(box, "data-kind", node.heartbeat_age > 0.8 * expiry() ? "bad" : late(node) ? "warn" : "");
    say(text, `${seconds(age)} ago`);
  }
}

export function drawMembers(status) {
  if (run?.run_id !== status.run_id) {
    most = STEP;
  }
  run = status;
  const words = byId("members-filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  const state = byId("members-state").value;
  byId("brings-head").hidden = !run.nodes.some(brought);
  const found = run.nodes.filter((node) => matches(node, words, state));
  lay(byId("members"), found.slice(0, most), (node) => node.desc.name, create, update);
  const all = run.nodes.length;
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
    }
  };
  byId("members-filter").addEventListener("input", again);
  byId("members-state").addEventListener("change", again);
  byId("members-more-button").addEventListener("click", () => {
    most += STEP;
    again();
  });
}
