/** The small line with the server's load: rows in the batch, requests that wait. */

import { fetchStats } from "../server/api.js";
import { t } from "../words/words.js";

const EVERY = 3000; // milliseconds

export class LoadLine {
  #element;
  /** @type {number | undefined} */
  #timer;
  #fed = false;

  /** @param {HTMLElement} element hidden while nothing is known */
  constructor(element) {
    this.#element = element;
    document.addEventListener("visibilitychange", () => this.start());
  }

  /** Asks now, and again while the page is visible and nobody else tells. */
  start() {
    clearTimeout(this.#timer);
    if (!document.hidden && !this.#fed) this.#ask();
  }

  /**
   * What the live panel heard, so that the server is not asked twice.
   * @param {Record<string, any> | null} snapshot null when no more will come: this line asks again itself
   */
  tell(snapshot) {
    this.#fed = snapshot !== null;
    if (snapshot === null) return this.start();
    clearTimeout(this.#timer);
    this.#show(Number(snapshot.running), Number(snapshot.waiting));
  }

  async #ask() {
    try {
      const { running, waiting } = await fetchStats();
      if (!this.#fed) this.#show(Number(running), Number(waiting));
    } catch {
      if (!this.#fed) this.#show(NaN, NaN);
    }
    clearTimeout(this.#timer);
    if (!document.hidden && !this.#fed) this.#timer = setTimeout(() => this.#ask(), EVERY);
  }

  /** @param {number} running @param {number} waiting NaN where the server does not say */
  #show(running, waiting) {
    const known = Number.isFinite(running) && Number.isFinite(waiting);
    const words = waiting > 0 ? t("seeing.load_waiting", { n: running, waiting }) : t("seeing.load", { n: running });
    this.#element.textContent = known ? words : "";
    this.#element.classList.toggle("active", running > 0);
    this.#element.hidden = !known;
  }
}
