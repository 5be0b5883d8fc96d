/**
 * An answer's text as a sequence of words and calculations. The server streams the marks of a calculation as
 * text: `<|python_start|>347+286<|python_end|><|output_start|>633<|output_end|>`. Knows nothing of the DOM.
 */

/** @typedef {{type: "text" | "calculation", text: string}} Piece */

const OPEN = "<|python_start|>";
const CLOSE = "<|python_end|>";
const RESULT = "<|output_start|>";
const END = "<|output_end|>";
const MAX_HELD = 2048; // characters; a block that is longer is shown as it came

/** How many characters at the end of `text` may be the beginning of `mark`. @param {string} text @param {string} mark */
function overlap(text, mark) {
  let length = Math.min(text.length, mark.length - 1);
  while (length > 0 && !mark.startsWith(text.slice(text.length - length))) length--;
  return length;
}

export class ToolText {
  #held = "";

  /** What can be shown now; what may belong to a calculation is held back. @param {string} text @returns {Piece[]} */
  push(text) {
    this.#held += text;
    /** @type {Piece[]} */
    const pieces = [];
    for (;;) {
      const at = this.#held.indexOf(OPEN);
      if (at < 0) {
        this.#take(pieces, this.#held.length - overlap(this.#held, OPEN));
        return pieces;
      }
      this.#take(pieces, at);
      const block = this.#block();
      if (block === null) {
        if (this.#held.length <= MAX_HELD) return pieces;
        this.#take(pieces, OPEN.length);
      } else {
        pieces.push({ type: "calculation", text: block.text });
        this.#held = this.#held.slice(block.length);
      }
    }
  }

  /** What was held back when the answer ended, as it came. @returns {Piece[]} */
  flush() {
    /** @type {Piece[]} */
    const pieces = [];
    const block = this.#block(true);
    if (block !== null) {
      pieces.push({ type: "calculation", text: block.text });
      this.#held = this.#held.slice(block.length);
    }
    this.#take(pieces, this.#held.length);
    return pieces;
  }

  /**
   * The calculation that the held text begins with, null while it is incomplete. One without a result ends
   * where something else than a result follows, or the answer.
   * @param {boolean} [ended] @returns {{text: string, length: number} | null}
   */
  #block(ended = false) {
    const close = this.#held.startsWith(OPEN) ? this.#held.indexOf(CLOSE) : -1;
    if (close < 0) return null;
    const expression = this.#held.slice(OPEN.length, close).trim();
    const after = close + CLOSE.length;
    const rest = this.#held.slice(after, after + RESULT.length);
    const end = rest === RESULT ? this.#held.indexOf(END, after) : -1;
    if (end >= 0) {
      const result = this.#held.slice(after + RESULT.length, end).trim();
      return { text: `${expression} = ${result}`, length: end + END.length };
    }
    return ended || !RESULT.startsWith(rest) ? { text: expression, length: after } : null;
  }

  /** @param {Piece[]} pieces @param {number} length */
  #take(pieces, length) {
    if (length > 0) pieces.push({ type: "text", text: this.#held.slice(0, length) });
    this.#held = this.#held.slice(length);
  }
}
