/**
 * What is typed and not yet sent, by conversation: it outlives a reload, another conversation, and the tab.
 * Files that go with a draft outlive a reload, but not the tab: they may be large.
 */

/**
 * @typedef {import("../core/conversation.js").TextFile} TextFile
 * @typedef {{message: string, text: string}} Edit a message's id, and its new words so far
 * @typedef {{text: string, files: TextFile[], edit: Edit | null}} Draft
 * @typedef {{text: string, edit: Edit | null, at: number}} Kept
 */

const STORAGE_KEY = "fastpath.drafts";
const FILES_KEY = "fastpath.draft-files.";
const MOST_DRAFTS = 100; // the oldest are forgotten

/** The draft of a conversation that has no message yet: its id is another one after a reload. */
const NEW = "new";

export class Drafts {
  #storage;
  #session;
  #unkept;
  /** What storage does not take, for as long as the page lives. @type {Map<string, Draft>} */
  #memory = new Map();
  /** Drafts of conversations that were deleted, and may be put back. @type {Map<string, Draft>} */
  #aside = new Map();

  /**
   * @param {Storage | null} storage @param {Storage | null} session
   * @param {() => void} unkept is called when the browser did not store a draft
   */
  constructor(storage, session, unkept = () => {}) {
    this.#storage = storage;
    this.#session = session;
    this.#unkept = unkept;
  }

  /** @param {string | null} id of a conversation, null for a new one @returns {Draft} */
  read(id) {
    const key = id ?? NEW;
    const remembered = this.#memory.get(key);
    if (remembered !== undefined) return remembered;
    const kept = this.#all()[key];
    return { text: kept?.text ?? "", edit: kept?.edit ?? null, files: this.#readFiles(key) };
  }

  /** @param {string | null} id @param {Draft} draft an empty one is forgotten */
  write(id, { text, files, edit }) {
    const key = id ?? NEW;
    this.#memory.delete(key);
    // Another tab writes drafts too, so what is stored is read anew each time.
    const all = this.#all();
    if (text === "" && edit === null) delete all[key];
    else all[key] = { text, edit, at: Date.now() };
    const kept = store(this.#storage, STORAGE_KEY, newest(all));
    const keptFiles = store(this.#session, FILES_KEY + key, files.length === 0 ? null : files);
    if (kept && keptFiles) return;
    this.#memory.set(key, { text, files, edit });
    if (!kept) this.#unkept();
  }

  /** Its conversation was deleted: only this page still has it. @param {string} id */
  setAside(id) {
    this.#aside.set(id, this.read(id));
    this.forget(id);
  }

  /** Its conversation is there again. @param {string} id */
  bringBack(id) {
    const draft = this.#aside.get(id);
    if (draft !== undefined) this.write(id, draft);
    this.#aside.delete(id);
  }

  /** @param {string | null} id */
  forget(id) {
    this.write(id, { text: "", files: [], edit: null });
  }

  /** @returns {Record<string, Kept>} */
  #all() {
    const stored = read(this.#storage, STORAGE_KEY);
    const entries = Object.entries(stored ?? {}).filter(([, kept]) => typeof kept?.text === "string");
    return Object.fromEntries(entries);
  }

  /** @param {string} key @returns {TextFile[]} */
  #readFiles(key) {
    const files = read(this.#session, FILES_KEY + key);
    if (!Array.isArray(files)) return [];
    return files.filter((file) => typeof file?.name === "string" && typeof file.text === "string");
  }
}

/** @param {Record<string, Kept>} all */
function newest(all) {
  const entries = Object.entries(all).sort(([, a], [, b]) => b.at - a.at);
  return entries.length === 0 ? null : Object.fromEntries(entries.slice(0, MOST_DRAFTS));
}

/** @param {Storage | null} storage @param {string} key @returns {any} */
function read(storage, key) {
  try {
    return JSON.parse(storage?.getItem(key) ?? "null");
  } catch {
    return null;
  }
}

/** @param {Storage | null} storage @param {string} key @param {unknown} value null forgets it @returns {boolean} */
function store(storage, key, value) {
  try {
    if (value === null) storage?.removeItem(key);
    else storage?.setItem(key, JSON.stringify(value));
    return storage !== null || value === null;
  } catch {
    return false;
  }
}
