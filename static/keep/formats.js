/** Conversations as text, and back: the page's own form, and the exports of other pages. */

import { fromLlama, isLlama, sessions } from "./from_llama.js";
import { fromOpenWebui, isOpenWebui } from "./from_open_webui.js";
import { fromOwn, isOwn } from "./from_own.js";
import { fromShareGpt, isShareGpt, isTurn } from "./from_sharegpt.js";
import { array, object, string } from "./loose.js";
import { t } from "../words/words.js";

export { toMarkdown } from "./markdown.js";

/**
 * @typedef {import("../core/conversation.js").Records} Records
 * @typedef {{what: string, why: string}} Skipped
 */

const FORMAT = "fastpath-conversations";
const VERSION = 1; // a reader knows every version up to its own

/** [how to know it, how to read it], the surest first */
const READERS = /** @type {const} */ ([
  [isOwn, fromOwn],
  [isLlama, fromLlama],
  [isOpenWebui, fromOpenWebui],
  [isShareGpt, fromShareGpt],
]);

/** A text that is no export at all. Its message tells the reader why. */
export class NotReadable extends Error {}

/** @param {Records[]} conversations */
export function toJson(conversations) {
  return jsonParts(conversations).join("");
}

/** The same in parts, for a file that may be longer than the longest text. @param {Records[]} conversations */
export function jsonParts(conversations) {
  const head = JSON.stringify({ format: FORMAT, version: VERSION, exported: new Date().toISOString() }).slice(0, -1);
  const items = conversations.map((records, at) => `${at === 0 ? "" : ","}\n${JSON.stringify(records, null, 1)}`);
  return [head, ',"conversations":[', ...items, "\n]}\n"];
}

/**
 * Reads an export of this page, of llama.cpp's, of open-webui, or in ShareGPT's form.
 * @param {string} text
 * @returns {{conversations: Records[], skipped: Skipped[]}} skipped: what could not be read, or only in part
 * @throws {NotReadable}
 */
export function fromText(text) {
  /** @type {Skipped[]} */
  const skipped = [];
  const items = itemsOf(valuesOf(text, skipped));
  const conversations = items.flatMap((item, at) => {
    const records = readItem(item, at, skipped);
    return records === undefined ? [] : [records];
  });
  return { conversations, skipped };
}

/** What the text holds: one value, or one a line. @param {string} text @param {Skipped[]} skipped @returns {unknown[]} */
function valuesOf(text, skipped) {
  const content = text.replace(/^\uFEFF/, "").trim();
  if (content === "") throw new NotReadable(t("keep.import.empty"));
  try {
    return [JSON.parse(content)];
  } catch (error) {
    const lines = content.split(/\r?\n/);
    const values = lines.length < 2 ? [] : lines.flatMap((line, at) => valueOf(line, at, skipped));
    if (values.some((value) => object(value) !== undefined)) return values;
    throw new NotReadable(t("keep.import.notJson", { why: error instanceof Error ? error.message : String(error) }));
  }
}

/** @param {string} line @param {number} at @param {Skipped[]} skipped */
function valueOf(line, at, skipped) {
  if (line.trim() === "") return [];
  try {
    return [JSON.parse(line)];
  } catch {
    skipped.push({ what: t("keep.import.line", { n: at + 1 }), why: t("keep.import.lineNotJson") });
    return [];
  }
}

/** @param {unknown[]} values @returns {unknown[]} what should be conversations */
function itemsOf(values) {
  if (values.some((value) => object(value)?.type === "session")) return sessions(values);
  if (values.length > 1) return values;
  const [value] = values;
  const own = object(value);
  if (own?.format === FORMAT) {
    if (typeof own.version !== "number" || own.version > VERSION) throw new NotReadable(t("keep.import.newer"));
    const list = array(own.conversations);
    if (list === undefined) throw new NotReadable(t("keep.import.noList"));
    return list;
  }
  const list = array(value);
  if (list === undefined) return [value];
  if (list.some((item) => object(item)?.type === "session")) return sessions(list);
  return list.length > 0 && list.every(isTurn) ? [{ messages: list }] : list;
}

/** @param {unknown} item @param {number} at @param {Skipped[]} skipped @returns {Records | undefined} */
function readItem(item, at, skipped) {
  const found = object(item);
  const [, read] = READERS.find(([knows]) => found !== undefined && knows(found)) ?? [];
  const number = t("keep.import.item", { n: at + 1 });
  if (found === undefined || read === undefined) {
    skipped.push({ what: number, why: t("keep.import.unknown") });
    return undefined;
  }
  /** @type {Map<string, number>} */
  const notes = new Map();
  try {
    const records = read(found, (why, n = 1) => notes.set(why, (notes.get(why) ?? 0) + n));
    const what = records.head.title || number;
    for (const [why, n] of notes) skipped.push({ what, why: t(`keep.import.${why}`, { n }) });
    return records;
  } catch (error) {
    // What nobody has thought of; the other conversations are read all the same.
    skipped.push({ what: string(found.title) ?? number, why: t("keep.import.damaged", { why: String(error) }) });
    return undefined;
  }
}
