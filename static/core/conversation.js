/**
 * One conversation as data: a tree of messages, of which the reader follows one path. Knows nothing of the
 * document, of storage or of the network.
 *
 * Every message names its parent, so an edit or a regeneration is a sibling and nothing is replaced. `leaf`
 * is the end of the path that is shown.
 */

/**
 * @typedef {"streaming" | "done" | "stopped" | "failed"} State
 * @typedef {{name: string, text: string, tokens: number | null}} TextFile a file that goes with a message
 * @typedef {{text: string, logprob: number, alternatives: {text: string, logprob: number}[]}} TokenScore
 *
 * @typedef {object} Facts what is known of how an answer came about; times in milliseconds
 * @property {string} model
 * @property {Record<string, unknown>} request the request's fields but for `messages`: with these, and the
 *   seed, the same server gives the same answer
 * @property {number} started milliseconds since 1970
 * @property {number | null} seed as the server echoed it
 * @property {string | null} finish finish reason, or "stopped" where the reader stopped it
 * @property {number | null} ttft from sending the request to the first text
 * @property {number | null} rate tokens per second after the first
 * @property {number | null} itl50 median time between tokens
 * @property {number | null} itl95
 * @property {number | null} promptTokens
 * @property {number | null} cachedTokens of the prompt
 * @property {number | null} completionTokens
 *
 * @typedef {object} Message
 * @property {string} id
 * @property {string | null} parent the message before it, null for a first one
 * @property {"user" | "assistant"} role
 * @property {string} content
 * @property {State} state
 * @property {number} created milliseconds since 1970
 * @property {TextFile[]} [files]
 * @property {Facts} [facts] of its last part, if it was continued
 * @property {Facts[]} [earlier] of the parts before that
 * @property {TokenScore[]} [scores]
 * @property {Stream} [stream] where a growing answer can be resumed
 *
 * @typedef {object} Stream
 * @property {string} id the stream's name
 * @property {number} number of the last event that `content` holds
 * @property {Record<string, unknown>} [request] the facts of what was asked
 * @property {{seed: number | null, model: string}} [begin] as the server echoed it
 *
 * @typedef {object} Head a conversation without its messages
 * @property {string} id
 * @property {string} title
 * @property {boolean} named whether the reader chose the title
 * @property {boolean} pinned
 * @property {number} created milliseconds since 1970
 * @property {number} updated
 * @property {string | null} leaf
 * @property {string} system the system prompt
 * @property {Record<string, unknown>} settings the conversation's own sampling fields
 *
 * @typedef {{head: Head, messages: Message[]}} Records a whole conversation, as it is stored and exported
 */

const TITLE_LENGTH = 60; // characters

/** @returns {string} */
export function newId() {
  // randomUUID is missing where the page came over plain HTTP from another machine.
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** @param {Partial<Head>} [given] @returns {Head} */
export function newHead(given = {}) {
  const now = Date.now();
  return {
    id: newId(), title: "", named: false, pinned: false, created: now, updated: now, leaf: null,
    system: "", settings: {}, ...given,
  };
}

export class Conversation {
  /** @type {Head} */
  head;
  /** @type {Map<string, Message>} */
  #messages = new Map();
  /** @type {Map<string | null, string[]>} in order of creation */
  #children = new Map();

  /** @param {Records} [records] */
  constructor({ head, messages } = { head: newHead(), messages: [] }) {
    this.head = head;
    for (const message of messages) this.#insert(message);
    if (head.leaf === null || !this.#messages.has(head.leaf)) head.leaf = messages.at(-1)?.id ?? null;
  }

  get empty() {
    return this.#messages.size === 0;
  }

  /** @returns {Records} */
  records() {
    return { head: this.head, messages: [...this.#messages.values()] };
  }

  /** @param {string | null} id @returns {Message | undefined} */
  find(id) {
    return id === null ? undefined : this.#messages.get(id);
  }

  /** The messages from the first to the leaf, or to another one. @param {string | null} [end] @returns {Message[]} */
  path(end = this.head.leaf) {
    /** @type {Message[]} */
    const path = [];
    const seen = new Set(); // a damaged import may hold a circle
    for (let at = this.find(end); at && !seen.has(at.id); at = this.find(at.parent)) {
      seen.add(at.id);
      path.push(at);
    }
    return path.reverse();
  }

  /** All messages with the same parent, this one included. @param {string} id @returns {string[]} */
  siblings(id) {
    const message = this.find(id);
    return message === undefined ? [] : (this.#children.get(message.parent) ?? []);
  }

  /** @param {string | null} id null for the first messages @returns {string[]} */
  children(id) {
    return this.#children.get(id) ?? [];
  }

  /**
   * Adds a message and makes it the leaf.
   * @param {string | null} parent
   * @param {Pick<Message, "role" | "content"> & Partial<Message>} given
   * @returns {Message}
   */
  add(parent, given) {
    /** @type {Message} */
    const message = { id: newId(), state: "done", created: Date.now(), ...given, parent };
    this.#insert(message);
    this.head.leaf = message.id;
    this.head.updated = message.created;
    if (!this.head.named && this.head.title === "" && message.role === "user") {
      this.head.title = titleOf(message.content);
    }
    return message;
  }

  /** Follows the path through this message, and from there the newest. @param {string} id */
  select(id) {
    let leaf = id;
    for (let next = this.children(id).at(-1); next !== undefined; next = this.children(next).at(-1)) leaf = next;
    this.head.leaf = leaf;
  }

  /**
   * Removes a message and all below it. The path then goes through its nearest sibling, else to its parent.
   * @param {string} id @returns {string[]} the ids that are gone
   */
  remove(id) {
    const message = this.find(id);
    if (message === undefined) return [];
    const siblings = this.siblings(id);
    const at = siblings.indexOf(id);
    const onPath = this.path().some((shown) => shown.id === id);
    const gone = this.#below(id);
    for (const each of gone) {
      this.#messages.delete(each);
      this.#children.delete(each);
    }
    siblings.splice(at, 1);
    if (onPath) {
      const next = siblings[Math.min(at, siblings.length - 1)];
      if (next === undefined) this.head.leaf = message.parent;
      else this.select(next);
    }
    return gone;
  }

  /**
   * Takes a removal back.
   * @param {Message[]} messages those that are gone @param {string[]} order the ids of all messages before it
   */
  putBack(messages, order) {
    const all = new Map([...messages, ...this.#messages.values()].map((message) => [message.id, message]));
    this.#messages.clear();
    this.#children.clear();
    for (const id of new Set([...order, ...all.keys()])) {
      const message = all.get(id);
      if (message !== undefined) this.#insert(message);
    }
  }

  /**
   * Takes in what is stored of this conversation, as another tab left it. The path stays if it can.
   * @param {Records} stored @returns {string[]} the ids that are new, gone or changed
   */
  absorb(stored) {
    const changed = [];
    const ids = new Set(stored.messages.map(({ id }) => id));
    for (const id of [...this.#messages.keys()]) {
      if (!ids.has(id)) changed.push(id, ...this.remove(id));
    }
    for (const message of stored.messages) {
      const own = this.#messages.get(message.id);
      if (own !== undefined && own.content === message.content && own.state === message.state) continue;
      changed.push(message.id);
      if (own === undefined) this.#insert(message);
      else Object.assign(own, message);
    }
    const { leaf } = this.head;
    Object.assign(this.head, stored.head);
    // Who reads along follows to what has been said since.
    if (leaf !== null && this.#messages.has(leaf)) this.select(leaf);
    return changed;
  }

  /**
   * What the server is sent: everything that was said on the path, in order. An answer without text (it
   * failed or was stopped before its first token) was not said.
   * @param {string | null} end @param {string} [system] another system prompt than the conversation's own
   * @returns {{role: string, content: string}[]}
   */
  wire(end, system = this.head.system) {
    const said = this.path(end).filter((message) => message.content !== "" || message.files?.length);
    const turns = said.map((message) => ({ role: message.role, content: withFiles(message) }));
    return system.trim() === "" ? turns : [{ role: "system", content: system }, ...turns];
  }

  /** @param {Message} message */
  #insert(message) {
    this.#messages.set(message.id, message);
    const children = this.#children.get(message.parent);
    if (children === undefined) this.#children.set(message.parent, [message.id]);
    else children.push(message.id);
  }

  /** @param {string} id @returns {string[]} the message and all below it */
  #below(id) {
    const found = [id];
    for (let at = 0; at < found.length; at++) found.push(...this.children(found[at]));
    return found;
  }
}

/** A message's own words and its files, as the model gets them. @param {Message} message */
export function withFiles({ content, files = [] }) {
  const parts = files.map(({ name, text }) => {
    let fence = "```";
    while (text.includes(fence)) fence += "`";
    return `${name}:\n${fence}\n${text}\n${fence}`;
  });
  return [...parts, ...(content === "" ? [] : [content])].join("\n\n");
}

/** @param {string} text */
export function titleOf(text) {
  const line = text.trim().split(/\s+/).join(" ");
  return line.length <= TITLE_LENGTH ? line : `${line.slice(0, TITLE_LENGTH - 1).trimEnd()}…`;
}
