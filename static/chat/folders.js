/** The files of dropped folders. */

import { MOST_FILES } from "./files.js";

const DEEPEST = 8;
const SKIPPED = new Set(["node_modules", "__pycache__"]);

/**
 * Hidden files, and folders that others' programs fill, are left out.
 * @param {FileSystemEntry[]} entries @returns {Promise<File[]>} in order, one more than fit at most
 */
export async function filesIn(entries) {
  /** @type {File[]} */
  const found = [];
  for (const entry of entries) await collect(entry, found, 0);
  return found;
}

/** @param {FileSystemEntry} entry @param {File[]} found @param {number} depth */
async function collect(entry, found, depth) {
  const skipped = depth > 0 && (entry.name.startsWith(".") || SKIPPED.has(entry.name));
  if (skipped || depth > DEEPEST || found.length > MOST_FILES) return;
  if (entry.isFile) {
    const file = await fileOf(/** @type {FileSystemFileEntry} */ (entry));
    if (file !== null) found.push(file);
  } else {
    const inside = await entriesOf(/** @type {FileSystemDirectoryEntry} */ (entry));
    for (const each of inside) await collect(each, found, depth + 1);
  }
}

/** Under its path in the folder that was dropped. @param {FileSystemFileEntry} entry @returns {Promise<File | null>} */
function fileOf(entry) {
  const path = entry.fullPath.replace(/^\//, "");
  return new Promise((done) => entry.file((file) => done(new File([file], path)), () => done(null)));
}

/** @param {FileSystemDirectoryEntry} folder @returns {Promise<FileSystemEntry[]>} sorted by name */
async function entriesOf(folder) {
  const reader = folder.createReader();
  /** @type {FileSystemEntry[]} */
  const all = [];
  for (;;) {
    /** @type {FileSystemEntry[]} */
    const some = await new Promise((done) => reader.readEntries(done, () => done([])));
    if (some.length === 0) break; // a reader gives a hundred at a time
    all.push(...some);
  }
  return all.sort((a, b) => a.name.localeCompare(b.name));
}
