/** Searches in a worker, so that typing in the search box never waits for it. */

import { workerAddress } from "../shell/trusted.js";
import { scan } from "./scan.js";

/** @typedef {import("./scan.js").Hit} Hit @typedef {import("./scan.js").Source} Source */

export class Searcher {
  #name;
  /** @type {Worker | null} */
  #worker = null;
  #number = 0;
  /** @type {{resolve: (hits: Hit[]) => void, reject: (error: unknown) => void} | null} the search that goes on in the worker */
  #asked = null;

  /** @param {string} name the database's */
  constructor(name) {
    this.#name = name;
  }

  /**
   * @param {string} text @param {boolean} stored whether there is a database
   * @param {Source} waiting what is not in it
   * @returns {Promise<Hit[]>}
   */
  async search(text, stored, waiting) {
    const number = ++this.#number;
    this.#asked?.reject(outdated());
    this.#asked = null;
    const alive = () => number === this.#number;
    const [found, ours] = await Promise.all([
      stored ? this.#ask(number, text) : [],
      scan(waiting, text, alive),
    ]);
    if (!alive()) throw outdated();
    /** @param {Hit} hit */
    const key = (hit) => `${hit.head.id} ${hit.messageId}`;
    const known = new Set(ours.map(key));
    const hits = [...ours, ...found.filter((hit) => !known.has(key(hit)))];
    return hits.sort((one, other) => other.head.updated - one.head.updated);
  }

  close() {
    this.#worker?.terminate();
    this.#worker = null;
  }

  /** @param {number} number @param {string} text @returns {Promise<Hit[]>} */
  #ask(number, text) {
    return new Promise((resolve, reject) => {
      this.#asked = { resolve, reject };
      this.#worker ??= this.#start();
      this.#worker.postMessage({ number, name: this.#name, text });
    });
  }

  #start() {
    const worker = new Worker(/** @type {any} */ (workerAddress(new URL("search_worker.js", import.meta.url).href)), {
      type: "module",
    });
    worker.onmessage = ({ data: { number, hits, error } }) => {
      if (number !== this.#number) return;
      if (error === undefined) this.#asked?.resolve(hits);
      else this.#asked?.reject(new Error(error));
      this.#asked = null;
    };
    worker.onerror = () => {
      this.#asked?.reject(new Error("The search worker did not start"));
      this.#asked = null;
      this.close(); // the next search tries anew
    };
    return worker;
  }
}

function outdated() {
  return new DOMException("A newer search has begun", "AbortError");
}
