/**
 * The text of an answer on the screen. Everything that shows a model's words goes through this class, so that
 * a richer rendering needs to change nothing else. Model text only ever becomes a text node, never markup.
 */

import { ToolText } from "./tool_text.js";

export class AnswerBody {
  #element;
  #text = document.createTextNode("");
  #pieces = new ToolText();

  /** @param {HTMLElement} element holds the answer and nothing else */
  constructor(element) {
    this.#element = element;
    element.replaceChildren(this.#text);
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
      if (type === "text") this.#text.appendData(text);
      else this.#showCalculation(text);
    }
  }

  /** A calculation in a line of its own, for the eye and for who copies the text. @param {string} text */
  #showCalculation(text) {
    const chip = document.createElement("span");
    chip.className = "calculation";
    chip.textContent = text;
    this.#text = document.createTextNode("\n");
    this.#element.append(chip, this.#text);
  }
}
