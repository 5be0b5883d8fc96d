/** Keeps conversations as they grow: what is said at once, an answer that is being written each second. */

/**
 * @typedef {import("../core/conversation.js").Conversation} Conversation
 * @typedef {import("../core/conversation.js").Message} Message
 * @typedef {import("../keep/library.js").Library} Library
 */

const EVERY = 1000; // milliseconds

export class Autosave {
  #library;
  /** @type {Map<string, {conversation: Conversation, message: Message}>} */
  #pending = new Map();
  /** @type {number | undefined} */
  #timer;
  /** Messages that grow, and of which something is written. @type {Set<string>} */
  #begun = new Set();
  /** Conversations that were deleted. @type {Set<string>} */
  #gone = new Set();
  /** A page that is being left sees its streams break. What it then thinks of its answers is not to be kept. */
  #leaving = false;

  /** @param {Library} library tells by itself what it could not store */
  constructor(library) {
    this.#library = library;
    addEventListener("pagehide", () => {
      this.flush();
      this.#leaving = true;
    });
    addEventListener("pageshow", () => (this.#leaving = false));
    library.addEventListener("change", (event) => {
      const { id, removed } = /** @type {CustomEvent} */ (event).detail;
      if (removed) this.#gone.add(id);
      else this.#gone.delete(id); // it was put back
    });
    document.addEventListener("visibilitychange", () => document.hidden && this.flush());
  }

  /** A message is new or has changed for good. @param {Conversation} conversation @param {Message} message */
  async message(conversation, message) {
    this.#begun.delete(message.id);
    if (this.#leaving || this.#gone.has(conversation.head.id)) return;
    this.#pending.delete(message.id);
    await Promise.all([
      this.#library.writeHead(conversation.head),
      this.#library.writeMessage(conversation.head.id, message),
    ]);
  }

  /**
   * A message grows. Its beginning is written at once: a page that is reloaded soon afterwards has to know which
   * stream to go on with.
   * @param {Conversation} conversation @param {Message} message
   */
  growing(conversation, message) {
    this.#pending.set(message.id, { conversation, message });
    const first = !this.#begun.has(message.id); // written at once, whatever another answer has begun to wait for
    this.#begun.add(message.id);
    if (first) this.flush();
    if (this.#timer === undefined) this.#writeInTurn();
  }

  #writeInTurn() {
    this.flush();
    if (this.#begun.size > 0) this.#timer = setTimeout(() => this.#rest(), EVERY);
  }

  #rest() {
    this.#timer = undefined;
    this.#writeInTurn();
  }

  /** Another path is shown, or the title has changed. @param {Conversation} conversation */
  head(conversation) {
    if (!conversation.empty && !this.#gone.has(conversation.head.id)) this.#library.writeHead(conversation.head);
  }

  /**
   * Removes a message and all below it.
   * @param {Conversation} conversation @param {string} id @returns {string[]} the ids that are gone
   */
  remove(conversation, id) {
    const ids = conversation.remove(id);
    for (const id of ids) this.#pending.delete(id);
    this.#library.removeMessages(conversation.head.id, ids);
    this.#library.writeHead(conversation.head);
    return ids;
  }

  flush() {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    const pending = [...this.#pending.values()];
    this.#pending.clear();
    for (const { conversation, message } of pending) {
      if (!this.#gone.has(conversation.head.id)) this.#library.writeMessage(conversation.head.id, message);
    }
  }
}
