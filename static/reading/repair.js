/**
 * Markdown that stops in the middle, made whole: what is open is closed, and what cannot be known yet is left
 * out. Only for showing what still grows; the finished text is never touched.
 */

import { UNFINISHED } from "./markdown.js";

const BLOCK_START = /\n[ \t]*\n|\n(?=[ \t]*(?:[-*+]|\d{1,9}[.)])[ \t])|\n(?=[ \t]*(?:>|#{1,6} |\|))/g;
// At the beginning of a line: what may become a heading, a rule, a list, a fence, a task.
const UNDECIDED = /(^|\n)([ \t>]*)(?:#{1,6}|[-*+_=]|[-*_=]{2,}|[-*+][ \t]\[(?:[ xX]\]?)?|\d{1,9}[.)]|`{1,2}|`{3,}[^\n`]*|~{1,2}|~{3,}[^\n]*|\$)[ \t]*$/;
const FENCE = /^[ \t>]*(?:(?:[-*+]|\d{1,9}[.)])[ \t]+)*(`{3,}(?=[^`]*$)|~{3,})(.*)$/;
// What may follow `](` of a link that is not closed yet: an address, then a title.
const ADDRESS = /^\s*(?:<[^<>\n]*>?|[^\s<]*)(?:\s+(?:"[^"]*(?:"\s*)?|'[^']*(?:'\s*)?|\([^()]*(?:\)\s*)?)?)?$/;
const OPEN_DISPLAY = /^[ \t]*(\$\$|\\\[)/;
const WORD = /[\p{L}\p{N}]/u;
const MAX_OPEN = 32; // marks that are closed; nobody means more, and marked would look for the end of each of them
const MAX_ADDRESS = 2048; // characters; what is longer is no address that is still being written

/** @param {string} source @returns {string} */
export function repair(source) {
  if (inFence(source)) return source.replace(/\n[ \t>]*[`~]+[ \t]*$/, "\n");
  const undecided = UNDECIDED.exec(source);
  const decided = undecided === null ? source : source.slice(0, undecided.index) + undecided[1];
  const start = lastStart(decided);
  const segment = decided.slice(start);
  if (/^[ \t]*\|/.test(segment) || tableOpen(decided)) return repairTable(decided);
  return decided.slice(0, start) + repairWords(segment);
}

/** Whether a fence inside a list or quotation is open: what stands there is code. @param {string} source */
function inFence(source) {
  if (!source.includes("```") && !source.includes("~~~")) return false;
  let open = "";
  for (const line of source.split("\n").slice(0, -1)) {
    const [, fence, rest] = FENCE.exec(line) ?? ["", "", ""];
    if (open === "") open = fence;
    else if (fence.startsWith(open) && rest.trim() === "") open = "";
  }
  return open !== "";
}

/** Where the last paragraph, heading or item begins. @param {string} source */
function lastStart(source) {
  let start = 0;
  for (const found of source.matchAll(BLOCK_START)) start = found.index + 1;
  return start;
}

/** @param {string} source */
function tableOpen(source) {
  return /(?:^|\n)[ \t]*\|[^\n]*(?:\n[ \t|:-]*)?$/.test(source);
}

/** A table's head without its rule gets one; an open cell is closed. @param {string} source */
function repairTable(source) {
  const lines = source.split("\n");
  let first = lines.length - 1;
  while (first > 0 && /^[ \t]*\|/.test(lines[first - 1])) first--;
  const table = lines.slice(first);
  if (table.at(-1) === "") table.pop();
  if (table.length === 1 && !/[^|\s]/.test(table[0])) return lines.slice(0, first).join("\n");
  if (table.length === 0 || table.length > 2) return closeCell(source);
  if (table.length === 2 && !/^[ \t|:-]*$/.test(table[1])) return source;
  const head = closeCell(table[0]);
  const cells = Math.max(1, head.replace(/\\\||`[^`]*`/g, "").split("|").length - 2);
  return [...lines.slice(0, first), head, "|" + "---|".repeat(cells)].join("\n");
}

/** @param {string} source whose last line is a row */
function closeCell(source) {
  const start = source.lastIndexOf("|") + 1;
  const cell = source.slice(start);
  if (cell.trim() === "" || cell.includes("\n")) return source;
  return `${source.slice(0, start)}${repairWords(cell)} |`;
}

/**
 * Closes in a paragraph what is open: code, formulas, links, emphasis.
 * @param {string} text
 */
function repairWords(text) {
  const display = OPEN_DISPLAY.exec(text);
  if (display !== null && !text.includes(display[1] === "$$" ? "$$" : "\\]", display[0].length)) {
    const end = display[1] === "$$" ? "$$" : "\\]";
    const inside = text.slice(display[0].length).replace(/[\\$\s]+$/, "");
    return inside === "" ? "" : display[0] + inside + UNFINISHED + end;
  }
  return new Scan(text).result();
}

/** One pass over a paragraph, with a stack of what is open. */
class Scan {
  #text;
  #at = 0;
  /** @type {{mark: string, at: number}[]} */
  #open = [];
  /** @type {string | null} the whole result, where it is known early */
  #early = null;
  #removed = 0; // characters that stood before the place where the scan is
  #brackets;
  #parentheses;

  /** @param {string} text */
  constructor(text) {
    this.#text = text;
    this.#brackets = closings(text, "[", "]");
    this.#parentheses = closings(text, "(", ")");
  }

  result() {
    while (this.#at < this.#text.length && this.#early === null) this.#step();
    return this.#early ?? this.#close(this.#text);
  }

  #step() {
    const character = this.#text[this.#at];
    if (character === "\\") this.#escape();
    else if (character === "`") this.#code();
    else if (character === "$") this.#formula();
    else if (character === "[" || (character === "!" && this.#text[this.#at + 1] === "[")) this.#link();
    else if (character === "*" || character === "_" || character === "~") this.#emphasis(character);
    else this.#at++;
  }

  #escape() {
    const next = this.#text[this.#at + 1];
    if (next === undefined) this.#early = this.#close(this.#text.slice(0, this.#at));
    else if (next === "(" || next === "[") this.#span(2, next === "(" ? "\\)" : "\\]");
    else this.#at += 2;
  }

  /** A formula that has not ended is shown as it is written. @param {number} length of the opening @param {string} end */
  #span(length, end) {
    const from = this.#at + length;
    const found = this.#text.indexOf(end, from);
    if (found >= 0) {
      this.#at = found + end.length;
      return;
    }
    const inside = this.#text.slice(from).replace(/[\\$\s]+$/, "");
    const before = this.#text.slice(0, from);
    this.#early =
      inside === "" ? this.#close(this.#text.slice(0, this.#at)) : before + inside + UNFINISHED + end + this.#ends();
  }

  #formula() {
    if (this.#text[this.#at + 1] === "$") return this.#span(2, "$$");
    const before = this.#text[this.#at - 1] ?? "";
    const rest = this.#text.slice(this.#at + 1);
    const whole = /^(?:\\[^]|[^$\\\n])*?(?:\\[^\s]|[^\s$\\])\$(?!\d)/.exec(rest);
    if (WORD.test(before) || /^\s/.test(rest)) this.#at++;
    else if (rest === "") this.#early = this.#close(this.#text.slice(0, this.#at));
    else if (whole !== null) this.#at += 1 + whole[0].length;
    else if (/^(?:\\|[a-zA-Z]\s*[_^=]|\{)/.test(rest)) this.#span(1, "$");
    else this.#at++;
  }

  #code() {
    const run = /^`+/.exec(this.#text.slice(this.#at))?.[0] ?? "`";
    const from = this.#at + run.length;
    const rest = this.#text.slice(from);
    const end = new RegExp(`(?<!\`)${run}(?!\`)`).exec(rest);
    if (end !== null) {
      this.#at = from + end.index + run.length;
      return;
    }
    const inside = rest.replace(/`+$/, "");
    const before = this.#text.slice(0, this.#at);
    this.#early = inside.trim() === "" ? this.#close(before) : before + run + inside + run + this.#ends();
  }

  #link() {
    const from = this.#at;
    const start = this.#text[from] === "!" ? from + 2 : from + 1;
    const end = this.#closing(this.#brackets, start - 1);
    if (end < 0) {
      // Its words are shown, its bracket is not.
      this.#text = this.#text.slice(0, from) + this.#text.slice(start);
      this.#removed += start - from;
      return;
    }
    const isLink = this.#text[end + 1] === "(";
    const address = isLink ? this.#closing(this.#parentheses, end + 1) : end;
    if (address >= 0 || this.#text.length - end > MAX_ADDRESS || !ADDRESS.test(this.#text.slice(end + 2))) {
      this.#at = Math.max(address, end) + 1;
      return;
    }
    const words = this.#text.slice(start, end);
    this.#early = this.#close(`${this.#text.slice(0, from)}[${words}](#)`);
  }

  /** @param {Map<number, number>} found @param {number} at of an opening bracket @returns {number} -1 if it is open */
  #closing(found, at) {
    return (found.get(at + this.#removed) ?? -1 + this.#removed) - this.#removed;
  }

  /** @param {string} character */
  #emphasis(character) {
    const text = this.#text;
    let end = this.#at;
    while (text[end] === character) end++;
    const mark = text.slice(this.#at, end);
    const before = text[this.#at - 1] ?? " ";
    const after = text[end];
    const top = this.#open.at(-1);
    if (after === undefined) return this.#atEnd(mark, before);
    this.#at = end;
    if (character === "~" && mark.length !== 2) return;
    if (character === "_" && WORD.test(before) && WORD.test(after)) return;
    if (!/\s/.test(before) && top !== undefined && top.mark[0] === character && mark.length <= 3) {
      if (mark.length >= top.mark.length) this.#open.pop();
      else top.mark = top.mark.slice(mark.length);
    } else if (!/\s/.test(after) && mark.length <= 3) this.#open.push({ mark, at: end });
  }

  /** A run of marks that the text ends with. @param {string} mark @param {string} before */
  #atEnd(mark, before) {
    const top = this.#open.at(-1);
    if (top !== undefined && top.mark === mark && !/\s/.test(before)) {
      this.#open.pop();
      this.#at += mark.length;
      return;
    }
    this.#early = this.#close(this.#text.slice(0, this.#at)); // it may grow: as if it were not there
  }

  /** The marks that close what is open. */
  #ends() {
    return this.#open.length > MAX_OPEN ? "" : this.#open.map(({ mark }) => mark).reverse().join("");
  }

  /** @param {string} text @returns {string} */
  #close(text) {
    if (this.#open.length === 0 || this.#open.length > MAX_OPEN) return text;
    const trimmed = text.trimEnd();
    const top = this.#open.at(-1);
    // Nothing stands behind the last mark yet.
    if (top !== undefined && trimmed.length <= top.at) {
      this.#open.pop();
      return this.#close(text.slice(0, top.at - top.mark.length));
    }
    return trimmed + this.#ends() + text.slice(trimmed.length);
  }
}

/**
 * Where each opening bracket is closed, for those that are. All are found together: a search for each of many
 * would take a time that grows with the text's square.
 * @param {string} text @param {string} open @param {string} close
 */
function closings(text, open, close) {
  /** @type {Map<number, number>} */
  const found = new Map();
  /** @type {number[]} */
  const waiting = [];
  if (!text.includes(open)) return found;
  for (let at = 0; at < text.length; at++) {
    const character = text[at];
    if (character === "\\") at++;
    else if (character === open) waiting.push(at);
    else if (character === close) {
      const from = waiting.pop();
      if (from !== undefined) found.set(from, at);
    }
  }
  return found;
}
