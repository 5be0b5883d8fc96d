/**
 * The text of an answer on the screen. Everything that shows a model's words goes through this class, so that
 * a richer rendering needs to change nothing else. Model text only ever becomes a text node, never markup.
 */

import { ToolText } from "./tool_text.js";

const PART = 8192; // characters that are laid out together; what came before them is not laid out again
const MAX_PART = 2 * PART; // a line that is longer is broken

/**
 * How much of `text` still belongs to a part that has `length` characters: up to the end of a line, if that
 * comes in time, never up to the inside of a character.
 * @param {string} text @param {number} length @returns {number}
 */
function share(text, length) {
  if (length + text.length <= PART) return text.length;
  const line = text.indexOf("\n", Math.max(0, PART - length)) + 1;
  if (line > 0 && length + line <= MAX_PART) return line;
  const room = MAX_PART - length;
  if (text.length <= room) return text.length;
  const last = text.charCodeAt(room - 1);
  return last >= 0xd800 && last < 0xdc00 ? room - 1 : room;
}

export class AnswerBody {
  #element;
  #part = document.createElement("span");
  #text = document.createTextNode("");
  #length = 0; // of the part's text
  #pieces = new ToolText();

  /** @param {HTMLElement} element holds the answer and nothing else */
  constructor(element) {
    this.#element = element;
    element.replaceChildren();
    this.#begin();
  }

  /** Adds to the end; costs the same however long the answer is. @param {string} text */
  append(text) {
    this.#show(this.#pieces.push(text));
  }

  /** The answer has ended: what looked like the beginning of a calculation is shown as it came. */
  finish() {
    this.#show(this.#pieces.flush());
  }

  /** @param {import("./tool_text.js").Piece[]} pieces */
  #show(pieces) {
    for (const { type, text } of pieces) {
      if (type === "text") this.#add(text);
      else this.#showCalculation(text);
    }
  }

  /** @param {string} text */
  #add(text) {
    let rest = text;
    for (;;) {
      const taken = share(rest, this.#length);
      this.#text.appendData(rest.slice(0, taken));
      this.#length += taken;
      rest = rest.slice(taken);
      if (rest === "") return;
      this.#begin();
    }
  }

  /** A new part: lines of their own, below what is there. */
  #begin() {
    this.#part = document.createElement("span");
    this.#part.className = "part";
    this.#text = document.createTextNode("");
    this.#length = 0;
    this.#part.append(this.#text);
    this.#element.append(this.#part);
  }

  /** A calculation in a line of its own, for the eye and for who copies the text. @param {string} text */
  #showCalculation(text) {
    const chip = document.createElement("span");
    chip.className = "calculation";
    chip.textContent = text;
    this.#text = document.createTextNode("\n");
    this.#part.append(chip, this.#text);
  }
}

/** A whole text at once. @param {HTMLElement} element @param {string} text */
export function showText(element, text) {
  const body = new AnswerBody(element);
  body.append(text);
  body.finish();
}
