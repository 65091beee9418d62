// Before anything is drawn: the colours that were chosen here before, so that the page does not flash.
"use strict";
{
  let chosen = null;
  try {
    chosen = localStorage.getItem("arendezvous-theme");
  } catch {
    // Storage may be forbidden: then the system's colours it is.
  }
  if (chosen === "dark" || chosen === "light") {
    document.documentElement.dataset.theme = chosen;
  }
}
