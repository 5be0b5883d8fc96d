/**
 * The conversations that are kept. They lie in the browser's database, each message by itself, so that tabs
 * which write at the same time lose nothing to each other. Where the browser forbids that, they last as long
 * as the page, and so does whatever could not be written because the disk is full.
 */

import { copyOf, sameWords } from "./copy.js";
import { NotKept, openDatabase } from "./database.js";
import { byAge } from "./groups.js";
import { merging } from "./merge.js";
import { DatabaseShelf, MemoryShelf } from "./shelf.js";
import { Tabs } from "./tabs.js";
import { t } from "../words/words.js";

/**
 * @typedef {import("../core/conversation.js").Head} Head
 * @typedef {import("../core/conversation.js").Message} Message
 * @typedef {import("../core/conversation.js").Records} Records
 * @typedef {import("./shelf.js").Row} Row
 * @typedef {import("./scan.js").Hit} Hit
 * @typedef {{id: string, removed?: boolean, elsewhere: boolean}} Change elsewhere: by another tab
 * @typedef {{kind: "quota" | "blocked" | "failed", message: string}} Problem quota: the disk or the site's
 *   share of it is full; blocked: nothing can be kept (any more); failed: a write failed otherwise
 */

/**
 * Tells by events: `change` (detail: Change) when a conversation was written or removed, here or in another
 * tab, and `problem` (detail: Problem). After a problem nothing is lost while the page lives.
 *
 * Write a new conversation's head before its messages.
 */
export class Library extends EventTarget {
  #name;
  /** @type {DatabaseShelf | null} null where nothing lasts */
  #shelf = null;
  /** What the database did not take; read in front of it, and written with the next write. */
  #waiting = new MemoryShelf();
  /** @type {Map<string, Head | undefined>} what the heads that wait were made from */
  #waitingFrom = new Map();
  /** @type {Tabs} */
  #tabs;
  /** @type {Promise<import("./searcher.js").Searcher> | null} loaded with the first search */
  #searcher = null;
  /** @type {Map<string, Head>} the heads as this tab last read or wrote them: what its changes are made from */
  #bases = new Map();
  #order = 0;
  /** Where removed messages stood, for those that are put back. @type {Map<string, number>} */
  #places = new Map();
  #asked = false; // whether the browser was asked not to clear the database
  /** @type {Problem["kind"] | null} the problem that was told and is not over */
  #troubled = null;

  /**
   * @param {string} [name] the database's
   * @returns {Promise<Library>} always; see `lasting`
   */
  static async open(name = "fastpath") {
    const library = new Library(name);
    await library.#open();
    return library;
  }

  /** @private Use `Library.open`. @param {string} name */
  constructor(name) {
    super();
    this.#name = name;
    this.#tabs = new Tabs(name, (change) => this.#heard(change));
  }

  /** Whether what is written outlives the page. */
  get lasting() {
    return this.#shelf !== null;
  }

  /** @returns {Promise<Head[]>} pinned ones first, then the newest */
  async list() {
    const heads = new Map((await this.#read((shelf) => shelf.heads())).map((head) => [head.id, head]));
    return [...heads.values()].sort(byAge);
  }

  /** @param {string} id @returns {Promise<Head | undefined>} */
  async head(id) {
    return (await this.#read((shelf) => shelf.head(id))).findLast((found) => found !== undefined);
  }

  /** @param {string} id @returns {Promise<Records | undefined>} its messages in the order in which they were made */
  async read(id) {
    const records = await this.#records(id);
    if (records !== undefined) this.#bases.set(id, structuredClone(records.head));
    return records;
  }

  /**
   * Writes a whole conversation, or puts a removed one back. Messages that it lacks stay.
   * @param {Records} records
   */
  async write({ head, messages }) {
    await this.#put([head], messages.map((message) => this.#row(head.id, message)));
  }

  /**
   * Takes in a conversation from elsewhere; under new ids if its own are in use.
   * @param {Records} records @returns {Promise<Records | undefined>} as it was taken in; undefined if the same
   *   is there
   */
  async add(records) {
    const there = await this.#records(records.head.id);
    if (there !== undefined && sameWords(there, records)) return undefined;
    const ids = records.messages.map(({ id }) => id);
    const used = there !== undefined || (await this.#read((shelf) => shelf.holdsAny(ids))).includes(true);
    const added = used ? copyOf(records) : records;
    await this.write(added);
    return added;
  }

  /** Writes what was changed in a head since it was read or written here. @param {Head} head */
  async writeHead(head) {
    await this.#put([head], []);
  }

  /** @param {string} conversationId @param {Message} message */
  async writeMessage(conversationId, message) {
    await this.#put([], [this.#row(conversationId, message)]);
  }

  /**
   * Changes some fields of a head and leaves the others to whoever else is writing it.
   * @param {string} id @param {Partial<Pick<Head, "title" | "named" | "pinned">>} changes
   * @returns {Promise<Head | undefined>} the head as it is now; undefined if there is no such conversation
   */
  async changeHead(id, changes) {
    const stored = await this.head(id);
    if (stored === undefined) return undefined;
    const head = { ...stored, ...changes };
    await this.#put([head], [], stored);
    return head;
  }

  /**
   * Removes a conversation.
   * @param {string} id @returns {Promise<Records | undefined>} what is gone: `write` puts it back; undefined if
   *   nothing is
   */
  async remove(id) {
    const records = await this.#records(id);
    if (!(await this.#try(async () => this.#shelf?.remove(id)))) return undefined;
    await this.#waiting.remove(id);
    this.#bases.delete(id);
    this.#tell({ id, removed: true });
    await this.#putWaiting();
    return records;
  }

  /** @param {string} conversationId @param {string[]} ids */
  async removeMessages(conversationId, ids) {
    /** @type {Row[]} */
    let gone = [];
    if (!(await this.#try(async () => (gone = (await this.#shelf?.removeRows(conversationId, ids)) ?? [])))) return;
    gone.push(...(await this.#waiting.removeRows(conversationId, ids)));
    for (const { id, order } of gone) this.#places.set(id, order);
    this.#tell({ id: conversationId });
    await this.#putWaiting();
  }

  /**
   * Conversations for export; unlike `read` not to be changed and written.
   * @param {string[]} [ids] all of them without @returns {Promise<Records[]>}
   */
  async all(ids) {
    /** @type {Records[]} */
    const all = [];
    for (const id of ids ?? (await this.list()).map((head) => head.id)) {
      const records = await this.#records(id);
      if (records !== undefined) all.push(records);
    }
    return all;
  }

  /**
   * The places where all words of a text are found, whatever their case and accents: the newest first, not
   * all if there are very many.
   * @param {string} text
   * @returns {Promise<Hit[]>} fails with an AbortError when another search begins before this one has ended
   */
  async search(text) {
    this.#searcher ??= import("./searcher.js").then(({ Searcher }) => new Searcher(this.#name));
    return (await this.#searcher).search(text, this.lasting, {
      heads: async () => (await this.list()).filter(({ id }) => this.#waiting.has(id)),
      rows: (id) => this.#waiting.rows(id),
    });
  }

  /** Lets go of the database and of the other tabs; for tests. */
  close() {
    this.#tabs.close();
    this.#searcher?.then((searcher) => searcher.close());
    this.#shelf?.close();
  }

  async #open() {
    try {
      const database = await openDatabase(this.#name, (why) => this.#closed(why));
      this.#shelf = new DatabaseShelf(database);
      this.#shelf.sweep().catch(() => undefined); // the next page's turn
    } catch (error) {
      const reason = error instanceof NotKept ? error.reason : "forbidden";
      // Whoever opens the library listens only once it is open.
      setTimeout(() => this.#problem("blocked", t(`keep.notKept.${reason}`)));
    }
  }

  /** @param {"newer" | "gone"} why */
  #closed(why) {
    this.#shelf = null;
    if (why === "gone") this.#open();
    else this.#problem("blocked", t("keep.notKept.newer"));
  }

  /** @param {string} id @returns {Promise<Records | undefined>} */
  async #records(id) {
    const head = await this.head(id);
    if (head === undefined) return undefined;
    const rows = new Map((await this.#read((shelf) => shelf.rows(id))).flat().map((row) => [row.id, row]));
    const inOrder = [...rows.values()].sort((one, other) => one.order - other.order);
    return { head, messages: inOrder.map(({ conversation, order, ...message }) => message) };
  }

  /**
   * Reads from the database and from what waits in front of it.
   * @template T @param {(shelf: import("./shelf.js").Shelf) => Promise<T>} ask
   * @returns {Promise<(T extends (infer Item)[] ? Item : T)[]>} the later ones count
   */
  async #read(ask) {
    const stored = this.#shelf === null ? [] : await ask(this.#shelf);
    return /** @type {any} */ ([stored, this.#waiting.empty ? [] : await ask(this.#waiting)].flat());
  }

  /** @param {string} conversation @param {Message} message @returns {Row} */
  #row(conversation, message) {
    this.#order = Math.max(this.#order + 1, Date.now() * 1000); // rises, in step with other tabs
    return { ...message, conversation, order: this.#places.get(message.id) ?? this.#order };
  }

  /**
   * Writes these, and what waits. What fails then waits.
   * @param {Head[]} heads @param {Row[]} rows @param {Head} [base] what the heads were made from, if not from
   *   what was last read
   */
  async #put(heads, rows, base) {
    const shelf = this.#shelf;
    const waiting = shelf === null ? { heads: [], rows: [] } : this.#waiting.everything();
    // Copies, made now: their owner goes on changing them.
    const edits = structuredClone(heads).map((head) => ({ head, base: base ?? this.#bases.get(head.id) }));
    if (base === undefined) for (const { head } of edits) this.#bases.set(head.id, head);
    const waited = waiting.heads.map((head) => ({ head, base: this.#waitingFrom.get(head.id) }));
    const ids = [...waiting.heads, ...heads].map((head) => head.id);
    const all = [...waiting.rows, ...rows];
    if (shelf !== null && (await this.#try(() => shelf.put(merging([...waited, ...edits]), ids, all)))) {
      this.#waiting.drop(waiting);
      for (const head of waiting.heads) if (!this.#waiting.has(head.id)) this.#waitingFrom.delete(head.id);
      this.#askToStay();
    } else {
      for (const { head, base } of edits) if (!this.#waitingFrom.has(head.id)) this.#waitingFrom.set(head.id, base);
      await this.#waiting.put(merging(edits), ids, rows);
    }
    for (const id of new Set([...heads.map((head) => head.id), ...rows.map((row) => row.conversation)])) this.#tell({ id });
  }

  /** There may be room again. */
  async #putWaiting() {
    if (this.#shelf !== null && !this.#waiting.empty) await this.#put([], []);
  }

  /** @param {() => Promise<unknown>} act @returns {Promise<boolean>} whether it went well; if not, it was told */
  async #try(act) {
    try {
      await act();
      if (this.#troubled !== "blocked") this.#troubled = null;
      return true;
    } catch (error) {
      const full = error instanceof DOMException && error.name === "QuotaExceededError";
      this.#problem(full ? "quota" : "failed", full ? t("keep.full") : t("keep.failed", { why: String(error) }));
      return false;
    }
  }

  /** Tells a problem, once until it is over. @param {Problem["kind"]} kind @param {string} message */
  #problem(kind, message) {
    if (this.#troubled === kind) return;
    this.#troubled = kind;
    this.dispatchEvent(new CustomEvent("problem", { detail: { kind, message } }));
  }

  /** Asks the browser, once, not to clear the database when its disk gets full. */
  #askToStay() {
    if (this.#asked) return;
    this.#asked = true;
    navigator.storage?.persist?.().catch(() => undefined); // then it may be cleared one day
  }

  /** @param {import("./tabs.js").Change} change */
  #tell(change) {
    if (this.lasting) this.#tabs.tell(change);
    this.dispatchEvent(new CustomEvent("change", { detail: { ...change, elsewhere: false } }));
  }

  /** @param {import("./tabs.js").Change} change */
  #heard(change) {
    if (!this.lasting) return; // what the other tab wrote cannot be read here
    if (change.removed) this.#bases.delete(change.id);
    this.dispatchEvent(new CustomEvent("change", { detail: { ...change, elsewhere: true } }));
  }
}
