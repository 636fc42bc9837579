// How things are put on the page. Belongs here: making elements, how an operation looks, how times and shares are
// written. What is asked of the service and what an answer means do not.

const COLOURS = 10; // classes colour-0 to colour-9 of page.css
const PATTERNS = 7; // pattern-0 to pattern-6; with the colours 70 looks before one comes again

const order = new Map(); // operation -> number, so that it keeps its look from video to video

/** The element of an id. */
export const at = (id) => document.getElementById(id);
export const show = (id) => (at(id).hidden = false);
export const hide = (id) => (at(id).hidden = true);

/** A new element with properties (or attributes, where it has no such property) and children. */
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in element) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

/** The classes of an operation's colour and pattern. */
export function look(operation) {
  if (!order.has(operation)) order.set(operation, order.size);
  const number = order.get(operation);
  return `colour-${number % COLOURS} pattern-${number % PATTERNS}`;
}

/** A name as two or three letters, for where there is no room: `BS` for Box Setup, `Ta` for Tape. */
export function initials(name) {
  const words = name.match(/[\p{L}\p{N}]+/gu) ?? [name];
  return words.length > 1 ? words.map((word) => word[0].toUpperCase()).join("").slice(0, 3) : words[0].slice(0, 2);
}

/** A small square in an operation's look, followed by its name. */
export function named(operation) {
  const square = make("span", { className: `swatch ${look(operation)}`, "aria-hidden": "true" });
  return make("span", { className: "named" }, square, operation);
}

/** Seconds as a clock shows them: `1:02.5`, with hours `1:00:02.5`, without tenths `1:02`. */
export function clock(seconds, tenths = true) {
  const units = tenths ? Math.round(seconds * 10) : Math.round(seconds) * 10;
  const whole = Math.floor(units / 10);
  const [h, m, s] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
  const padded = (number) => String(number).padStart(2, "0");
  const minutes = h ? `${h}:${padded(m)}` : `${m}`;
  return `${minutes}:${padded(s)}${tenths ? `.${units % 10}` : ""}`;
}

/** A confidence as a percentage and a plain word. */
export function confidenceWords(share) {
  const words = [[0.9, "sure"], [0.7, "fairly sure"], [0.5, "not sure"], [0, "mostly a guess"]];
  return `${Math.round(100 * share)} %, ${words.find(([least]) => share >= least)[1]}`;
}

/** `1 alert`, `2 alerts`; `many` where an s is not enough. */
export const count = (number, word, many = `${word}s`) => `${number} ${number === 1 ? word : many}`;
