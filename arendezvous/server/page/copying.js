// Copying names, addresses and commands: whatever has data-copy can be clicked.

import { byId, make, mark, say } from "./dom.js";

const SHOWN = 1500; // milliseconds for which a button says that it is done

/** A button that copies `text`, which `what` names. */
export function copyButton(text, what) {
  const button = make("button", { type: "button", class: "copy" });
  offer(button, text, what);
  return button;
}

/** Changes what a button copies. */
export function offer(button, text, what) {
  mark(button, "data-copy", text);
  mark(button, "aria-label", `Copy ${what}`);
  mark(button, "title", `Copy ${what}`);
}

/** A curl command that asks for a path of this server; with a token it names the variable that has it. */
export function curl(path, withToken) {
  const header = withToken ? " -H \"Authorization: Bearer $TOKEN\"" : "";
  return `curl -s${header} '${location.origin}${path.replaceAll("'", "%27")}'`;
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return;
  } catch {
    // Over plain HTTP there is no clipboard, and elsewhere it may be forbidden: then it is done as of old.
  }
  const area = make("textarea", { class: "visually-hidden", readonly: true, "aria-hidden": true });
  area.value = text;
  document.body.append(area);
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  if (!done) {
    throw new Error("the browser does not allow it");
  }
}

async function copied(event) {
  const button = event.target.closest("[data-copy]");
  if (button === null) {
    return;
  }
  let done = "yes";
  try {
    await copy(button.dataset.copy);
  } catch {
    done = "no";
  }
  mark(button, "data-done", done);
  say(byId("said"), done === "yes" ? "Copied." : "The browser does not allow copying.");
  setTimeout(() => button.removeAttribute("data-done"), SHOWN);
}

export function setUpCopying() {
  document.addEventListener("click", copied);
}
