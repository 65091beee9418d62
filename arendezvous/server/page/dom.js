// Making and changing elements. Names, addresses and reasons come from strangers: they are text, never markup.

export function byId(id) {
  return document.getElementById(id);
}

/** Makes an element; `attributes` are set as attributes, `text` as its text. */
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "text") {
      element.textContent = value;
    } else if (value !== null && value !== undefined && value !== false) {
      element.setAttribute(name, value === true ? "" : String(value));
    }
  }
  element.append(...children);
  return element;
}

/** Sets the text of an element, if it is another one: what does not change disturbs neither selection nor reader. */
export function say(element, text) {
  if (element.textContent !== text) {
    element.textContent = text;
  }
}

export function mark(element, name, value) {
  if (element.getAttribute(name) !== value) {
    element.setAttribute(name, value);
  }
}

/**
 * Brings the children of `parent` in line with `items`, keeping the elements that are there already.
 *
 * `key(item)` tells items apart, `create(item)` makes an element, `update(element, item)` fills it.
 */
export function lay(parent, items, key, create, update) {
  const known = (parent.laid ??= new Map());
  const wanted = new Map(items.map((item) => [key(item), item]));
  for (const [name, element] of known) {
    if (!wanted.has(name)) {
      element.remove();
      known.delete(name);
    }
  }
  let place = parent.firstElementChild;
  for (const [name, item] of wanted) {
    let element = known.get(name);
    if (element === undefined) {
      element = create(item);
      known.set(name, element);
    }
    update(element, item);
    if (element === place) {
      place = place.nextElementSibling;
    } else {
      parent.insertBefore(element, place);
    }
  }
}

/** A number of seconds for people: 0.4 s, 12 s, 3 min, 5 h, 2 d. */
export function seconds(value) {
  const whole = Math.max(0, value);
  if (whole < 9.95) {
    return `${whole.toFixed(1)} s`;
  }
  if (whole < 120) {
    return `${Math.round(whole)} s`;
  }
  if (whole < 7200) {
    return `${Math.round(whole / 60)} min`;
  }
  return whole < 172_800 ? `${Math.round(whole / 3600)} h` : `${Math.round(whole / 86_400)} d`;
}

const TIME = new Intl.DateTimeFormat("en-GB", { timeStyle: "medium" });
const DAY = new Intl.DateTimeFormat("en-GB", { dateStyle: "medium", timeStyle: "medium" });

/** The time on the clock of this machine, so many seconds ago: 03:12:45, with the day if it was another one. */
export function clock(age) {
  const then = new Date(Date.now() - 1000 * age);
  return (then.toDateString() === new Date().toDateString() ? TIME : DAY).format(then);
}

export function count(number, one, many) {
  return `${number.toLocaleString("en")} ${number === 1 ? one : many}`;
}
