/** An answer's text as markdown, with marks in it for the calculations. Knows nothing of the DOM. */

import { MARK, MARK_END } from "./markdown.js";
import { ToolText } from "./tool_text.js";

const RESERVED = /[\ufdd0-\ufdd2]/g;

export class Source {
  /** @type {string[]} what the marks stand for */
  calculations = [];
  #pieces = new ToolText();
  #carriage = false; // a CR came; an LF behind it belongs to it
  #lineStart = true;

  /** What can be shown of it now. @param {string} text @returns {string} */
  push(text) {
    return this.#written(this.#pieces.push(text));
  }

  /** The answer has ended: what was held back. @returns {string} */
  flush() {
    return this.#written(this.#pieces.flush());
  }

  /** A calculation at the beginning of a line gets that line to itself. @param {import("./tool_text.js").Piece[]} pieces */
  #written(pieces) {
    let source = "";
    for (const { type, text } of pieces) {
      if (type === "text") source += this.#plain(text);
      else {
        const after = (source === "" ? this.#lineStart : source.endsWith("\n")) ? "\n" : " ";
        source += MARK + (this.calculations.push(text) - 1) + MARK_END + after;
      }
    }
    if (source !== "") this.#lineStart = source.endsWith("\n");
    return source;
  }

  /** Line ends as one character, and nothing that could be taken for a mark of ours. @param {string} text */
  #plain(text) {
    const rest = this.#carriage && text.startsWith("\n") ? text.slice(1) : text;
    if (text !== "") this.#carriage = text.endsWith("\r");
    return rest.replace(/\r\n?/g, "\n").replace(RESERVED, "\ufffd");
  }
}
