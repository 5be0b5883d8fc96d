/**
 * The text of an answer on the screen. Everything that shows a model's words goes through this class, so that
 * a richer rendering needs to change nothing else. Model text only ever becomes a text node, never markup.
 */

export class AnswerBody {
  #text;

  /** @param {HTMLElement} element holds the answer and nothing else */
  constructor(element) {
    this.#text = document.createTextNode("");
    element.replaceChildren(this.#text);
  }

  /** Adds to the end; costs the same however long the answer is. @param {string} text */
  append(text) {
    this.#text.appendData(text);
  }
}
