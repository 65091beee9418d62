// What happened, told as people would: like things together, and what followed from something below it.

const TOGETHER = 2; // seconds between like things that are told in one line
const APART = 30; // seconds after which another thing that goes wrong is another story
const CAME = {
  gathering: ["joins the round", "join the round"],
  member: ["is back, with its rank", "are back, with their ranks"],
  waiting: ["waits for the next round", "wait for the next round"],
  spare: ["is a spare", "are spares"],
};
const AGAIN = ["joins again", "join again"];
const WENT = {
  "left": "left",
  "finished": "finished their work",
  "failed": "failed",
  "cancelled": "left",
  "drained": "were drained",
  "connection lost": "are lost",
  "no heartbeat": "are lost",
  "reopened": "were dropped, as the run was opened anew",
  "superseded": "were dropped, as a round was formed without them",
  "quarantined": "were quarantined",
};
const KINDS = {
  RoundCompleted: "good",
  RunReopened: "good",
  RunReleased: "good",
  NodePardoned: "good",
  RoundOpened: "accent",
  RunResized: "accent",
  NodeDraining: "warn",
  RunClosed: "warn",
  NodeStalled: "warn",
  RunHeld: "warn",
  NodeQuarantined: "bad",
};
const LOSSES = new Set(["connection lost", "no heartbeat", "failed"]);
const CALM = new Set(["finished", "reopened"]);
/** How a departure looks: what is lost is bad, what is done is calm. */
export function kindOfCause(cause) {
  return LOSSES.has(cause) ? "bad" : CALM.has(cause) ? "" : "warn";
}

/** How an event looks. */
export function kindOf(event) {
  return event.type === "NodeDeparted" ? kindOfCause(event.data.cause) : (KINDS[event.type] ?? "");
}

/** What the events of one line have in common; null: this one has its own. `known` are the nodes that were here. */
function keyOf(event, known) {
  const { node, phase, cause } = event.data;
  if (event.type === "NodeJoined" || event.type === "NodePromoted") {
    const again = event.type === "NodeJoined" && phase !== "member" && known.has(node);
    known.add(node);
    return again ? "again" : `came ${phase}`;
  }
  if (event.type === "NodeDeparted") {
    known.delete(node);
    return `went ${cause}`;
  }
  return null;
}

function textOf(line) {
  const { key, events } = line;
  const last = events.at(-1);
  if (events.length === 1 && key !== "again") {
    return last.text;
  }
  if (key.startsWith("went ")) {
    return `${events.length} nodes ${WENT[key.slice(5)] ?? key.slice(5)}`;
  }
  const [one, many] = key === "again" ? AGAIN : (CAME[key.slice(5)] ?? [key.slice(5), key.slice(5)]);
  return events.length === 1 ? `${last.data.node} ${one}` : `${events.length} nodes ${many}`;
}

/** Puts like events together: lines of { number, at, seen, took, text, kind, names }. */
function linesOf(events, known) {
  const lines = [];
  const open = new Map(); // the latest line of each kind
  for (const event of events) {
    const key = keyOf(event, known);
    const line = key === null ? undefined : open.get(key);
    if (line !== undefined && event.at - line.events.at(-1).at <= TOGETHER) {
      line.events.push(event);
    } else {
      lines.push({ key, events: [event] });
      open.set(key, lines.at(-1));
    }
  }
  return lines.map((line) => {
    const [first, last] = [line.events[0], line.events.at(-1)];
    const names = line.events.length > 1 ? line.events.map((event) => event.data.node) : [];
    const { number, at, seen } = first;
    return { number, at, seen, took: last.at - at, text: textOf(line), kind: kindOf(last), names: [...new Set(names)] };
  });
}

/** Whether something begins by this that is over when the next round is complete. */
function begins(event) {
  const { phase, cause } = event.data;
  if (event.type === "NodeDeparted") {
    return phase === "member" && cause !== "finished";
  }
  return event.type === "NodeDraining" || event.type === "RunResized"
    || event.type === "NodeJoined" && (phase === "waiting" || phase === "gathering");
}

/** What goes without saying is left out: that members are told, and that those who came are in the round. */
function isTold(event) {
  return event.type !== "WaitingChanged" && !(event.type === "NodePromoted" && event.data.phase === "gathering");
}

/**
 * Tells events as episodes, both the oldest first: what began one, and what followed until a round was complete.
 * What neither begins one nor follows from anything stands alone. Each is a list of lines.
 */
export function episodesOf(events) {
  const episodes = [];
  const known = new Set();
  let open = null; // { events, follows: whether what comes next follows from it }
  const close = () => {
    if (open !== null) {
      episodes.push(linesOf(open.events, known));
      open = null;
    }
  };
  for (const event of events.filter(isTold)) {
    const alone = event.type === "gap" || event.type === "RunReopened";
    const isClosing = event.type === "RunClosed";
    const since = open === null ? 0 : event.at - open.events.at(-1).at;
    const isCause = begins(event);
    const isOther = open?.follows ? isCause && event.type !== "NodeJoined" && since > APART
      : isCause || since > TOGETHER;
    if (alone || isClosing || isOther) {
      close();
    }
    open ??= { events: [], follows: isClosing || !alone && isCause };
    open.events.push(event);
    if (event.type === "RoundCompleted") {
      close();
    }
  }
  close();
  return episodes;
}
