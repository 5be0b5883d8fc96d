/** The conversation on the screen: messages, notes, and what hangs below an answer. */

import { AnswerBody } from "../reading/body.js";

/** @typedef {import("../core/conversation.js").Message} Message */

/** @param {string} id @returns {HTMLElement} a copy of a template's only element */
function stamp(id) {
  const template = /** @type {HTMLTemplateElement} */ (document.getElementById(id));
  return /** @type {HTMLElement} */ (template.content.firstElementChild?.cloneNode(true));
}

/** @param {HTMLElement} root @param {string} selector @returns {HTMLElement} */
function part(root, selector) {
  return /** @type {HTMLElement} */ (root.querySelector(selector));
}

/** One answer: it grows, then it is settled once. */
export class AnswerView {
  element = stamp("answer-template");
  #body = new AnswerBody(part(this.element, ".body"));
  #stats = part(this.element, ".stats");

  /** @param {string} text */
  append(text) {
    this.#body.append(text);
    this.element.classList.add("begun");
  }

  /** @param {string} line @param {string} [tooltip] */
  showStats(line, tooltip = "") {
    this.#stats.textContent = line;
    this.#stats.title = tooltip;
  }

  /** The answer grows no more. */
  settle() {
    this.#body.finish();
    this.element.setAttribute("aria-busy", "false");
  }

  /** @param {string} title @param {string} detail @param {() => void} retry */
  showProblem(title, detail, retry) {
    const box = part(this.element, ".problem");
    part(box, ".title").textContent = title;
    part(box, ".detail").textContent = detail;
    part(box, ".retry").addEventListener("click", retry, { once: true });
    box.hidden = false;
  }

  /** The retry button's words, while it counts down. @param {string} words */
  labelRetry(words) {
    part(this.element, ".retry").textContent = words;
  }
}

/** All messages and notes, in order. Messages are found by id, so notes between them disturb nothing. */
export class LogView {
  #log;
  #welcome;

  /** @param {HTMLElement} log @param {HTMLElement} welcome shown while the log is empty */
  constructor(log, welcome) {
    this.#log = log;
    this.#welcome = welcome;
  }

  /** @param {Message} message */
  addUser(message) {
    const element = stamp("user-template");
    part(element, ".bubble").textContent = message.content;
    this.#add(element, message.id);
  }

  /** @param {Message} message @returns {AnswerView} */
  addAnswer(message) {
    const view = new AnswerView();
    this.#add(view.element, message.id);
    return view;
  }

  /** A line of the console, which is no message. @param {string} text */
  addNote(text) {
    const note = document.createElement("aside");
    note.className = "note";
    note.setAttribute("aria-label", "Note");
    note.textContent = text;
    this.#log.append(note);
    this.#welcome.hidden = true;
  }

  /** Removes a message and all that stands below it. @param {number} id */
  removeFrom(id) {
    let element = this.#element(id);
    while (element) {
      const next = element.nextElementSibling;
      element.remove();
      element = next;
    }
    this.#welcome.hidden = this.#log.childElementCount > 0;
  }

  /** Fades what an edit will replace; null for nothing. @param {number | null} id */
  markReplaced(id) {
    for (const element of this.#log.children) element.classList.remove("replaced");
    let element = id === null ? null : this.#element(id);
    for (; element; element = element.nextElementSibling) element.classList.add("replaced");
  }

  clear() {
    this.#log.replaceChildren();
    this.#welcome.hidden = false;
  }

  /**
   * Calls back with a message's id when one of its tools is used.
   * @param {string} tool class name of the button @param {(id: number) => void} action
   */
  onTool(tool, action) {
    this.#log.addEventListener("click", (event) => {
      const target = /** @type {HTMLElement} */ (event.target);
      const message = target.closest(`.${tool}`)?.closest(".message");
      if (message instanceof HTMLElement) action(Number(message.dataset.id));
    });
  }

  /** @param {HTMLElement} element @param {number} id */
  #add(element, id) {
    element.dataset.id = String(id);
    this.#log.append(element);
    this.#welcome.hidden = true;
  }

  /** @param {number} id @returns {Element | null} */
  #element(id) {
    return this.#log.querySelector(`.message[data-id="${id}"]`);
  }
}
