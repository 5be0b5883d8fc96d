/**
 * How likely each token of an answer was, as a map of colours over its text, with what else the model thought
 * of. While the map is shown it stands in the place of the rendered answer, which is only hidden.
 *
 * Tokens are many: each is one element with a class, the listeners are the map's own.
 */

import { el } from "../shell/dom.js";
import { loadStyle } from "../shell/style.js";
import { t } from "../words/words.js";
import { decimals, percent } from "./figures.js";

await loadStyle(new URL("../styles/engine.css", import.meta.url));

/** @typedef {import("../core/conversation.js").TokenScore} TokenScore */

/** The lowest probability of each class: each is a step that a reader can tell from the next. */
const CLASSES = [0.9, 0.6, 0.3, 0.1, 0.02, 0];
const LINES = 10; // that Page Up and Page Down go, in tokens

/** @type {WeakMap<HTMLElement, HeatMap>} */
const maps = new WeakMap();
let number = 0;

/** @param {HTMLElement} element the answer's body @param {TokenScore[]} scores */
export function showScores(element, scores) {
  hideScores(element);
  const map = new HeatMap(scores);
  maps.set(element, map);
  element.hidden = true;
  element.after(map.element);
}

/** @param {HTMLElement} element */
export function hideScores(element) {
  const map = maps.get(element);
  if (map === undefined) return;
  map.remove();
  maps.delete(element);
  element.hidden = false;
}

class HeatMap {
  #scores;
  #id = `heat-${(number += 1)}`;
  #text = el("div", { class: "heat-text", dir: "auto", role: "group", "aria-label": t("seeing.heat.tokens") });
  #tip = el("div", { class: "heat-tip", id: `${this.#id}-tip`, role: "tooltip", hidden: true });
  /** @type {HTMLElement[]} */
  #tokens;
  /** @type {HTMLElement | null} the token that the tooltip is about */
  #shown = null;
  #at = 0;
  /** @type {number | undefined} */
  #leaving;
  /** Where the pointer is. */
  #pointer = "";
  /** Where it was when Escape closed the tooltip: what then comes to lie under it was not pointed at. */
  #dismissed = "";
  element;

  /** @param {TokenScore[]} scores */
  constructor(scores) {
    this.#scores = scores;
    this.#tokens = scores.map(token);
    const all = document.createDocumentFragment();
    // A line break stands behind its sign, so that the text flows as it was written.
    this.#tokens.forEach((made, k) => all.append(made, ...breaks(scores[k].text)));
    this.#text.append(all);
    this.#tokens[0]?.setAttribute("tabindex", "0");
    this.element = el("div", { class: "heat" }, legend(scores), this.#text, this.#tip);
    this.#listen();
  }

  remove() {
    clearTimeout(this.#leaving);
    document.removeEventListener("keydown", this.#escape, true);
    this.element.remove();
  }

  #listen() {
    this.#text.addEventListener("click", ({ target }) => this.#focus(this.#indexOf(target)));
    this.#text.addEventListener("focusin", ({ target }) => this.#select(this.#indexOf(target)));
    this.#text.addEventListener("focusout", () => this.#hide());
    this.#text.addEventListener("keydown", (event) => this.#key(event));
    // The tooltip stays while the pointer is on it, so that its words can be read closely or selected.
    this.element.addEventListener("pointerover", ({ target, clientX, clientY }) => {
      const place = `${clientX} ${clientY}`;
      if (place === this.#dismissed) return;
      this.#pointer = place;
      this.#dismissed = "";
      const at = this.#indexOf(target);
      if (at >= 0) this.#show(at);
      else if (!this.#tip.contains(/** @type {Node} */ (target))) this.#leave();
      else clearTimeout(this.#leaving);
    });
    this.element.addEventListener("pointermove", ({ clientX, clientY }) => (this.#pointer = `${clientX} ${clientY}`));
    this.element.addEventListener("pointerleave", () => this.#leave());
    // For a pointer's tooltip the focus may be anywhere.
    document.addEventListener("keydown", this.#escape, true);
  }

  /** @param {KeyboardEvent} event */
  #escape = (event) => {
    if (event.key !== "Escape" || this.#shown === null) return;
    event.preventDefault();
    event.stopPropagation();
    this.#dismissed = this.#pointer;
    this.#hide();
  };

  /** @param {EventTarget | null} target @returns {number} -1 if it is no token */
  #indexOf(target) {
    const found = /** @type {HTMLElement} */ (target).closest?.(".heat-token");
    return found instanceof HTMLElement ? Number(found.dataset.at) : -1;
  }

  /** @param {KeyboardEvent} event */
  #key(event) {
    const last = this.#tokens.length - 1;
    /** @type {Record<string, number>} */
    const to = {
      ArrowRight: this.#at + 1, ArrowDown: this.#at + 1, ArrowLeft: this.#at - 1, ArrowUp: this.#at - 1,
      PageDown: this.#at + LINES, PageUp: this.#at - LINES, Home: 0, End: last,
    };
    if (!(event.key in to) || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    this.#focus(Math.min(last, Math.max(0, to[event.key])));
  }

  /** Only the token that Tab reaches has a tabindex, until it is another one's turn. @param {number} at */
  #focus(at) {
    if (at < 0) return;
    this.#tokens[at].setAttribute("tabindex", "-1");
    this.#tokens[at].focus();
  }

  /** Makes this token the one that Tab reaches. @param {number} at */
  #select(at) {
    if (at < 0) return;
    if (at !== this.#at) this.#tokens[this.#at].removeAttribute("tabindex");
    this.#tokens[at].setAttribute("tabindex", "0");
    this.#at = at;
    this.#show(at);
  }

  /** @param {number} at */
  #show(at) {
    clearTimeout(this.#leaving);
    const made = this.#tokens[at];
    if (this.#shown === made) return;
    this.#hide();
    this.#shown = made;
    this.#tip.replaceChildren(...explanation(this.#scores[at]));
    this.#tip.hidden = false;
    made.setAttribute("aria-describedby", this.#tip.id);
    this.#place(made);
  }

  /** Below the token, inside the map's width; above it where there is no room. @param {HTMLElement} made */
  #place(made) {
    const frame = this.element.getBoundingClientRect();
    const [box] = made.getClientRects();
    const { width, height } = this.#tip.getBoundingClientRect();
    const left = Math.max(0, Math.min(box.left - frame.left, frame.width - width));
    const below = box.bottom + height < innerHeight || box.top - height < 0;
    this.#tip.style.left = `${left}px`;
    this.#tip.style.top = `${below ? box.bottom - frame.top : box.top - frame.top - height}px`;
  }

  /** Gives the pointer time to reach the tooltip. */
  #leave() {
    clearTimeout(this.#leaving);
    if (!this.#text.contains(document.activeElement)) this.#leaving = setTimeout(() => this.#hide(), 150);
  }

  #hide() {
    clearTimeout(this.#leaving);
    this.#shown?.removeAttribute("aria-describedby");
    this.#shown = null;
    this.#tip.hidden = true;
  }
}

/** @param {TokenScore} score @param {number} at */
function token({ text, logprob }, at) {
  const made = document.createElement("span");
  made.className = `heat-token heat-${classOf(Math.exp(logprob))}`;
  made.dataset.at = String(at);
  made.setAttribute("role", "button");
  if (text.trim() === "") made.setAttribute("aria-label", named(text));
  made.textContent = signs(text);
  return made;
}

/** 0 for the likeliest. @param {number} probability */
function classOf(probability) {
  const found = CLASSES.findIndex((least) => probability >= least);
  return found < 0 ? CLASSES.length - 1 : found;
}

/** A token's text with signs where nothing would be seen. @param {string} text */
function signs(text) {
  if (text === "") return "∅";
  const shown = text.replace(/\r?\n/g, "↵").replace(/\t/g, "⇥");
  return shown.trim() === "" ? shown.replace(/ /g, "␣") : shown;
}

/** @param {string} text @returns {string[]} the token's line breaks */
function breaks(text) {
  const found = text.replace(/[^\n]/g, "");
  return found === "" ? [] : [found];
}

/** The name of a token without letters, for those who hear it. @param {string} text */
function named(text) {
  if (text === "") return t("seeing.heat.empty");
  return text.includes("\n") ? t("seeing.heat.break") : t("seeing.heat.space");
}

/** What the tooltip says. @param {TokenScore} score */
function explanation({ text, logprob, alternatives }) {
  const own = el("p", { class: "heat-own" }, el("code", { text: signs(text) }), ` ${percent(Math.exp(logprob))}`);
  const others = alternatives.filter((other) => other.text !== text);
  if (others.length === 0) return [own];
  const list = el("ul");
  for (const other of others) {
    list.append(el("li", {}, el("code", { text: signs(other.text) }), ` ${percent(Math.exp(other.logprob))}`));
  }
  return [own, el("p", { class: "heat-others", text: t("seeing.heat.instead") }), list];
}

/** The colours' meaning, and what they come to over the whole answer. @param {TokenScore[]} scores */
function legend(scores) {
  const scale = el("ul", { class: "heat-scale", "aria-label": t("seeing.heat.scale") });
  CLASSES.forEach((least, k) => {
    const key = least === 0 ? "seeing.heat.below" : "seeing.heat.from";
    const words = t(key, { p: percent(least === 0 ? CLASSES[k - 1] : least) });
    scale.append(el("li", { class: `heat-${k}`, text: words }));
  });
  const { mean, perplexity } = summary(scores);
  const values = { n: scores.length, mean: decimals(mean ?? 0, 3), perplexity: decimals(perplexity ?? 1, 2) };
  const words = mean === null ? "" : t("seeing.heat.summary", values);
  return el("div", { class: "heat-legend" }, scale, el("p", { text: words }));
}

/**
 * @param {TokenScore[]} scores
 * @returns {{mean: number, perplexity: number} | {mean: null, perplexity: null}} mean log probability
 */
export function summary(scores) {
  if (scores.length === 0) return { mean: null, perplexity: null };
  const mean = scores.reduce((sum, { logprob }) => sum + logprob, 0) / scores.length;
  return { mean, perplexity: Math.exp(-mean) };
}
