/** The search box above the list, and what it finds. */

import { announce } from "../shell/toast.js";
import { el, icon } from "../shell/dom.js";
import { t } from "../words/words.js";

/**
 * @typedef {import("./library.js").Library} Library
 * @typedef {import("./scan.js").Hit} Hit
 */

const PAUSE = 120; // milliseconds without a key before it searches

/** Tells by the event `search` that a search has begun or ended. */
export class SearchBox extends EventTarget {
  input = el("input", { type: "search", id: "search-chats", placeholder: t("keep.search"), "aria-label": t("keep.search"), autocomplete: "off", enterkeyhint: "search" });
  element = el("div", { class: "chat-search", role: "search" }, icon("search"), this.input);
  results = el("ul", { class: "chat-results", "aria-label": t("keep.results"), hidden: true });
  #library;
  #timer = 0;

  /** @param {Library} library */
  constructor(library) {
    super();
    this.#library = library;
    this.input.addEventListener("input", () => {
      clearTimeout(this.#timer);
      this.#timer = setTimeout(() => this.search(), this.text === "" ? 0 : PAUSE);
    });
    this.input.addEventListener("keydown", (event) => this.#onKey(event));
  }

  get text() {
    return this.input.value.trim();
  }

  clear() {
    this.input.value = "";
    return this.search();
  }

  /** Searches for what is in the box. */
  async search() {
    clearTimeout(this.#timer);
    const { text } = this;
    if (text === "") {
      this.results.replaceChildren();
      this.results.hidden = true;
      this.dispatchEvent(new Event("search"));
      return;
    }
    try {
      const hits = await this.#library.search(text);
      if (text !== this.text) return;
      this.results.replaceChildren(...(hits.length === 0 ? [el("li", { class: "none", text: t("keep.nothing") })] : hits.map(entry)));
      this.results.hidden = false;
      announce(t("keep.found", { n: hits.length }));
      this.dispatchEvent(new Event("search"));
    } catch (error) {
      if (error instanceof DOMException && error.name === "AbortError") return; // another one has begun
      this.results.replaceChildren(el("li", { class: "none", text: t("keep.searchFailed") }));
      this.results.hidden = false;
    }
  }

  /** Moves the focus among what was found. @param {Element} from @param {1 | -1} step @returns {boolean} */
  move(from, step) {
    const buttons = [...this.results.querySelectorAll("button")];
    const to = buttons[buttons.indexOf(/** @type {HTMLButtonElement} */ (from)) + step];
    if (to !== undefined) to.focus();
    else if (step < 0) this.input.focus();
    return to !== undefined;
  }

  /** @param {KeyboardEvent} event */
  #onKey(event) {
    if (event.isComposing) return;
    if (event.key === "Escape" && this.input.value !== "") {
      this.clear();
      event.stopPropagation(); // Escape stops answers, too
    } else if (event.key === "Enter") this.results.querySelector("button")?.click();
    else return;
    event.preventDefault();
  }
}

/** @param {Hit} hit */
function entry({ head, messageId, excerpt, marks }) {
  const title = head.title.trim() || t("keep.untitled");
  return el(
    "li",
    {},
    el(
      "button",
      { type: "button", class: "chat-hit", data: { id: head.id, ...(messageId === null ? {} : { message: messageId }) } },
      el("span", { class: "chat-title", dir: "auto" }, ...(messageId === null ? marked(excerpt, marks) : [document.createTextNode(title)])),
      messageId === null ? null : el("span", { class: "excerpt", dir: "auto" }, ...marked(excerpt, marks)),
    ),
  );
}

/** @param {string} text @param {[number, number][]} marks @returns {Node[]} */
function marked(text, marks) {
  /** @type {Node[]} */
  const parts = [];
  let at = 0;
  for (const [start, end] of marks) {
    parts.push(document.createTextNode(text.slice(at, start)), el("mark", { text: text.slice(start, end) }));
    at = end;
  }
  return [...parts, document.createTextNode(text.slice(at))];
}
