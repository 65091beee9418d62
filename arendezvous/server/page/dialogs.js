// The two dialogs: one asks before anything is changed, the other asks for the token.

import { Problem, keepToken, token } from "./api.js";
import { byId, say } from "./dom.js";

let act = null; // what the open question is about
let resolveToken = null;

/**
 * Asks before something is done: `question` has title, text and yes. With seconds, the text for it, it asks for
 * how long, 30 s or `limit` if it says so; with nodes, those of today, for how many nodes a round has.
 *
 * `question.act({ reason, seconds, nodes })` does it; what it throws is shown, and the dialog stays open.
 */
export function confirm(question) {
  act = question.act;
  say(byId("ask-title"), question.title);
  say(byId("ask-text"), question.text);
  say(byId("ask-yes"), question.yes);
  say(byId("ask-wrong"), "");
  byId("ask-reason").value = "";
  byId("ask-reason").parentElement.hidden = question.reason === false;
  byId("ask-seconds-field").hidden = !question.seconds;
  byId("ask-nodes-field").hidden = question.nodes === undefined;
  byId("ask-nodes").value = question.nodes ?? "";
  say(byId("ask-seconds-text"), question.seconds || "");
  byId("ask-seconds").value = question.limit ?? 30;
  byId("ask").showModal();
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
  yes.disabled = true;
  try {
    const limit = byId("ask-seconds").valueAsNumber;
    const answer = { reason: byId("ask-reason").value, seconds: Number.isFinite(limit) ? limit : 0 };
    await withToken(() => act({ ...answer, nodes: byId("ask-nodes").value }));
    byId("ask").close();
  } catch (error) {
    say(byId("ask-wrong"), error.message);
  } finally {
    yes.disabled = false;
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
