// The live page: the list of runs, the run that is chosen, and whether the server is still there.

import { asked, isOurs, shows } from "./address.js";
import { follow, token } from "./api.js";
import { curl, offer, setUpCopying } from "./copying.js";
import { askToken, setUpDialogs } from "./dialogs.js";
import { byId, mark, say } from "./dom.js";
import { allowed, broken, drawLink, isLive, opened, refusedBy, setUpLink } from "./link.js";
import { refreshRun, setUpRun, showRun, tick } from "./run.js";
import { chooseRun, dropRun, neediest, setRun, setRuns, setUpRuns, tickRuns } from "./runs.js";

const STREAM = "runs";
const THEMES = { auto: "◐ Auto", light: "☀ Light", dark: "☾ Dark" };
const NAMES = { auto: "as the system has them", light: "light", dark: "dark" };

let stop = () => {};
let current = null; // the run that is shown

function route() {
  if (!isOurs()) {
    return;
  }
  const runId = asked().run ?? current ?? neediest();
  if (runId === null) {
    document.title = "arendezvous";
  }
  if (runId !== current || runId === null) {
    showRunsList(false);
  }
  current = runId;
  shows(runId);
  chooseRun(runId);
  showRun(runId, (problem) => askToken(problem.message));
}

async function denied(problem) {
  refusedBy(problem);
  if (problem.status === 401) {
    await askToken(problem.message);
  }
}

function told(name, data) {
  if (name === "runs") {
    setRuns(data);
    allowed(data);
    say(byId("version"), data.version && `arendezvous ${data.version}`);
  } else if (name === "run") {
    setRun(data);
  } else if (name === "forgotten") {
    dropRun(data.run_id);
    if (data.run_id === current) {
      refreshRun(); // which finds that there is no such run
    }
  }
  if (current === null && neediest() !== null) {
    route();
  }
}

function connect() {
  stop();
  stop = follow("/v1/events", {
    open: () => {
      opened(STREAM);
      refreshRun();
    },
    lost: (milliseconds) => broken(STREAM, milliseconds),
    denied,
    event: told,
  });
  const withToken = token() !== "";
  offer(byId("copy-metrics"), curl("/metrics", withToken), "the curl command for the metrics");
  byId("copy-metrics").hidden = !withToken;
  byId("metrics-link").hidden = withToken; // a browser that follows a link sends no token
}

/** Shows the list of runs where there is no room for it beside the run; null: shows it if it is hidden. */
function showRunsList(open) {
  const button = byId("runs-button");
  const now = open ?? button.getAttribute("aria-expanded") !== "true";
  mark(button, "aria-expanded", String(now));
  mark(byId("side"), "data-open", now ? "yes" : "no");
}

function setUpTheme() {
  const button = byId("theme-button");
  const show = () => {
    const theme = document.documentElement.dataset.theme ?? "auto";
    say(button, THEMES[theme]);
    mark(button, "aria-label", `Colours: ${NAMES[theme]}`);
  };
  button.addEventListener("click", () => {
    const order = Object.keys(THEMES);
    const next = order[(order.indexOf(document.documentElement.dataset.theme ?? "auto") + 1) % order.length];
    if (next === "auto") {
      delete document.documentElement.dataset.theme;
    } else {
      document.documentElement.dataset.theme = next;
    }
    try {
      localStorage.setItem("arendezvous-theme", next);
    } catch {
      // Then it lasts as long as the page does.
    }
    show();
  });
  show();
}

setUpTheme();
setUpCopying();
setUpLink();
setUpDialogs(() => {
  connect();
  route();
});
setUpRun();
setUpRuns();
byId("runs-button").addEventListener("click", () => showRunsList(null));
window.addEventListener("hashchange", route);
document.addEventListener("visibilitychange", () => {
  if (!document.hidden) {
    refreshRun();
  }
});
setInterval(() => {
  drawLink();
  if (!document.hidden) {
    tick();
    if (isLive()) {
      tickRuns();
    }
  }
}, 1000);
say(byId("empty-command"), `curl -X POST ${location.origin}/v1/runs/hello/members \\
  -d '{"node": {"name": "me"}, "settings": {"min_nodes": 1, "max_nodes": 1}}'`);
connect();
route();
