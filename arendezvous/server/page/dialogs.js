// The two dialogs: one asks before anything is changed, the other asks for the token.

import { Problem, keepToken, token } from "./api.js";
import { byId, mark, say } from "./dom.js";
import { drawActs } from "./link.js";

const NAME = "arendezvous-name";

let act = null; // what the open question is about
let resolveToken = null;

/**
 * Asks before something is done: `question` has title, text and yes. With seconds, the text for it, it asks for
 * how long, 30 s or `limit` if it says so; with nodes, those of today, for how many nodes a round has.
 *
 * `question.act({ by, reason, seconds, nodes })` does it; what it throws is shown, and the dialog stays open.
 * Who decides is asked for once, and remembered by this browser.
 */
export function confirm(question) {
  act = question.act;
  say(byId("ask-title"), question.title);
  say(byId("ask-text"), question.text);
  say(byId("ask-yes"), question.yes);
  say(byId("ask-wrong"), "");
  byId("ask-reason").value = "";
  byId("ask-by").value ||= remembered();
  byId("ask-reason").parentElement.hidden = question.reason === false;
  byId("ask-seconds-field").hidden = !question.seconds;
  byId("ask-nodes-field").hidden = question.nodes === undefined;
  byId("ask-nodes").value = question.nodes ?? "";
  say(byId("ask-seconds-text"), question.seconds || "");
  byId("ask-seconds").value = question.limit ?? 30;
  byId("ask").showModal();
  const first = [byId("ask-by"), byId("ask-nodes"), byId("ask-reason"), byId("ask-yes")]
    .find((one) => one.checkVisibility() && (one !== byId("ask-by") || !one.value));
  first.focus();
}

function remembered() {
  try {
    return localStorage.getItem(NAME) ?? "";
  } catch {
    return ""; // storage may be forbidden: then it is asked for in each tab
  }
}

function remember(name) {
  try {
    localStorage.setItem(NAME, name);
  } catch {
    // Then it lasts as long as the page does.
  }
}

/** Asks for the token; resolves to whether one was given. */
export function askToken(why = "") {
  say(byId("token-wrong"), why);
  byId("token-input").value = "";
  byId("token-forget").hidden = !token();
  if (!byId("token").open) {
    byId("token").showModal();
  }
  return new Promise((resolve) => {
    resolveToken?.(false);
    resolveToken = resolve;
  });
}

/** Does something that may need a token: if the server asks for one, so does the page, and tries again. */
export async function withToken(action) {
  for (;;) {
    try {
      return await action();
    } catch (error) {
      if (!(error instanceof Problem) || error.status !== 401 || !(await askToken(error.message))) {
        throw error;
      }
    }
  }
}

async function answerQuestion(event) {
  event.preventDefault();
  const yes = byId("ask-yes");
  mark(yes, "data-act", "no");
  drawActs();
  try {
    const limit = byId("ask-seconds").valueAsNumber;
    const by = byId("ask-by").value.trim();
    const answer = { by, reason: byId("ask-reason").value, seconds: Number.isFinite(limit) ? limit : 0 };
    remember(by);
    await withToken(() => act({ ...answer, nodes: byId("ask-nodes").value }));
    byId("ask").close();
  } catch (error) {
    say(byId("ask-wrong"), error.message);
  } finally {
    mark(yes, "data-act", "yes");
    drawActs();
  }
}

function closeToken(given) {
  const resolve = resolveToken;
  resolveToken = null;
  byId("token").close();
  resolve?.(given);
}

export function setUpDialogs(tokenChanged) {
  byId("ask-form").addEventListener("submit", answerQuestion);
  byId("ask-no").addEventListener("click", () => byId("ask").close());
  byId("token-form").addEventListener("submit", (event) => {
    event.preventDefault();
    const value = byId("token-input").value.trim();
    byId("token-input").value = "";
    keepToken(value);
    closeToken(value !== "");
    tokenChanged();
  });
  byId("token-forget").addEventListener("click", () => {
    keepToken("");
    closeToken(false);
    tokenChanged();
  });
  byId("token-no").addEventListener("click", () => closeToken(false));
  byId("token").addEventListener("cancel", () => closeToken(false));
  byId("token-button").addEventListener("click", () => askToken());
}
