/**
 * The API key, where the server wants one: it lives in memory, or for the tab's session if the reader says
 * so. It is never in an address.
 */

const STORED = "fastpath.key";

/**
 * @typedef {{key: string, remember: boolean}} Given what the reader typed
 * @typedef {(problem: string, wrong: boolean) => Promise<Given | string | null>} Ask asks the reader for a key;
 *   null where they will not give one. `problem` is what the server said; `wrong`: it has refused a key.
 * @typedef {"always" | "once" | "never"} Asking whether a request may ask the reader: again after a "no" (the
 *   reader wants something), only before it (the page wants something), or not at all
 */

/** Tells by the event `change` that there is another key. */
export class KeyRing extends EventTarget {
  /** @type {string | null} */
  #key = null;
  #storage;
  /** @type {Promise<boolean> | null} one question for all requests that wait */
  #question = null;
  #declined = false;

  /** @type {Ask} */
  askForKey = async (problem, wrong) => (await import("./key_dialog.js")).askForKey(problem, wrong);

  /** @param {Storage | null} storage of the tab's session */
  constructor(storage) {
    super();
    this.#storage = storage;
    try {
      this.#key = storage?.getItem(STORED) || null;
    } catch {
      // Forbidden: the key is asked for again after a reload.
    }
  }

  get key() {
    return this.#key;
  }

  /** What goes with every request. @returns {Record<string, string>} */
  get headers() {
    return this.#key === null ? {} : { Authorization: `Bearer ${this.#key}` };
  }

  /** @param {string | null} key null forgets it @param {boolean} [remember] until the tab is closed */
  set(key, remember = false) {
    this.#key = key;
    this.#declined = false;
    try {
      if (key !== null && remember) this.#storage?.setItem(STORED, key);
      else this.#storage?.removeItem(STORED);
    } catch {
      // Forbidden or full: then it is kept in memory alone.
    }
    this.dispatchEvent(new Event("change"));
  }

  /**
   * The server refused a request. Waits until there is another key than the one that it was sent with.
   * @param {string | null} used @param {string} problem the server's words
   * @param {Asking} asking
   * @returns {Promise<boolean>} whether it is worth another try
   */
  async another(used, problem, asking) {
    if (used !== this.#key) return true; // somebody else has asked meanwhile
    if (used !== null) this.#forget();
    if (asking === "never" || (asking === "once" && this.#declined && this.#question === null)) return false;
    this.#question ??= this.#ask(problem, used !== null).finally(() => (this.#question = null));
    return this.#question;
  }

  /** What was refused is not kept for the next visit, whether or not the reader gives another one. */
  #forget() {
    try {
      this.#storage?.removeItem(STORED);
    } catch {
      // Forbidden: nothing was kept either.
    }
  }

  /** @param {string} problem @param {boolean} wrong */
  async #ask(problem, wrong) {
    const given = await this.askForKey(problem, wrong);
    const { key, remember } = typeof given === "string" ? { key: given, remember: false } : (given ?? { key: "", remember: false });
    // A header holds no other characters; such a key is none of the server's.
    if (!/^[\x21-\x7e]+$/.test(key.trim())) {
      this.#declined = true;
      return false;
    }
    this.set(key.trim(), remember);
    return true;
  }
}

/** @returns {Storage | null} null where the browser forbids it */
function sessionStore() {
  try {
    return sessionStorage;
  } catch {
    return null;
  }
}

/** The page's own. */
export const keys = new KeyRing(sessionStore());
