// The live page: the list of runs, the run that is chosen, and whether the server is still there.

import { follow } from "./api.js";
import { askToken, setUpDialogs } from "./dialogs.js";
import { byId, mark, say, seconds } from "./dom.js";
import { refreshRun, setUpRun, showRun, tick } from "./run.js";
import { chooseRun, drawRuns, dropRun, firstRun, setRun, setRuns } from "./runs.js";

const THEMES = { auto: "◐ Auto", light: "☀ Light", dark: "☾ Dark" };
const NAMES = { auto: "as the system has them", light: "light", dark: "dark" };

let stop = () => {};
let retryAt = 0;
let current = null; // the run that is shown

function link(state, text) {
  mark(byId("link"), "data-state", state);
  say(byId("link-text"), text);
  say(byId("link-wait"), "");
}

function chosen() {
  const match = /^#\/runs\/(.+)$/.exec(location.hash);
  try {
    return match ? decodeURIComponent(match[1]) : null;
  } catch {
    return null;
  }
}

function route() {
  const runId = chosen() ?? firstRun();
  if (runId === null) {
    document.title = "arendezvous";
  }
  current = runId;
  chooseRun(runId);
  showRun(runId, (problem) => askToken(problem.message));
}

function showFirst() {
  if (current === null && firstRun() !== null) {
    route();
  }
}

async function denied(problem) {
  link("lost", problem.message);
  if (problem.status === 401) {
    await askToken(problem.message);
  }
}

function told(name, data) {
  if (name === "runs") {
    setRuns(data);
    link("live", data.only === null ? "live" : `live, for run ${data.only}: your token is good for no other`);
  } else if (name === "run") {
    setRun(data);
  } else if (name === "forgotten") {
    dropRun(data.run_id);
    if (data.run_id === current) {
      refreshRun(); // which finds that there is no such run
    }
  }
  showFirst();
}

function connect() {
  stop();
  stop = follow("/v1/events", {
    open: () => {
      retryAt = 0;
      refreshRun();
    },
    lost: (milliseconds) => {
      retryAt = performance.now() + milliseconds;
      tickLink();
    },
    denied,
    event: told,
  });
}

function tickLink() {
  if (retryAt) {
    const left = (retryAt - performance.now()) / 1000;
    link("lost", "connection lost, trying again");
    say(byId("link-wait"), left > 0.3 ? `in ${seconds(left)}` : ""); // of no use to those who listen
  }
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
setUpDialogs(() => {
  connect();
  route();
});
setUpRun();
byId("runs-filter").addEventListener("input", drawRuns);
window.addEventListener("hashchange", route);
document.addEventListener("visibilitychange", () => {
  if (!document.hidden) {
    refreshRun();
  }
});
setInterval(() => {
  tickLink();
  if (!document.hidden) {
    tick();
  }
}, 1000);
say(byId("empty-command"), `curl -X POST ${location.origin}/v1/runs/hello/members \\
  -d '{"node": {"name": "me"}, "settings": {"min_nodes": 1, "max_nodes": 1}}'`);
connect();
route();
