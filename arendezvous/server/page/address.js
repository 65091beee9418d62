// What the address says after its #: the run, and what the lists are filtered by. It can be kept and sent.

const FORM = /^#\/(?:runs\/([^?]+))?(?:\?(.*))?$/;

/** What the address asks for: `run`, null without one, and `filters` (URLSearchParams). */
export function asked() {
  const [, run, query] = FORM.exec(location.hash) ?? [];
  let name = null;
  try {
    name = run === undefined ? null : decodeURIComponent(run);
  } catch {
    // It is no address of a run.
  }
  return { run: name, filters: new URLSearchParams(query ?? "") };
}

/** Whether the address is one of ours; others, such as that of the skip link, ask for nothing. */
export function isOurs() {
  return location.hash === "" || FORM.test(location.hash);
}

function addressOf(run, filters) {
  const query = filters.toString();
  return `#/${run === null ? "" : `runs/${encodeURIComponent(run)}`}${query ? `?${query}` : ""}`;
}

/** The address of a run, with what the list of runs is filtered by. */
export function linkTo(run) {
  const wanted = asked().filters.get("runs");
  return addressOf(run, new URLSearchParams(wanted ? { runs: wanted } : {}));
}

let shown = null; // the run that is shown, whether or not it was asked for

/** Notes which run is shown: who keeps the address of a filter means this one. */
export function shows(run) {
  shown = run;
}

/** Has an input show what the address says, and the other way round; `changed()` is called with each change. */
export function keepFilter(input, name, changed) {
  input.value = asked().filters.get(name) ?? "";
  const note = () => {
    const { run, filters } = asked();
    if (input.value) {
      filters.set(name, input.value);
    } else {
      filters.delete(name);
    }
    history.replaceState(null, "", addressOf(run ?? shown, filters));
    changed();
  };
  input.addEventListener("input", note);
  window.addEventListener("hashchange", () => {
    const value = asked().filters.get(name) ?? "";
    if (isOurs() && input.value !== value) {
      input.value = value;
      changed();
    }
  });
}
