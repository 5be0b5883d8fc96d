/** The browser's database, with promises: opening it, its layout, and its layout's history. */

export const VERSION = 1;
const PATIENCE = 5000; // milliseconds; a browser whose storage is damaged may never answer

/** Why conversations cannot be kept: the browser forbids it, another tab is in the way, or it holds a newer layout. */
export class NotKept extends Error {
  /** @param {"forbidden" | "blocked" | "newer"} reason */
  constructor(reason) {
    super(reason);
    this.reason = reason;
  }
}

/**
 * @param {string} name
 * @param {(why: "newer" | "gone") => void} closed called when the database has been closed from elsewhere:
 *   another tab has brought a newer layout, or the reader has cleared the site's data
 * @returns {Promise<IDBDatabase>}
 */
export async function openDatabase(name, closed) {
  const database = await opened(name);
  database.onversionchange = () => {
    database.close();
    closed("newer");
  };
  database.onclose = () => closed("gone");
  return database;
}

/** @param {string} name @returns {Promise<IDBDatabase>} */
function opened(name) {
  return new Promise((resolve, reject) => {
    const request = indexedDB.open(name, VERSION);
    let given = false; // whether it was given up
    /** @param {"forbidden" | "blocked" | "newer"} reason */
    const giveUp = (reason) => {
      given = true;
      reject(new NotKept(reason));
    };
    setTimeout(giveUp, PATIENCE, "forbidden");
    request.onupgradeneeded = ({ oldVersion }) => upgrade(request.result, oldVersion);
    request.onblocked = () => giveUp("blocked");
    request.onerror = () => giveUp(request.error?.name === "VersionError" ? "newer" : "forbidden");
    request.onsuccess = () => {
      if (given) request.result.close();
      else resolve(request.result);
    };
  });
}

/**
 * Brings an older layout to this one, step by step. A new layout is a new step at the end, never a change of
 * one that is there.
 * @param {IDBDatabase} database @param {number} from the layout it has, 0 for none
 */
function upgrade(database, from) {
  if (from < 1) {
    database.createObjectStore("conversations", { keyPath: "id" });
    database.createObjectStore("messages", { keyPath: "id" }).createIndex("conversation", "conversation");
  }
}

/** @template T @param {IDBRequest<T>} request @returns {Promise<T>} */
export function result(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

/** Waits until a transaction has been written. @param {IDBTransaction} transaction @returns {Promise<void>} */
export function written(transaction) {
  return new Promise((resolve, reject) => {
    transaction.oncomplete = () => resolve();
    transaction.onabort = () => reject(transaction.error ?? new DOMException("The write was given up", "AbortError"));
  });
}
