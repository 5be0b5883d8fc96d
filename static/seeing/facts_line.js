/** The line of facts below an answer, and the list of all of them that its button opens. */

import { el, iconButton } from "../shell/dom.js";
import { spokenLanguage, t } from "../words/words.js";
import { duration, endingExplained, factsLine, ordinal, perSecond, promptWords, shortTime } from "./figures.js";

/**
 * @typedef {import("../core/conversation.js").Facts} Facts
 * @typedef {import("./speed.js").SpeedMeter} SpeedMeter
 */

const TOLD_FOR = 1500; // milliseconds that "Copied" is shown

/** Fields of a request that say how it travels, not what is asked for. */
const CARRIERS = new Set(["messages", "model", "stream", "stream_options", "seed", "skip_special_tokens"]);

export class FactsLine {
  #element;
  #line = el("span", { class: "facts-line" });
  #button;
  #list = el("dl", { class: "facts-list", hidden: true });
  /** @type {Facts | null} */
  #facts = null;

  /**
   * @param {HTMLElement} element empty, and this class's alone
   * @param {HTMLElement | null} [button] one that stands elsewhere and opens the list, instead of an own one
   */
  constructor(element, button = null) {
    this.#element = element;
    this.#button = button ?? iconButton("facts", t("seeing.details"), { class: "facts-more" });
    this.#button.hidden = true;
    this.#button.setAttribute("aria-expanded", "false");
    element.classList.add("facts");
    element.replaceChildren(this.#line, ...(button === null ? [this.#button] : []), this.#list);
    this.#button.addEventListener("click", () => this.#open(this.#list.hidden === true));
    element.addEventListener("keydown", (event) => this.#close(event));
  }

  /**
   * The request waits for a row.
   * @param {number} position how many go before it @param {number | null} eta seconds
   */
  queued(position, eta) {
    const time = eta === null ? "" : about(eta);
    const words = position < 1 ? "queued_next" : "queued";
    const place = ordinal(position + 1);
    this.#line.textContent = time === "" ? t(`seeing.${words}`, { place }) : t(`seeing.${words}_about`, { place, time });
  }

  /** The answer grows. @param {SpeedMeter} meter */
  live(meter) {
    this.#line.textContent = meter.line("");
  }

  /** The answer is over, now or long ago. @param {Facts | undefined} facts undefined where none were kept */
  settle(facts) {
    this.#facts = facts ?? null;
    this.#line.textContent = facts === undefined ? "" : factsLine({ ...facts, tokens: facts.completionTokens });
    this.#button.hidden = facts === undefined;
    this.#open(facts !== undefined && !this.#list.hidden);
  }

  /** @param {boolean} open */
  #open(open) {
    if (open && this.#facts !== null) this.#list.replaceChildren(...entries(this.#facts));
    this.#list.hidden = !open;
    this.#element.classList.toggle("open", open);
    this.#button.setAttribute("aria-expanded", String(open));
  }

  /** @param {KeyboardEvent} event */
  #close(event) {
    if (event.key !== "Escape" || this.#list.hidden) return;
    event.preventDefault();
    event.stopPropagation(); // Escape also stops the answer that grows
    this.#open(false);
    this.#button.focus();
  }
}

/** @param {number} eta seconds */
function about(eta) {
  if (!Number.isFinite(eta) || eta < 0) return "";
  if (eta < 90) return t("seeing.about_seconds", { n: Math.max(1, Math.round(eta)) });
  return t("seeing.about_minutes", { n: Math.round(eta / 60) });
}

/** @param {Facts} facts @returns {HTMLElement[]} one row for each fact that is known */
function entries(facts) {
  const { ttft, rate, itl50, itl95, promptTokens, completionTokens, finish, seed, model, started } = facts;
  const between = itl50 !== null && itl95 !== null && t("seeing.itl", { p50: shortTime(itl50), p95: shortTime(itl95) });
  /** @type {[string, Node | string | false | null][]} */
  const rows = [
    ["ttft", ttft !== null && duration(ttft)],
    ["rate", rate !== null && perSecond(rate)],
    ["itl", between],
    ["prompt", promptTokens !== null && promptWords(promptTokens, facts.cachedTokens)],
    ["completion", completionTokens !== null && t("seeing.tokens", { n: completionTokens })],
    ["finish", finish !== null && endingExplained(finish)],
    ["seed", seed !== null && seedWithCopy(seed)],
    ["model", model !== "" && el("span", { translate: "no", text: model })],
    ["sampling", settings(facts.request)],
    ["started", el("time", { datetime: new Date(started).toISOString(), text: clock(started) })],
  ];
  return rows.flatMap(([name, value]) =>
    value ? [el("div", {}, el("dt", { text: t(`seeing.fact.${name}`) }), el("dd", {}, value))] : [],
  );
}

/** @param {Record<string, unknown>} request */
function settings(request) {
  const sent = Object.entries(request).filter(([name, value]) => !CARRIERS.has(name) && value !== undefined);
  if (sent.length === 0) return t("seeing.defaults");
  const list = el("ul", { class: "facts-sent", translate: "no" });
  for (const [name, value] of sent) {
    list.append(el("li", {}, el("code", { text: `${name} ${JSON.stringify(value)}` })));
  }
  return list;
}

/** @param {number} seed */
function seedWithCopy(seed) {
  const told = el("span", { class: "facts-told", role: "status" });
  const copy = async () => {
    try {
      await navigator.clipboard.writeText(String(seed));
      told.textContent = t("seeing.copied");
    } catch {
      told.textContent = t("seeing.copy_failed");
      return;
    }
    setTimeout(() => (told.textContent = ""), TOLD_FOR);
  };
  const button = iconButton("copy", t("seeing.copy_seed"), { class: "facts-copy", on: { click: copy } });
  return el("span", { class: "facts-seed" }, el("code", { text: String(seed) }), button, told);
}

/** @param {number} started */
function clock(started) {
  return new Date(started).toLocaleString(spokenLanguage(), { dateStyle: "medium", timeStyle: "medium" });
}
