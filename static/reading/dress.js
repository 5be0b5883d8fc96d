/** What an answer's elements get after they were made and cleaned: buttons, labels, formulas. */

import { el } from "../shell/dom.js";
import { t } from "../words/words.js";
import { CodeView } from "./code.js";
import { showFormulas } from "./formulas.js";

/** @param {HTMLElement} root @param {string} selector @returns {HTMLElement[]} */
function within(root, selector) {
  const found = /** @type {HTMLElement[]} */ ([...root.querySelectorAll(selector)]);
  return root.matches(selector) ? [root, ...found] : found;
}

/** @param {HTMLElement} root @returns {HTMLElement} the root, or what stands in its place now */
export function dress(root) {
  let result = root;
  for (const block of within(root, "pre")) {
    const code = /** @type {HTMLElement} */ (block.firstElementChild);
    const view = new CodeView(code.dataset.language ?? "");
    view.complete(code.textContent ?? "");
    if (block === root) result = view.element;
    else block.replaceWith(view.element);
  }
  for (const frame of within(root, "div.table")) dressTable(frame);
  for (const formula of within(root, ".formula[data-display]")) scrolls(formula, t("reading.formula"));
  for (const box of within(root, ".checkbox")) {
    box.setAttribute("role", "img");
    box.setAttribute("aria-label", t(box.classList.contains("done") ? "reading.done" : "reading.open"));
  }
  showFormulas(root);
  return result;
}

/** A table that is wider than the page scrolls, by keyboard too. @param {HTMLElement} frame */
export function dressTable(frame) {
  scrolls(frame, t("reading.table"));
}

/** @param {HTMLElement} frame of what may be wide @param {string} name */
function scrolls(frame, name) {
  frame.tabIndex = 0;
  frame.setAttribute("role", "group");
  frame.setAttribute("aria-label", name);
}

/** @param {string} name @returns {CodeView} for code that grows */
export const growingCode = (name) => new CodeView(name);

/** @returns {HTMLElement} a part of a long answer */
export const newPart = () => el("div", { class: "part" });
