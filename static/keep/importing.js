/** Takes files of conversations into the library. */

import { NotReadable, fromText } from "./formats.js";
import { isZip, unzip } from "./zip.js";
import { t } from "../words/words.js";

/**
 * @typedef {import("./formats.js").Skipped} Skipped
 * @typedef {import("./library.js").Library} Library
 */

const LARGEST = 256 * 1024 * 1024; // bytes; the browser's longest text is about twice that

/**
 * @param {Library} library @param {Iterable<File>} files
 * @returns {Promise<{added: number, known: number, skipped: Skipped[]}>} known: how many were there already
 */
export async function importFiles(library, files) {
  const told = { added: 0, known: 0, skipped: /** @type {Skipped[]} */ ([]) };
  for (const file of files) {
    try {
      for (const { name, text } of await textsOf(file)) await importText(library, name, text, told);
    } catch (error) {
      told.skipped.push({ what: file.name, why: whyOf(error) });
    }
  }
  return told;
}

/**
 * @param {Library} library @param {string} name @param {string} text
 * @param {{added: number, known: number, skipped: Skipped[]}} told
 */
async function importText(library, name, text, told) {
  try {
    const { conversations, skipped } = fromText(text);
    told.skipped.push(...skipped);
    for (const records of conversations) {
      if ((await library.add(records)) === undefined) told.known++;
      else told.added++;
    }
  } catch (error) {
    told.skipped.push({ what: name, why: whyOf(error) });
  }
}

/** @param {File} file @returns {Promise<{name: string, text: string}[]>} */
async function textsOf(file) {
  if (file.size > LARGEST) throw new NotReadable(t("keep.import.large", { n: LARGEST / 1024 / 1024 }));
  const bytes = new Uint8Array(await file.arrayBuffer());
  if (!isZip(bytes)) return [{ name: file.name, text: new TextDecoder().decode(bytes) }];
  const inner = await unzip(bytes, LARGEST);
  return inner.filter(({ name }) => /\.jsonl?$/i.test(name));
}

/** @param {unknown} error */
function whyOf(error) {
  return error instanceof NotReadable ? error.message : t("keep.import.damaged", { why: error instanceof Error ? error.message : String(error) });
}
