/** Formulas. KaTeX and its style sheet are loaded when the first formula appears. */

import { loadStyle } from "../shell/style.js";

const VENDOR = "../vendor/katex/";
const MAX_KEPT = 60_000; // characters of formulas that are kept when they were made
const MAX_SOURCE = 3000; // characters; a longer formula is shown as its source
const MAX_ELEMENTS = 8000; // that a formula may become; more would take too long to lay out
const MAX_DEPTH = 250; // of these elements in one another; some hundreds more, and the browser's layout overflows
const MAX_EXPANSIONS = 500;
const AT_ONCE = 2000; // characters of formulas that are made in one task of the page
const COPIED_AT_ONCE = 10_000; // and of those that were made before
const LEAST = 30; // characters that even the shortest formula counts for

// A formula may define macros, of which a few lines can become millions of signs. (\tag defines one.)
const DEFINES = /\\(?:[egx]?def|let|futurelet|(?:re)?newcommand|providecommand|df@tag)(?![a-zA-Z])/;
const MULTIPLIES = /#|\\(?:[ex]def|expandafter|futurelet)(?![a-zA-Z])/; // what they are given, or one another
const HARMLESS = /\\(?:def|renewcommand)\s*\{?\s*\\arraystretch\s*\}?\s*\{[\d.]{1,5}\}/g; // the one that is common
const MAX_DEFINED = 6000; // characters that a formula with macros may become

const TOKEN = /\\(?:[a-zA-Z@]+|[^])|[^]/g;
const NAME = String.raw`(\\[a-zA-Z]+|\{\s*\\[a-zA-Z]+\s*\})`;
const COMMAND = String.raw`\\(?:(?:re)?newcommand|providecommand)\s*${NAME}\s*(?:\[\s*\d\s*\]\s*)?`;
const DEFINITION = new RegExp(String.raw`\s*(?:${COMMAND}|\\g?def\s*(\\[a-zA-Z]+)\s*(?:#\d)*)\{`, "y");
const UNCLEAR = /^(?:%|\\(?:expandafter|global|long|verb|.*@.*))$/; // what may change where a definition ends

/** @type {any} */
let katex = null;
/** @type {Promise<void> | null} */
let loading = null;
/** Formulas that were made before, as a paragraph is made anew while it grows. @type {Map<string, HTMLElement>} */
const made = new Map(); // the one that was not needed for longest is the first
let kept = 0; // characters of them
/** Formulas that are made in the page's next tasks. @type {HTMLElement[]} */
let waiting = [];
let room = AT_ONCE; // what is left of it in this task
let copyRoom = COPIED_AT_ONCE;
let begun = false; // whether formulas were made or copied in this task

function load() {
  loading ??= import(`${VENDOR}katex.min.js`).then(
    () => {
      katex = /** @type {any} */ (globalThis).katex;
    },
    () => {
      loading = null; // the source stays; the network may be back the next time
    },
  );
  loadStyle(new URL(`${VENDOR}katex.min.css`, import.meta.url));
  return loading;
}

/**
 * Shows the formulas below an element. KaTeX builds the elements itself, so no markup is read.
 * @param {Element} root
 */
export function showFormulas(root) {
  const found = /** @type {NodeListOf<HTMLElement>} */ (root.querySelectorAll("[data-formula]"));
  const all = root instanceof HTMLElement && root.dataset.formula !== undefined ? [root, ...found] : [...found];
  if (all.length === 0) return;
  if (katex !== null) showSome(all);
  else load().then(() => katex !== null && showSome(all.filter(isStillThere)));
}

/**
 * Shows as many as one task can, and the rest in the page's next tasks. What was made before does not wait for what
 * is new: a paragraph that is made anew would show their sources for a moment.
 * @param {HTMLElement[]} formulas
 */
function showSome(formulas) {
  if (!begun) setTimeout(nextTask);
  begun = true;
  for (const element of formulas) {
    const key = keyOf(element);
    const isKept = made.has(key);
    if ((isKept ? copyRoom : room) <= 0) {
      waiting.push(element);
      continue;
    }
    if (isKept) copyRoom -= cost(key);
    else room -= cost(key);
    show(element, key);
  }
}

function nextTask() {
  const formulas = waiting.filter(isStillThere);
  waiting = [];
  room = AT_ONCE;
  copyRoom = COPIED_AT_ONCE;
  begun = false;
  if (formulas.length > 0) showSome(formulas);
}

/**
 * Whether a formula was not made anew meanwhile, with what it stands in. Its answer may be out of the document now and
 * come into it later.
 * @param {HTMLElement} element
 */
const isStillThere = (element) => element.closest(".markdown") !== null;

/** @param {HTMLElement} element */
const keyOf = ({ dataset }) => (dataset.display === undefined ? "i" : "d") + dataset.formula;

/** @param {string} key */
const cost = (key) => Math.min(MAX_SOURCE, Math.max(LEAST, key.length));

/** @param {HTMLElement} element @param {string} key */
function show(element, key) {
  const source = element.dataset.formula;
  if (source === undefined) return;
  const formula = made.get(key) ?? render(source, element.dataset.display !== undefined);
  keep(key, formula);
  delete element.dataset.formula;
  element.replaceChildren(...[...formula.childNodes].map((node) => node.cloneNode(true)));
}

/** @param {string} key @param {HTMLElement} formula */
function keep(key, formula) {
  if (made.delete(key)) kept -= cost(key);
  made.set(key, formula);
  kept += cost(key);
  for (const oldest of made.keys()) {
    if (kept <= MAX_KEPT) break;
    made.delete(oldest);
    kept -= cost(oldest);
  }
}

/** @param {string} source @param {boolean} displayMode */
function render(source, displayMode) {
  const element = document.createElement("span");
  try {
    if (source.length <= MAX_SOURCE) {
      withStyleProperties(() =>
        katex.render(source, element, {
          displayMode,
          throwOnError: false,
          errorColor: "var(--danger)",
          trust: false,
          strict: false,
          maxSize: 20,
          maxExpand: maxExpand(source),
        }),
      );
    }
  } catch {
    element.replaceChildren();
  }
  const error = /** @type {HTMLElement | null} */ (element.querySelector(".katex-error"));
  const stopped = error?.title.includes("Too many expansions"); // which is no error of the formula
  if (element.firstChild === null || stopped || isTooMuch(element)) element.textContent = source;
  return element;
}

/** How often a formula's macros may be replaced by what they stand for. @param {string} source */
function maxExpand(source) {
  if (!DEFINES.test(source.replace(HARMLESS, ""))) return MAX_EXPANSIONS;
  const longest = longestBody(source) ?? (MULTIPLIES.test(source) ? Infinity : source.length);
  return Math.min(MAX_EXPANSIONS, Math.floor((MAX_DEFINED - source.length) / longest));
}

/**
 * By how much a formula can grow where one of its macros is replaced: by what the longest stands for, if nothing that
 * a macro is given stands there twice. That is sure only where all definitions stand in front of what uses them, as
 * macros could make others of them.
 * @param {string} source @returns {number | null} null if it is not sure
 */
function longestBody(source) {
  let longest = 1;
  let at = 0;
  for (;;) {
    DEFINITION.lastIndex = at;
    const head = DEFINITION.exec(source);
    if (head === null) return isClear(source.slice(at)) ? longest : null;
    const start = at + head[0].length;
    const end = endOfBody(source, start);
    const body = source.slice(start, end);
    /** @type {string[]} */
    const given = body.match(/#[^]?/g) ?? [];
    if (end < 0 || new Set(given).size < given.length || given.includes("##")) return null;
    if (!isClear(head[1] ?? head[2]) || !isClear(body)) return null;
    longest = Math.max(longest, body.length);
    at = end + 1;
  }
}

/** Where the brace is closed that was opened before the start, or -1. @param {string} source @param {number} start */
function endOfBody(source, start) {
  let open = 1;
  for (const { 0: token, index } of source.slice(start).matchAll(TOKEN)) {
    if (token === "{") open += 1;
    else if (token === "}") open -= 1;
    if (open === 0) return start + index;
  }
  return -1;
}

/** Whether nothing in a part of a formula can define macros. @param {string} part */
function isClear(part) {
  return !DEFINES.test(part) && !(part.match(TOKEN) ?? []).some((token) => UNCLEAR.test(token));
}

/** @param {HTMLElement} element */
function isTooMuch(element) {
  let count = 0;
  let depth = 0;
  for (let level = [...element.children]; level.length > 0; level = level.flatMap(({ children }) => [...children])) {
    count += level.length;
    depth += 1;
    if (count > MAX_ELEMENTS || depth > MAX_DEPTH) return true;
  }
  return false;
}

/**
 * KaTeX writes some styles as attributes, which the page's policy forbids. While it works they are set as
 * properties, which come to the same.
 * @param {() => void} work
 */
function withStyleProperties(work) {
  const setAttribute = Element.prototype.setAttribute;
  Element.prototype.setAttribute = function (name, value) {
    if (name === "style") /** @type {HTMLElement} */ (this).style.cssText = value;
    else setAttribute.call(this, name, value);
  };
  try {
    work();
  } finally {
    Element.prototype.setAttribute = setAttribute;
  }
}
