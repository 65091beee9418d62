// What a run looks like in five figures, and who is not in it: gone, or kept out.

import { byId, lay, make, mark, say, clock, seconds } from "./dom.js";
import { kindOfCause } from "./episodes.js";
import { stateOf } from "./runs.js";
import { askToPardon } from "./steering.js";

const GONE = 50;

function wantedOf(status) {
  const sizes = status.resized.find((one) => !one.role) ?? status.settings;
  if (!sizes) {
    return { least: 0, words: "" };
  }
  const least = sizes.min_nodes;
  return { least, words: `${least === sizes.max_nodes ? least : `${least} to ${sizes.max_nodes}`} wanted` };
}

function stateFigure(status, elapsed) {
  const { closed, held, ended } = status;
  const state = stateOf(status);
  let note = status.deadline_left === null ? "" : `last call, ${seconds(status.deadline_left - elapsed)} left`;
  if (closed && !ended) {
    note = `by ${closed.by || "somebody"}, ${seconds(closed.age + elapsed)} ago${closed.reason ? `: ${closed.reason}` : ""}`;
  } else if (held) {
    const until = held.left === null ? "until released" : `${seconds(held.left - elapsed)} left`;
    note = `held by ${held.by || "somebody"}, ${until}`;
  }
  return { name: "State", figure: state.text, note, kind: held && !closed ? "warn" : state.kind };
}

function insideFigure(status) {
  const { least, words } = wantedOf(status);
  const inside = status.nodes.filter((node) => node.phase === (status.complete ? "member" : "gathering")).length;
  if (status.ended) {
    return { name: "Members", figure: status.world_size, note: "all have finished", kind: "" };
  }
  if (status.complete) {
    const gone = status.world_size - inside;
    const broken = status.nodes.filter((node) => node.grace_left !== null).length;
    const notes = [gone ? `${gone} gone` : "", broken ? `${broken} cut off` : ""].filter(Boolean);
    return { name: "Members", figure: `${inside} of ${status.world_size}`, note: notes.join(", ") || words,
      kind: notes.length && !status.closed ? "bad" : "" };
  }
  const missing = status.closed ? 0 : Math.max(0, least - inside);
  return { name: "Here", figure: inside, note: missing ? `${missing} more needed` : words, kind: missing ? "warn" : "" };
}

function figuresOf(status, elapsed) {
  const of = (phase) => status.nodes.filter((node) => node.phase === phase).length;
  const rounds = status.incarnation > 1 ? `opened ${status.incarnation} times`
    : status.digest && `digest ${status.digest.slice(0, 8)}`;
  return [
    stateFigure(status, elapsed),
    { name: "Round", figure: status.round, note: rounds, kind: "" },
    insideFigure(status),
    { name: "Waiting", figure: of("waiting"), note: "for the next round", kind: of("waiting") ? "warn" : "" },
    { name: "Spares", figure: of("spare"), note: "ready to step in", kind: "" },
  ];
}

/** Draws the figures as they are `elapsed` seconds after the server told of them. */
export function drawFigures(status, elapsed) {
  lay(byId("figures"), figuresOf(status, elapsed), (item) => item.name, () =>
    make("div", {}, make("dt"), make("dd"), make("dd", { class: "note" })),
  (box, item) => {
    const [name, figure, note] = box.children;
    mark(box, "data-kind", item.kind);
    say(name, item.name);
    say(figure, String(item.figure));
    say(note, item.note);
  });
}

function createItem(...more) {
  return make("li", {}, make("time"), make("span", { class: "mark", "aria-hidden": "true" }),
    make("span", { class: "text" }), ...more);
}

export function drawGone(status) {
  const gone = status.departed.slice(-GONE).reverse();
  byId("gone-none").hidden = gone.length > 0;
  lay(byId("gone"), gone, (one) => one.node, () => createItem(), (item, one) => {
    const [, dot, text] = item.children;
    item.age = one.age;
    mark(dot, "data-kind", kindOfCause(one.cause));
    say(text, `${one.node} (${one.cause}) in round ${one.round}${one.reason ? `: ${one.reason}` : ""}`);
  });
}

export function drawKeptOut(status) {
  byId("kept-out").hidden = status.quarantined.length === 0;
  lay(byId("quarantined"), status.quarantined, (one) => `${one.is_label} ${one.target}`, () => {
    const button = make("button", { type: "button", class: "quiet", text: "Pardon…", "data-act": "yes" });
    const item = createItem(button);
    button.addEventListener("click", () => askToPardon(item.one));
    return item;
  }, (item, one) => {
    const [, dot, text, button] = item.children;
    item.one = one;
    item.age = one.age;
    mark(dot, "data-kind", "bad");
    mark(button, "aria-label", `Pardon ${one.target}`);
    const until = one.left === null ? "until pardoned" : `${seconds(one.left)} left`;
    say(text, `${one.is_label ? "label " : ""}${one.target}, by ${one.by || "somebody"}, ${until}${one.reason ? `: ${one.reason}` : ""}`);
  });
}

/** Lets the ages of both lists grow by the seconds since the server told of them. */
export function tickLists(elapsed) {
  for (const item of [...byId("gone").children, ...byId("quarantined").children]) {
    const age = item.age + elapsed;
    say(item.firstElementChild, `${clock(age)} · ${seconds(age)} ago`);
  }
}
