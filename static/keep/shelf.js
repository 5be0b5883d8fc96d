/**
 * Where conversations lie: `DatabaseShelf` in the browser's database, `MemoryShelf` in this page alone. Both
 * can be read and written in the same way.
 *
 * @typedef {import("../core/conversation.js").Head} Head
 * @typedef {import("../core/conversation.js").Message} Message
 * @typedef {import("../core/conversation.js").Records} Records
 *
 * @typedef {Message & {conversation: string, order: number}} Row a message as it is stored. Rows of one
 *   conversation are sorted by `order`, so that siblings keep the order in which they were made
 *
 * @typedef {object} Shelf
 * @property {() => Promise<Head[]>} heads
 * @property {(id: string) => Promise<Head | undefined>} head
 * @property {(conversation: string) => Promise<Row[]>} rows in their order
 * @property {(ids: string[]) => Promise<boolean>} holdsAny whether there is a message with one of these ids
 * @property {(heads: ((stored: Map<string, Head>) => Head[]), ids: string[], rows: Row[]) => Promise<void>} put
 *   writes all or nothing: the rows, and the heads that `heads` makes of those that are stored under `ids`
 * @property {(conversation: string) => Promise<void>} remove
 * @property {(conversation: string, ids: string[]) => Promise<Row[]>} removeRows gives back what is gone
 */

import { result, written } from "./database.js";

const FORGOTTEN = 86_400_000; // milliseconds after which a message without a conversation is swept away

/** @implements {Shelf} */
export class DatabaseShelf {
  #database;

  /** @param {IDBDatabase} database */
  constructor(database) {
    this.#database = database;
  }

  /** @returns {Promise<Head[]>} */
  heads() {
    return result(this.#database.transaction("conversations").objectStore("conversations").getAll());
  }

  /** @param {string} id @returns {Promise<Head | undefined>} */
  head(id) {
    return result(this.#database.transaction("conversations").objectStore("conversations").get(id));
  }

  /** @param {string} conversation @returns {Promise<Row[]>} */
  async rows(conversation) {
    const index = this.#database.transaction("messages").objectStore("messages").index("conversation");
    return inOrder(await result(index.getAll(conversation)));
  }

  /** @param {string[]} ids */
  async holdsAny(ids) {
    const messages = this.#database.transaction("messages").objectStore("messages");
    const keys = await Promise.all(ids.map((id) => result(messages.getKey(id))));
    return keys.some((key) => key !== undefined);
  }

  /** @type {Shelf["put"]} */
  async put(heads, ids, rows) {
    const transaction = this.#database.transaction(["conversations", "messages"], "readwrite");
    const done = written(transaction);
    try {
      const conversations = transaction.objectStore("conversations");
      const stored = await Promise.all(ids.map((id) => result(conversations.get(id))));
      for (const head of heads(byId(stored))) conversations.put(head);
      const messages = transaction.objectStore("messages");
      const before = await Promise.all(rows.map((row) => result(messages.get(row.id))));
      rows.forEach((row, at) => messages.put({ ...row, order: before[at]?.order ?? row.order }));
    } catch (error) {
      done.catch(() => undefined); // this error says more
      if (transaction.error === null) transaction.abort();
      throw error;
    }
    await done;
  }

  /** @param {string} conversation */
  async remove(conversation) {
    const transaction = this.#database.transaction(["conversations", "messages"], "readwrite");
    const done = written(transaction);
    transaction.objectStore("conversations").delete(conversation);
    deleteRows(transaction.objectStore("messages"), conversation);
    await done;
  }

  /** @param {string} _ @param {string[]} ids */
  async removeRows(_, ids) {
    const transaction = this.#database.transaction("messages", "readwrite");
    const done = written(transaction);
    const messages = transaction.objectStore("messages");
    const gone = ids.map((id) => result(messages.get(id)));
    for (const id of ids) messages.delete(id);
    const [rows] = await Promise.all([Promise.all(gone), done]);
    return rows.filter((row) => row !== undefined);
  }

  /** Removes old messages without a conversation: one that was still being written while another tab removed it. */
  async sweep() {
    const transaction = this.#database.transaction(["conversations", "messages"], "readwrite");
    const done = written(transaction);
    const known = new Set(await result(transaction.objectStore("conversations").getAllKeys()));
    const cursor = transaction.objectStore("messages").index("conversation").openCursor(null, "nextunique");
    cursor.onsuccess = () => {
      const at = cursor.result;
      if (at === null) return;
      const old = at.value.created < Date.now() - FORGOTTEN;
      if (old && !known.has(at.key)) deleteRows(transaction.objectStore("messages"), /** @type {string} */ (at.key));
      at.continue();
    };
    await done;
  }

  close() {
    this.#database.close();
  }
}

/** Copies go in and come out, as with a database. @implements {Shelf} */
export class MemoryShelf {
  /** @type {Map<string, Head>} */
  #heads = new Map();
  /** @type {Map<string, Map<string, Row>>} */
  #rows = new Map();

  get empty() {
    return this.#heads.size === 0 && this.#rows.size === 0;
  }

  async heads() {
    return structuredClone([...this.#heads.values()]);
  }

  /** @param {string} id */
  async head(id) {
    return structuredClone(this.#heads.get(id));
  }

  /** @param {string} conversation */
  async rows(conversation) {
    return inOrder(structuredClone([...(this.#rows.get(conversation)?.values() ?? [])]));
  }

  /** @param {string[]} ids */
  async holdsAny(ids) {
    return [...this.#rows.values()].some((rows) => ids.some((id) => rows.has(id)));
  }

  /** @type {Shelf["put"]} */
  async put(heads, ids, rows) {
    for (const head of heads(byId(ids.map((id) => this.#heads.get(id))))) this.#heads.set(head.id, structuredClone(head));
    for (const row of rows) {
      const there = this.#rows.get(row.conversation) ?? new Map();
      this.#rows.set(row.conversation, there);
      there.set(row.id, { ...structuredClone(row), order: there.get(row.id)?.order ?? row.order });
    }
  }

  /** @param {string} conversation */
  async remove(conversation) {
    this.#heads.delete(conversation);
    this.#rows.delete(conversation);
  }

  /** @param {string} conversation @param {string[]} ids */
  async removeRows(conversation, ids) {
    const there = this.#rows.get(conversation);
    const gone = ids.flatMap((id) => there?.get(id) ?? []);
    for (const id of ids) there?.delete(id);
    if (there?.size === 0) this.#rows.delete(conversation);
    return gone;
  }

  /** @param {string} conversation */
  has(conversation) {
    return this.#heads.has(conversation) || this.#rows.has(conversation);
  }

  /** @returns {{heads: Head[], rows: Row[]}} what lies here, not copies */
  everything() {
    const rows = [...this.#rows.values()].flatMap((there) => [...there.values()]);
    return { heads: [...this.#heads.values()], rows };
  }

  /** Removes these but for what was written anew since. @param {{heads: Head[], rows: Row[]}} taken */
  drop({ heads, rows }) {
    for (const head of heads) if (this.#heads.get(head.id) === head) this.#heads.delete(head.id);
    for (const row of rows) {
      const there = this.#rows.get(row.conversation);
      if (there?.get(row.id) === row) there.delete(row.id);
      if (there?.size === 0) this.#rows.delete(row.conversation);
    }
  }
}

/** @param {(Head | undefined)[]} heads @returns {Map<string, Head>} */
function byId(heads) {
  return new Map(heads.flatMap((head) => (head === undefined ? [] : [[head.id, head]])));
}

/** @param {Row[]} rows */
function inOrder(rows) {
  return rows.sort((one, other) => one.order - other.order);
}

/** @param {IDBObjectStore} messages @param {string} conversation */
function deleteRows(messages, conversation) {
  const keys = messages.index("conversation").getAllKeys(conversation);
  keys.onsuccess = () => keys.result.forEach((key) => messages.delete(key));
}
