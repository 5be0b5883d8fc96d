/** Searches the database for the page. A newer question ends the one before. */

import { openDatabase } from "./database.js";
import { scan } from "./scan.js";
import { DatabaseShelf } from "./shelf.js";

let latest = 0;
/** @type {Promise<DatabaseShelf> | null} */
let shelf = null;

/** @param {MessageEvent<{number: number, name: string, text: string}>} event */
self.onmessage = async ({ data: { number, name, text } }) => {
  latest = number;
  try {
    shelf ??= openDatabase(name, () => (shelf = null)).then((database) => new DatabaseShelf(database));
    const hits = await scan(await shelf, text, () => number === latest);
    if (number === latest) self.postMessage({ number, hits });
  } catch (error) {
    shelf = null;
    self.postMessage({ number, error: String(error) });
  }
};
