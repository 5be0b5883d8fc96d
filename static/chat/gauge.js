/** How long the draft is in tokens, and how much of the model's context is taken. */

import { t } from "../words/words.js";
import { el } from "../shell/dom.js";

/** @typedef {import("../core/conversation.js").TextFile} TextFile */

const WAIT = 250; // milliseconds without a key, before the server is asked
const PAUSE = 10_000; // milliseconds, after it did not answer
const NEARLY = 0.85; // of the context, from which on there is a warning

export class Gauge {
  #count;
  #announce;
  #number = el("span", { class: "tokens" });
  #full = el("span", { class: "context", hidden: true, "aria-hidden": "true" }); // the meter says it in words
  #meter = el("meter", { min: 0, hidden: true });
  #warning = el("span", { class: "warning", hidden: true });
  /** @type {number | undefined} */
  #timer;
  /** @type {AbortController | null} */
  #asking = null;
  #silentUntil = 0;
  #text = "";
  /** Tokens of the draft's own words, null while unknown. @type {number | null} */
  #tokens = 0;
  /** @type {TextFile[]} */
  #files = [];
  /** @type {{used: number | null, limit: number | null}} */
  #context = { used: null, limit: null };
  #level = "";

  /**
   * @param {HTMLElement} place
   * @param {(text: string, signal: AbortSignal) => Promise<number>} count
   * @param {(text: string) => void} announce
   */
  constructor(place, count, announce) {
    this.#count = count;
    this.#announce = announce;
    place.replaceChildren(this.#warning, this.#number, this.#full, this.#meter);
  }

  /** Tokens of the conversation so far, and how many fit. @param {{used: number | null, limit: number | null}} context */
  setContext(context) {
    this.#context = context;
    this.#show();
  }

  /** @param {string} text @param {TextFile[]} files */
  update(text, files) {
    this.#files = files;
    const counted = text.startsWith("/") ? "" : text.trim(); // a command is not sent
    if (counted !== this.#text) this.#ask(counted);
    this.#show();
  }

  /** @param {string} text */
  #ask(text) {
    clearTimeout(this.#timer);
    this.#asking?.abort();
    this.#text = text;
    this.#tokens = text === "" ? 0 : null;
    if (text !== "") this.#timer = setTimeout(() => this.#counted(text), WAIT);
  }

  /** @param {string} text */
  async #counted(text) {
    if (performance.now() < this.#silentUntil) return;
    const asking = new AbortController();
    this.#asking = asking;
    try {
      const tokens = await this.#count(text, asking.signal);
      if (asking.signal.aborted) return;
      this.#tokens = Number.isFinite(tokens) ? tokens : null;
    } catch {
      if (!asking.signal.aborted) this.#silentUntil = performance.now() + PAUSE;
      return;
    }
    this.#show();
  }

  #show() {
    const counts = [this.#tokens, ...this.#files.map((file) => file.tokens)];
    const unknown = counts.includes(null);
    const draft = counts.reduce((/** @type {number} */ sum, count) => sum + (count ?? 0), 0);
    const { used, limit } = this.#context;
    const total = (used ?? 0) + draft;
    const gauged = limit !== null && limit > 0 && (used !== null || draft > 0) && !unknown;
    this.#number.textContent = unknown || draft === 0 ? "" : t("composer.tokens", { n: draft });
    this.#meter.hidden = !gauged || total === 0;
    this.#full.hidden = this.#meter.hidden;
    if (gauged) this.#fill(total, limit);
    this.#warn(gauged ? levelOf(total, limit) : "", total, limit ?? 0);
  }

  /** @param {number} total @param {number} limit */
  #fill(total, limit) {
    Object.assign(this.#meter, { max: limit, low: limit * NEARLY, high: limit, optimum: 0, value: total });
    const words = t("composer.context", { total, limit });
    this.#full.textContent = t("composer.filled", { total, limit });
    this.#full.title = words;
    this.#meter.textContent = words;
    this.#meter.title = words;
    this.#meter.setAttribute("aria-label", words);
  }

  /** @param {string} level @param {number} total @param {number} limit */
  #warn(level, total, limit) {
    this.#warning.hidden = level === "";
    if (level !== "") this.#warning.textContent = t(`composer.${level}`, { n: Math.abs(limit - total) });
    if (level !== "" && level !== this.#level) this.#announce(this.#warning.textContent ?? "");
    this.#level = level;
  }
}

/** @param {number} total @param {number} limit */
function levelOf(total, limit) {
  if (total >= limit) return "over";
  return total >= limit * NEARLY ? "nearly" : "";
}
