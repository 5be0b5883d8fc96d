/**
 * Where an answer that grows can be cut: into blocks that nothing which comes later changes, and a rest. What
 * has grown long (code, a list, a table) is handed over piece by piece, so that the rest stays short.
 * Knows nothing of the DOM.
 */

import { blocks, openFormula } from "./markdown.js";

/**
 * @typedef {import("./markdown.js").Token} Token
 * @typedef {object} Sink
 * @property {(raw: string) => void} block a block that is complete
 * @property {(name: string) => void} openCode @property {(text: string) => void} code @property {() => void} closeCode
 * @property {(list: Token) => void} openList
 * @property {(raws: string[], loose: boolean) => void} items loose: whether the list is, by all that is known
 * @property {() => void} closeList
 * @property {(head: string) => void} openTable @property {(head: string, rows: string[]) => void} rows
 * @property {() => void} closeTable
 */

const MAX_REST = 16384; // characters; a paragraph that is longer is cut
const STEP = 4096; // characters that are looked at together
const FENCE = /^(`{3,}|~{3,})([^\n]*)\n/;
const FENCED = /^ {0,3}(`{3,}|~{3,})/;

/** Whether the block cannot become longer. @param {Token} token @param {Token | undefined} next */
function isFinal(token, next) {
  if (["heading", "hr", "formulaBlock"].includes(token.type)) return true;
  if (token.type === "code") return token.codeBlockStyle !== "indented" && isClosed(token.raw);
  if (["list", "html"].includes(token.type)) return false;
  return next?.type === "space" || /\n[ \t]*\n$/.test(token.raw);
}

/** @param {string} raw of code between fences */
function isClosed(raw) {
  const fence = FENCED.exec(raw)?.[1] ?? "";
  const lines = raw.trimEnd().split("\n");
  return lines.length > 1 && new RegExp(`^ {0,3}${fence}[~\`]* *$`).test(lines[lines.length - 1]);
}

/** The lines between two fences, as they come. */
class Fence {
  #end;
  #held = ""; // a line that may become the end
  #first = true; // of the lines
  #begun = false; // of the line, something was handed over

  /** @param {string} mark */
  constructor(mark) {
    this.#end = new RegExp(`^ {0,3}${mark}[~\`]* *$`);
  }

  /** @param {string} text @returns {{text: string, rest: string | null}} rest: what stands below the fence's end */
  push(text) {
    const source = this.#held + text;
    let out = "";
    let from = 0;
    for (let at = source.indexOf("\n"); at >= 0; at = source.indexOf("\n", from)) {
      const line = source.slice(from, at);
      from = at + 1;
      if (!this.#begun && this.#end.test(line)) return { text: out, rest: source.slice(from) };
      out += this.#show(line);
      this.#begun = false;
    }
    this.#held = source.slice(from);
    if (this.#held !== "" && (this.#begun || !/^ {0,3}[`~]* *$/.test(this.#held))) out += this.flush();
    return { text: out, rest: null };
  }

  /** What is left when the answer has ended. @returns {string} */
  flush() {
    const line = this.#held;
    this.#held = "";
    return line === "" || (!this.#begun && this.#end.test(line)) ? "" : this.#show(line);
  }

  /** @param {string} line or a part of one */
  #show(line) {
    const start = this.#begun || this.#first ? "" : "\n";
    this.#begun = true;
    this.#first = false;
    return start + line;
  }
}

export class Splitter {
  #sink;
  #rest = "";
  /** @type {Fence | null} */
  #fence = null;
  /** @type {string | null} the head of the table that is open */
  #table = null;
  #list = false;
  #loose = false;

  /** @param {Sink} sink */
  constructor(sink) {
    this.#sink = sink;
  }

  /** What is not handed over yet. */
  get rest() {
    return this.#rest;
  }

  /** What the rest belongs to: for a table its head. @returns {"code" | "list" | {head: string} | null} */
  get inside() {
    if (this.#fence !== null) return "code";
    return this.#list ? "list" : this.#table === null ? null : { head: this.#table };
  }

  /** @param {string} text */
  push(text) {
    for (let at = 0; at < text.length; at += STEP) this.#pushSome(text.slice(at, at + STEP));
  }

  /** The answer has ended: hands over all that is left. */
  end() {
    if (this.#fence !== null) {
      this.#sink.code(this.#fence.flush());
      this.#closeFence();
      return;
    }
    if (this.#list) this.#listStep(this.#rest, true);
    if (this.#table !== null) this.#tableStep(this.#rest, true);
    for (const token of blocks(this.#rest)) this.#emit(token);
    this.#rest = "";
  }

  /** @param {string} text */
  #pushSome(text) {
    if (this.#fence === null) {
      this.#rest += text;
      if (text.includes("\n") || this.#rest.length > MAX_REST) this.#advance();
      return;
    }
    const { text: code, rest } = this.#fence.push(text);
    if (code !== "") this.#sink.code(code);
    if (rest === null) return;
    this.#closeFence();
    if (rest !== "") this.#pushSome(rest);
  }

  /** Hands over what is complete, as long as there is something. */
  #advance() {
    for (;;) {
      const complete = this.#rest.slice(0, this.#rest.lastIndexOf("\n") + 1);
      const more =
        complete !== "" &&
        (this.#list
          ? this.#listStep(complete, false)
          : this.#table === null
            ? this.#blockStep(complete)
            : this.#tableStep(complete, false));
      if (more) continue;
      if (this.#rest.length <= MAX_REST || this.inside !== null) return;
      this.#emitStart(this.#cut(this.#rest));
    }
  }

  /** Where a text that is too long is cut. @param {string} text */
  #cut(text) {
    const last = text.charCodeAt(MAX_REST - 1);
    return last >= 0xd800 && last < 0xdc00 ? MAX_REST - 1 : MAX_REST;
  }

  /** @param {number} length */
  #emitStart(length) {
    this.#sink.block(this.#rest.slice(0, length));
    this.#rest = this.#rest.slice(length);
  }

  /**
   * @param {string} complete the rest up to its last line end
   * @returns {boolean} whether there may be more to do
   */
  #blockStep(complete) {
    const found = blocks(complete);
    const last = found.findLastIndex((token) => token.type !== "space");
    const final = last < 0 || isFinal(found[last], found[last + 1]);
    const done = found.slice(0, final ? found.length : last);
    let sure = openFormula(complete);
    for (const token of done) {
      sure -= token.raw.length;
      if (sure < 0) return false;
      // Tabs and the like: what marked took is not what stands there. Then all waits for the end.
      if (!this.#rest.startsWith(token.raw)) return false;
      if (token.type === "paragraph" && token.raw.length > MAX_REST) {
        this.#emitStart(this.#cut(token.raw));
        return true;
      }
      this.#rest = this.#rest.slice(token.raw.length);
      this.#emit(token);
    }
    return !final && sure > 0 && this.#open(found[last]);
  }

  /** @param {Token} token */
  #emit(token) {
    if (token.type !== "space") this.#sink.block(token.raw);
  }

  /** Begins to hand over the inside of a block that is not complete. @param {Token} token @returns {boolean} */
  #open(token) {
    if (!this.#rest.startsWith(token.raw)) return false;
    if (token.type === "code") return this.#openFence();
    if (token.type === "list" && token.items.length > 1) {
      this.#list = true;
      this.#loose = false;
      this.#sink.openList(token);
      return true;
    }
    if (token.type !== "table") return false;
    const head = token.raw.split("\n", 2).join("\n") + "\n";
    if (!this.#rest.startsWith(head)) return false;
    this.#rest = this.#rest.slice(head.length);
    this.#table = head;
    this.#sink.openTable(head);
    return true;
  }

  /** Fences that stand further in are left to marked. @returns {boolean} */
  #openFence() {
    const found = FENCE.exec(this.#rest);
    if (found === null) return false;
    this.#fence = new Fence(found[1]);
    this.#sink.openCode(found[2].trim());
    const rest = this.#rest.slice(found[0].length);
    this.#rest = "";
    if (rest !== "") this.#pushSome(rest);
    return false;
  }

  #closeFence() {
    this.#fence = null;
    this.#sink.closeCode();
  }

  /** @param {string} complete @param {boolean} ended @returns {boolean} */
  #listStep(complete, ended) {
    const [list, ...others] = blocks(complete);
    if (list?.type !== "list") return this.#closeList();
    this.#loose ||= list.loose;
    const over = ended || others.some((token) => token.type !== "space");
    const items = over ? list.items : list.items.slice(0, -1);
    /** @type {string[]} */
    const raws = [];
    for (const { raw } of items) {
      if (!this.#rest.startsWith(raw)) break;
      raws.push(raw);
      this.#rest = this.#rest.slice(raw.length);
    }
    this.#sink.items(raws, this.#loose);
    return over && this.#closeList();
  }

  #closeList() {
    this.#list = false;
    this.#sink.closeList();
    return true;
  }

  /** @param {string} complete @param {boolean} ended @returns {boolean} */
  #tableStep(complete, ended) {
    const head = /** @type {string} */ (this.#table);
    const [table, ...others] = blocks(head + complete);
    const count = table?.type === "table" ? table.rows.length : 0;
    const lines = this.#rest.split("\n");
    const rows = lines.slice(0, count);
    this.#rest = lines.slice(count).join("\n");
    if (count > 0) this.#sink.rows(head, rows);
    const over = ended || others.length > 0 || lines.length - count > 1 || table?.type !== "table";
    if (!over) return false;
    this.#table = null;
    this.#sink.closeTable();
    return true;
  }
}
