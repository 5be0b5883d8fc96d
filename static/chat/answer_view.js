/** One answer on the screen: it grows, then it is settled once. */

import { FactsLine } from "../seeing/facts_line.js";
import { el } from "../shell/dom.js";
import { t } from "../words/words.js";
import { LazyBody, showText } from "./lazy_reading.js";
import { part, stamp } from "./stamp.js";

/**
 * @typedef {import("../core/conversation.js").Message} Message
 * @typedef {{title: string, detail: string, retry?: () => void, goOn?: (() => void) | null}} Problem
 */

export class AnswerView {
  element = stamp("answer-template");
  #message;
  /** @type {LazyBody | undefined} what grows */
  #body;
  #given = ""; // to it
  /** The line below the answer. */
  facts = new FactsLine(part(this.element, ".stats"));

  /** @param {Message} message what it has so far is shown */
  constructor(message) {
    this.#message = message;
    this.element.dataset.id = message.id;
    const body = part(this.element, ".body");
    if (message.state === "streaming") this.#begin();
    else {
      showText(body, message.content);
      this.#settled();
    }
  }

  /** @param {string} text */
  append(text) {
    this.#body?.append(text);
    this.#given += text;
    this.element.classList.add("begun");
  }

  /** The answer grows no more. */
  settle() {
    this.#body?.finish();
    this.#body = undefined;
    this.#settled();
  }

  /** What had come is taken back: the answer begins anew, or is known better from elsewhere. */
  restart() {
    this.hideProblem();
    this.#begin();
    this.element.setAttribute("aria-busy", "true");
  }

  /** A body that grows, with what there is so far. */
  #begin() {
    this.#body = new LazyBody(part(this.element, ".body"));
    this.#given = "";
    this.element.classList.remove("begun");
    if (this.#message.content !== "") this.append(this.#message.content);
  }

  /** Shows what another tab has saved. */
  reread() {
    const { content, state } = this.#message;
    const more = this.#body !== undefined && content.startsWith(this.#given);
    if (more && content !== this.#given) this.append(content.slice(this.#given.length));
    if (state === "streaming") {
      if (!more) this.#begin();
      return;
    }
    if (!more) {
      this.#body = undefined;
      showText(part(this.element, ".body"), content);
    }
    this.hideProblem();
    this.settle();
  }

  /** @param {Problem} problem */
  showProblem({ title, detail, retry, goOn }) {
    const box = part(this.element, ".problem");
    part(box, ".title").textContent = title;
    part(box, ".detail").textContent = detail;
    box.querySelector(".go-on")?.remove();
    const again = part(box, ".retry");
    again.hidden = retry === undefined;
    again.textContent = t("chat.retry");
    again.onclick = () => retry?.();
    if (goOn) box.append(el("button", { type: "button", class: "go-on", text: t("chat.continue"), on: { click: goOn } }));
    box.hidden = false;
  }

  hideProblem() {
    const box = part(this.element, ".problem");
    if (box.contains(document.activeElement)) this.element.focus({ preventScroll: true });
    box.hidden = true;
  }

  /** Whether a problem is shown. */
  get troubled() {
    return !part(this.element, ".problem").hidden;
  }

  /** Counts down on the retry button. @param {number} seconds until it is pressed by itself; 0 for never */
  labelRetry(seconds) {
    part(this.element, ".retry").textContent = seconds > 0 ? t("chat.retryIn", { seconds }) : t("chat.retry");
  }

  #settled() {
    this.element.setAttribute("aria-busy", "false");
    this.element.classList.toggle("begun", this.#message.content !== "");
    if (this.#message.facts) this.facts.settle(this.#message.facts);
  }
}
