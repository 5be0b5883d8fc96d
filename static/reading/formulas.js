/** Formulas. KaTeX and its style sheet are loaded when the first formula appears. */

import { loadStyle } from "../shell/style.js";

const VENDOR = "../vendor/katex/";
const MAX_KEPT = 200;

/** @type {any} */
let katex = null;
/** @type {Promise<void> | null} */
let loading = null;
/** Formulas that were made before, as a paragraph is made anew while it grows. @type {Map<string, HTMLElement>} */
const made = new Map();

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
  if (katex !== null) for (const element of all) show(element);
  else load().then(() => katex !== null && all.forEach(show));
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
    withStyleProperties(() =>
      katex.render(source, element, {
        displayMode,
        throwOnError: false,
        errorColor: "var(--danger)",
        trust: false,
        strict: false,
        maxSize: 20,
        maxExpand: 500,
      }),
    );
  } catch {
    element.textContent = source;
  }
  return element;
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
