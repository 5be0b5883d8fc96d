/** Formulas. KaTeX and its style sheet are loaded when the first formula appears. */

import { loadStyle } from "../shell/style.js";

const VENDOR = "../vendor/katex/";
const MAX_KEPT = 200;
const MAX_SOURCE = 3000; // characters; a longer formula is shown as its source
const MAX_ELEMENTS = 8000; // that a formula may become; more would take too long to lay out
const MAX_DEPTH = 250; // of these elements in one another; some hundreds more, and the browser's layout overflows
const MAX_EXPANSIONS = 500;
const AT_ONCE = 2000; // characters of formulas that are made in one task of the page
const LEAST = 30; // characters that even the shortest formula counts for

// A formula may define macros, of which a few lines can become millions of signs.
const DEFINES = /\\(?:[egx]?def|let|futurelet|(?:re)?newcommand|providecommand)(?![a-zA-Z])/;
const MULTIPLIES = /#|\\(?:[ex]def|expandafter|futurelet)(?![a-zA-Z])/; // what they are given, or one another
const HARMLESS = /\\(?:def|renewcommand)\s*\{?\s*\\arraystretch\s*\}?\s*\{[\d.]+\}/g; // the one that is common
const MAX_DEFINED = 4000; // signs that the macros of a formula may become

/** @type {any} */
let katex = null;
/** @type {Promise<void> | null} */
let loading = null;
/** Formulas that were made before, as a paragraph is made anew while it grows. @type {Map<string, HTMLElement>} */
const made = new Map();
/** Formulas that are made in the page's next tasks. @type {HTMLElement[]} */
let waiting = [];
let room = AT_ONCE; // what is left of it in this task

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
  else load().then(() => katex !== null && showSome(all));
}

/** Shows the first of them, and the rest in the page's next tasks. @param {HTMLElement[]} formulas */
function showSome(formulas) {
  if (room === AT_ONCE) setTimeout(nextTask);
  for (const [at, element] of formulas.entries()) {
    if (room <= 0) {
      waiting = waiting.concat(formulas.slice(at));
      return;
    }
    room -= Math.max(LEAST, element.dataset.formula?.length ?? 0);
    show(element);
  }
}

function nextTask() {
  const formulas = waiting.filter((element) => element.isConnected); // others were made anew meanwhile
  waiting = [];
  room = AT_ONCE;
  if (formulas.length > 0) showSome(formulas);
}

/** @param {HTMLElement} element */
function show(element) {
  const source = element.dataset.formula;
  if (source === undefined) return;
  const key = (element.dataset.display === undefined ? "i" : "d") + source;
  let formula = made.get(key);
  if (formula === undefined) {
    formula = render(source, element.dataset.display !== undefined);
    if (made.size >= MAX_KEPT) made.clear();
    made.set(key, formula);
  }
  delete element.dataset.formula;
  element.replaceChildren(...[...formula.childNodes].map((node) => node.cloneNode(true)));
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
  if (element.firstChild === null || isTooMuch(element)) element.textContent = source;
  return element;
}

/** How often a formula's macros may be replaced by what they stand for. @param {string} source */
function maxExpand(source) {
  if (!DEFINES.test(source.replace(HARMLESS, ""))) return MAX_EXPANSIONS;
  return MULTIPLIES.test(source) ? 0 : Math.floor(MAX_DEFINED / source.length);
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
