/** The list of conversations beside the page, with what can be done with them. */

import { el } from "../shell/dom.js";
import { t } from "../words/words.js";
import { ChatList } from "./chat_list.js";
import { byAge } from "./groups.js";
import { SearchBox } from "./search_box.js";

/**
 * @typedef {import("../core/conversation.js").Head} Head
 * @typedef {import("./library.js").Library} Library
 *
 * @typedef {object} Parts
 * @property {Library} library
 * @property {(id: string, messageId: string | null) => unknown} open shows a conversation, at one of its messages
 * @property {() => unknown} newChat called when the conversation that is shown has been removed
 * @property {() => string | null} currentId the conversation that is shown
 * @property {(id: string) => boolean} [isBusy] whether an answer grows in it
 * @property {(id: string) => unknown} [stop] called before a busy conversation is removed
 */

/** Changes come in bursts, as while an answer is written each second or an import runs. */
const PAUSE = 50; // milliseconds

export class Sidebar {
  #element;
  #parts;
  #list = new ChatList();
  #search;
  #empty = el("p", { class: "no-chats", text: t("keep.empty"), hidden: true });
  /** @type {Map<string, Head>} */
  #heads = new Map();
  /** @type {Map<string, boolean>} ids that have changed, and whether they were removed */
  #changed = new Map();
  #timer = 0;
  /** @type {Promise<import("./chat_actions.js").ChatActions> | null} loaded when they are first used */
  #actions = null;

  /** @param {HTMLElement} element empty, and this class's alone @param {Parts} parts */
  constructor(element, parts) {
    this.#element = element;
    this.#parts = parts;
    this.#search = new SearchBox(parts.library);
    const scroller = el("div", { class: "chats" }, this.#list.element, this.#empty, this.#search.results);
    element.classList.add("keep");
    element.replaceChildren(this.#search.element, scroller, this.#foot());
    this.#search.addEventListener("search", () => this.#show());
    this.#list.element.addEventListener("drawn", () => this.mark());
    element.addEventListener("click", (event) => this.#onClick(event));
    element.addEventListener("keydown", (event) => this.#onKey(event));
    element.addEventListener("contextmenu", (event) => this.#onContextMenu(event));
    this.#takeDrops();
    parts.library.addEventListener("change", (event) => this.#note(/** @type {CustomEvent} */ (event).detail));
    this.refresh();
  }

  /** Reads the whole list anew. */
  async refresh() {
    this.#heads = new Map((await this.#parts.library.list()).map((head) => [head.id, head]));
    this.#show();
  }

  /** Another conversation is shown now, or an answer has begun or ended. */
  mark() {
    this.#list.mark(this.#parts.currentId(), this.#parts.isBusy ?? (() => false));
  }

  focusSearch() {
    this.#search.input.focus();
    this.#search.input.select();
  }

  /** Lets the reader give a conversation another name, in the list. @param {string} id */
  async rename(id) {
    (await this.#use()).rename(id);
  }

  #show() {
    const searching = this.#search.text !== "" && !this.#search.results.hidden;
    this.#list.draw([...this.#heads.values()].sort(byAge));
    this.#list.element.hidden = searching;
    this.#empty.hidden = searching || this.#heads.size > 0;
    this.mark();
  }

  /** @param {import("./library.js").Change} change */
  #note({ id, removed = false }) {
    this.#changed.set(id, removed);
    this.#timer ||= setTimeout(() => this.#takeIn(), PAUSE);
  }

  async #takeIn() {
    this.#timer = 0;
    const changed = [...this.#changed];
    this.#changed.clear();
    for (const [id, removed] of changed) {
      const head = removed ? undefined : await this.#parts.library.head(id);
      if (head === undefined) this.#heads.delete(id);
      else this.#heads.set(id, head);
    }
    this.#show();
    if (this.#search.text !== "" && changed.some(([, removed]) => removed)) this.#search.search();
  }

  #foot() {
    /** @param {string} key @param {"importFiles" | "exportAll" | "removeAll"} act */
    const button = (key, act) =>
      el("button", { type: "button", class: "link", text: t(key), on: { click: async () => (await this.#use())[act]() } });
    return el(
      "div",
      { class: "keep-foot" },
      this.#parts.library.lasting ? null : el("p", { text: t("keep.unkept") }),
      button("keep.import", "importFiles"),
      button("keep.exportAll", "exportAll"),
      button("keep.removeAll", "removeAll"),
    );
  }

  #use() {
    this.#actions ??= import("./chat_actions.js").then(({ ChatActions }) => new ChatActions(this.#parts, this.#list, () => this.#takeIn()));
    return this.#actions;
  }

  /** @param {MouseEvent} event */
  async #onClick(event) {
    const button = event.target instanceof Element ? event.target.closest("button") : null;
    const id = button?.closest("li")?.dataset.id ?? button?.dataset.id;
    if (!button || id === undefined) return;
    if (button.matches(".chat-menu")) (await this.#use()).menu(id, button);
    else if (button.matches(".chat-row, .chat-hit")) this.#parts.open(id, button.dataset.message ?? null);
  }

  /** @param {MouseEvent} event */
  async #onContextMenu(event) {
    const row = event.target instanceof Element ? event.target.closest(".chat-list li") : null;
    const button = row?.querySelector(".chat-menu");
    if (!(row instanceof HTMLElement) || !(button instanceof HTMLElement)) return;
    event.preventDefault();
    (await this.#use()).menu(row.dataset.id ?? "", button);
  }

  /** @param {KeyboardEvent} event */
  #onKey(event) {
    const at = event.target;
    if (!(at instanceof HTMLElement) || event.isComposing || event.ctrlKey || event.metaKey || event.altKey) return;
    if (!this.#moves(at, event.key) && !this.#acts(at, event.key)) return;
    event.preventDefault();
    event.stopPropagation();
  }

  /** @param {HTMLElement} at @param {string} key */
  #moves(at, key) {
    if (at === this.#search.input) {
      if (key !== "ArrowDown") return false;
      return this.#list.element.hidden ? this.#search.move(at, 1) : this.#list.move(undefined, "ArrowDown");
    }
    if (at.matches(".chat-hit") && (key === "ArrowDown" || key === "ArrowUp")) {
      this.#search.move(at, key === "ArrowDown" ? 1 : -1);
      return true;
    }
    const row = at.closest("li")?.querySelector(".chat-row");
    if (!at.matches(".chat-row, .chat-menu") || !(row instanceof HTMLElement)) return false;
    if (key !== "ArrowDown" && key !== "ArrowUp" && key !== "Home" && key !== "End") return false;
    if (!this.#list.move(row, key) && key === "ArrowUp") this.#search.input.focus();
    return true;
  }

  /** @param {HTMLElement} at @param {string} key */
  #acts(at, key) {
    const id = at.closest("li")?.dataset.id;
    if (!at.matches(".chat-row") || id === undefined || (key !== "F2" && key !== "Delete")) return false;
    this.#use().then((actions) => (key === "F2" ? actions.rename(id) : actions.remove(id)));
    return true;
  }

  #takeDrops() {
    const element = this.#element;
    /** @param {DragEvent} event */
    const hasFiles = (event) => event.dataTransfer?.types.includes("Files") ?? false;
    element.addEventListener("dragover", (event) => {
      if (!hasFiles(event)) return;
      event.preventDefault();
      event.stopPropagation(); // the page takes files for the message
      element.classList.add("dropping");
    });
    element.addEventListener("dragleave", (event) => {
      if (!(event.relatedTarget instanceof Node && element.contains(event.relatedTarget))) element.classList.remove("dropping");
    });
    element.addEventListener("drop", async (event) => {
      element.classList.remove("dropping");
      if (!hasFiles(event)) return;
      event.preventDefault();
      event.stopPropagation();
      const files = [...(event.dataTransfer?.files ?? [])]; // gone after the first wait
      (await this.#use()).takeIn(files);
    });
  }
}
