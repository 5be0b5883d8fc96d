/**
 * How answers are sampled. A value is the reader's own if one was set, else what the model card recommends,
 * else the server's business (the field is not sent). Only the reader's own values are stored.
 */

/** @typedef {{label: string, min: number, max: number, step: number, whole: boolean}} Field */

/** @type {Record<string, Field>} */
export const FIELDS = {
  temperature: { label: "Temperature", min: 0, max: 2, step: 0.05, whole: false },
  top_p: { label: "Top p", min: 0.01, max: 1, step: 0.01, whole: false },
  top_k: { label: "Top k", min: 0, max: 1_000_000, step: 1, whole: true },
  max_tokens: { label: "Longest answer", min: 1, max: 1_000_000, step: 1, whole: true },
  seed: { label: "Seed", min: 0, max: Number.MAX_SAFE_INTEGER, step: 1, whole: true },
};

/** Recommendations that have no control of their own but are still followed. */
const CARD_ONLY = ["min_p", "repetition_penalty", "presence_penalty", "frequency_penalty"];

const STORAGE_KEY = "fastpath.settings";

export class Settings extends EventTarget {
  /** @type {Record<string, number>} */
  #card = {};
  /** @type {Record<string, number>} */
  #own = {};
  #system = "";
  #storage;

  /** @param {Storage | null} storage null where the browser offers none */
  constructor(storage) {
    super();
    this.#storage = storage;
    this.#read();
  }

  /** What the model card recommends. @param {Record<string, unknown>} defaults */
  recommend(defaults) {
    this.#card = {};
    for (const [name, value] of Object.entries(defaults)) {
      const known = Object.hasOwn(FIELDS, name) || CARD_ONLY.includes(name);
      if (known && typeof value === "number" && Number.isFinite(value)) this.#card[name] = value;
    }
    this.#tell();
  }

  /** The value in force, undefined for the server's own default. @param {string} name */
  get(name) {
    return this.#own[name] ?? this.#card[name];
  }

  /** What is in force when the reader sets nothing. @param {string} name */
  recommended(name) {
    return this.#card[name];
  }

  /**
   * Sets a value; an empty text takes the reader's own value away.
   * @param {string} name a key of FIELDS
   * @param {string} text as typed
   * @returns {string} what is wrong with it, empty if nothing
   */
  set(name, text) {
    const problem = this.#check(name, text.trim());
    if (problem !== "") return problem;
    if (text.trim() === "") delete this.#own[name];
    else this.#own[name] = Number(text);
    this.#write();
    this.#tell();
    return "";
  }

  get system() {
    return this.#system;
  }

  set system(text) {
    this.#system = text;
    this.#write();
    this.#tell();
  }

  /** True if the reader has set anything. */
  get changed() {
    return this.#system.trim() !== "" || Object.keys(this.#own).length > 0;
  }

  /** Back to what the model card recommends, without a system prompt. */
  reset() {
    this.#own = {};
    this.#system = "";
    this.#write();
    this.#tell();
  }

  /** The sampling fields of a request. @returns {Record<string, number>} */
  request() {
    return { ...this.#card, ...this.#own };
  }

  /** @param {string} name @param {string} text @returns {string} */
  #check(name, text) {
    const { label, min, max, whole } = FIELDS[name];
    if (text === "") return "";
    const value = Number(text);
    if (!Number.isFinite(value)) return `${label} must be a number.`;
    if (whole && !Number.isSafeInteger(value)) return `${label} must be a whole number.`;
    if (value < min || value > max) return `${label} must lie between ${min} and ${max}.`;
    return "";
  }

  #read() {
    try {
      const stored = JSON.parse(this.#storage?.getItem(STORAGE_KEY) ?? "{}");
      if (typeof stored.system === "string") this.#system = stored.system;
      for (const name of Object.keys(FIELDS)) {
        const value = stored[name];
        if (typeof value === "number" && this.#check(name, String(value)) === "") this.#own[name] = value;
      }
    } catch {
      // Stored by something else, or storage is forbidden: start from the model card.
    }
  }

  #write() {
    try {
      this.#storage?.setItem(STORAGE_KEY, JSON.stringify({ ...this.#own, system: this.#system }));
    } catch {
      // Full or forbidden: the settings hold until the page is closed.
    }
  }

  #tell() {
    this.dispatchEvent(new Event("change"));
  }
}
