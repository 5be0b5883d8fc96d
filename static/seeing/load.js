/** The small line with the server's load: rows in the batch, requests that wait. */

import { fetchLoad } from "../server/api.js";

const EVERY = 3000; // milliseconds

export class LoadLine {
  #element;
  /** @type {number | undefined} */
  #timer;

  /** @param {HTMLElement} element hidden while nothing is known */
  constructor(element) {
    this.#element = element;
    document.addEventListener("visibilitychange", () => this.start());
  }

  /** Asks now, and again while the page is visible. */
  start() {
    clearTimeout(this.#timer);
    if (!document.hidden) this.#ask();
  }

  async #ask() {
    try {
      const { running, waiting } = await fetchLoad();
      const known = Number.isFinite(running) && Number.isFinite(waiting);
      const queue = waiting > 0 ? `, ${waiting} waiting` : "";
      this.#show(known ? `${running} in the batch${queue}` : "", running > 0);
    } catch {
      this.#show("", false);
    }
    clearTimeout(this.#timer);
    if (!document.hidden) this.#timer = setTimeout(() => this.#ask(), EVERY);
  }

  /** @param {string} text @param {boolean} active */
  #show(text, active) {
    this.#element.textContent = text;
    this.#element.classList.toggle("active", active);
    this.#element.hidden = text === "";
  }
}
