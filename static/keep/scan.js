/** Finds words in conversations. Knows nothing of where they lie, so that a worker and the page can share it. */

import { Folded, fold } from "./fold.js";

/**
 * @typedef {import("../core/conversation.js").Head} Head
 * @typedef {import("./shelf.js").Row} Row
 *
 * @typedef {object} Hit
 * @property {Head} head
 * @property {string | null} messageId null where the title was found
 * @property {string} excerpt
 * @property {[number, number]} at where the first word begins and ends in the excerpt
 * @property {[number, number][]} marks all words in the excerpt, in order
 *
 * @typedef {{heads: () => Promise<Head[]>, rows: (conversation: string) => Promise<Row[]>}} Source
 */

const MOST_HITS = 100;
const MOST_OF_ONE = 5; // messages of one conversation, so that it does not hide the others
const BEFORE = 40; // characters of the excerpt before the first word
const LENGTH = 160;

/**
 * @param {Source} source @param {string} text @param {() => boolean} alive asked now and then: whether to go on
 * @returns {Promise<Hit[]>}
 */
export async function scan(source, text, alive) {
  const words = wordsOf(text);
  if (words.length === 0) return [];
  /** @type {Hit[]} */
  const hits = [];
  const heads = (await source.heads()).sort((one, other) => other.updated - one.updated);
  for (const head of heads) {
    if (!alive() || hits.length >= MOST_HITS) break;
    hits.push(...scanOne(head, await source.rows(head.id), words));
  }
  return hits.slice(0, MOST_HITS);
}

/** @param {string} text */
function wordsOf(text) {
  return [...new Set(fold(text).split(/\s+/).filter((word) => word !== ""))];
}

/**
 * The title if it holds all words, and each message that holds them, with the title's help.
 * @param {Head} head @param {Row[]} rows @param {string[]} words @returns {Hit[]}
 */
function scanOne(head, rows, words) {
  const title = fold(head.title);
  const missing = words.filter((word) => !title.includes(word));
  /** @type {Hit[]} */
  const hits = missing.length === 0 ? [{ head, messageId: null, ...excerpt(head.title, words) }] : [];
  for (let at = rows.length - 1; at >= 0 && hits.length < MOST_OF_ONE; at--) {
    const text = textOf(rows[at]);
    const folded = fold(text);
    if (!missing.every((word) => folded.includes(word))) continue;
    if (!words.some((word) => folded.includes(word))) continue;
    if (missing.length === 0 && rows[at].parent === null && opens(folded, title)) continue; // the title is this message's beginning
    hits.push({ head, messageId: rows[at].id, ...excerpt(text, words) });
  }
  return hits;
}

/** @param {string} folded a message @param {string} title folded, too; a cut one ends in three dots */
function opens(folded, title) {
  const beginning = title.replace(/(…|\.{3})$/, "").trim();
  return beginning !== "" && folded.replace(/\s+/g, " ").trim().startsWith(beginning);
}

/** @param {Row} row */
function textOf({ content, files = [] }) {
  return [content, ...files.flatMap(({ name, text }) => [name, text])].join("\n");
}

/** The text around the first word. @param {string} text @param {string[]} words @returns {Pick<Hit, "excerpt" | "at" | "marks">} */
export function excerpt(text, words) {
  const folded = new Folded(text);
  const first = Math.min(...words.map((word) => folded.find(word)?.[0] ?? Infinity));
  const from = first <= BEFORE ? 0 : edge(text, first - BEFORE, first);
  const to = Math.min(text.length, from + LENGTH);
  const lead = from === 0 ? "" : "…";
  const part = text.slice(from, to).replace(/\s/g, " "); // each space stays one character long
  const marks = marksIn(part, words).map(([start, end]) => /** @type {[number, number]} */ ([start + lead.length, end + lead.length]));
  return { excerpt: `${lead}${part}${to < text.length ? "…" : ""}`, at: marks[0] ?? [0, 0], marks };
}

/** A place to cut at or after `from`: behind a space if there is one soon. @param {string} text @param {number} from @param {number} to */
function edge(text, from, to) {
  const space = text.slice(from, to).search(/\s/);
  if (space >= 0) return from + space + 1;
  return /[\uDC00-\uDFFF]/.test(text[from]) ? from + 1 : from;
}

/** @param {string} part @param {string[]} words @returns {[number, number][]} in order, none inside another */
function marksIn(part, words) {
  const folded = new Folded(part);
  const found = words.flatMap((word) => folded.findAll(word)).sort((one, other) => one[0] - other[0] || other[1] - one[1]);
  /** @type {[number, number][]} */
  const marks = [];
  for (const mark of found) if (mark[0] >= (marks.at(-1)?.[1] ?? 0)) marks.push(mark);
  return marks;
}
