// Asking the server: requests with the token of this tab, and streams of server-sent events.

import { onRetry } from "./link.js";

const TOKEN = "arendezvous-token";
const SILENCE = 40_000; // the server says something at least every 15 s
const PATIENCE = 20_000; // milliseconds for an answer
const FIRST_PAUSE = 500;
const LONGEST_PAUSE = 8_000;

/** An answer that is an error, as problem details; `status` 0: there was no answer. */
export class Problem extends Error {
  constructor(status, detail) {
    super(detail);
    this.status = status;
  }
}

export function token() {
  return sessionStorage.getItem(TOKEN) ?? "";
}

export function keepToken(value) {
  if (value) {
    sessionStorage.setItem(TOKEN, value);
  } else {
    sessionStorage.removeItem(TOKEN);
  }
}

function headers(more) {
  return token() ? { Authorization: `Bearer ${token()}`, ...more } : more;
}

async function problemOf(answer) {
  try {
    const body = await answer.json();
    return new Problem(answer.status, String(body.detail ?? answer.statusText));
  } catch {
    return new Problem(answer.status, answer.statusText || `status ${answer.status}`);
  }
}

/** Sends a request and returns the JSON of the answer; throws a `Problem`. */
export async function ask(method, path, body) {
  const options = { method, headers: headers({ Accept: "application/json" }), cache: "no-store" };
  if (body !== undefined) {
    options.body = JSON.stringify(body);
    options.headers["Content-Type"] = "application/json";
  }
  let answer;
  try {
    answer = await fetch(path, { ...options, signal: AbortSignal.timeout(PATIENCE) });
  } catch {
    throw new Problem(0, "the server does not answer");
  }
  if (!answer.ok) {
    throw await problemOf(answer);
  }
  return answer.json();
}

export function runPath(runId, ...rest) {
  return ["/v1/runs", runId, ...rest].map((part, at) => (at ? encodeURIComponent(part) : part)).join("/");
}

/**
 * Follows a stream of server-sent events until it is stopped. `EventSource` would do, but it sends no token.
 *
 * `on.event(name, data)` gets each event; `on.open()` tells that the stream stands, `on.lost(ms)` that it broke
 * and is tried again after so many milliseconds, `on.denied(problem)` that the server refuses, which ends it.
 * Returns how to stop it.
 */
export function follow(path, on) {
  const stopped = new AbortController();
  const pause = { end: null };
  const wake = () => pause.end?.();
  let attempt = null;
  let hurries = false; // whether somebody does not want to wait
  const forget = onRetry(() => {
    hurries = true;
    attempt.abort(); // it may hang
    wake();
  });
  window.addEventListener("online", wake);

  async function run() {
    let tries = 0;
    let last = "";
    while (!stopped.signal.aborted) {
      attempt = new AbortController();
      hurries = false;
      try {
        for await (const event of events(path, last, attempt, () => {
          tries = 0;
          on.open();
        })) {
          last = event.id || last;
          on.event(event.name, JSON.parse(event.data));
        }
      } catch (error) {
        if (error instanceof Problem && error.status >= 400 && error.status < 500 && error.status !== 429) {
          on.denied(error);
          return;
        }
      }
      if (stopped.signal.aborted) {
        return;
      }
      if (hurries) {
        continue;
      }
      const most = Math.min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** tries++);
      const milliseconds = most / 2 + Math.random() * (most / 2);
      on.lost(milliseconds);
      await new Promise((resolve) => {
        pause.end = resolve;
        setTimeout(resolve, milliseconds);
      });
    }
  }

  run();
  return () => {
    stopped.abort();
    attempt.abort();
    wake();
    forget();
    window.removeEventListener("online", wake);
  };
}

async function* events(path, last, attempt, opened) {
  const give = () => attempt.abort();
  let silence = setTimeout(give, SILENCE);
  try {
    const more = last ? { "Last-Event-ID": last } : {};
    const answer = await fetch(path, {
      headers: headers({ Accept: "text/event-stream", ...more }),
      cache: "no-store",
      signal: attempt.signal,
    });
    if (!answer.ok) {
      throw await problemOf(answer);
    }
    opened();
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      const { done, value } = await reader.read();
      if (done) {
        return;
      }
      clearTimeout(silence);
      silence = setTimeout(give, SILENCE);
      const blocks = (rest + value).split("\n\n");
      rest = blocks.pop();
      for (const block of blocks) {
        const event = parse(block);
        if (event.data) {
          yield event;
        }
      }
    }
  } finally {
    clearTimeout(silence);
    attempt.abort();
  }
}

function parse(block) {
  const event = { name: "message", id: "", data: "" };
  for (const line of block.split("\n")) {
    const colon = line.indexOf(":");
    const field = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
    if (field === "event") {
      event.name = value;
    } else if (field === "id") {
      event.id = value;
    } else if (field === "data") {
      event.data += event.data ? `\n${value}` : value;
    }
  }
  return event;
}
