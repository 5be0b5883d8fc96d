/** The list of commands above the composer, while the draft begins with a slash. */

import { el } from "../shell/dom.js";
import { t } from "../words/words.js";
import { commandsOf, describe, usage } from "./commands.js";

/**
 * @typedef {import("./commands.js").CommandPage} CommandPage
 * @typedef {{text: string, label: string, description: string}} Offer `text` is what the draft becomes
 */

export class CommandList {
  #draft;
  #list;
  #page;
  #announce;
  /** @type {Offer[]} */
  #offers = [];
  #selected = 0;
  /** The draft for which the list was closed by hand. @type {string | null} */
  #closedFor = null;

  /**
   * @param {HTMLTextAreaElement} draft @param {HTMLElement} list its listbox
   * @param {CommandPage} page @param {(text: string) => void} announce
   */
  constructor(draft, list, page, announce) {
    this.#draft = draft;
    this.#list = list;
    this.#page = page;
    this.#announce = announce;
    list.setAttribute("aria-label", t("command.list"));
    list.tabIndex = 0; // it may scroll
    list.addEventListener("mousedown", (event) => event.preventDefault()); // the draft keeps the focus
    list.addEventListener("click", (event) => {
      const option = event.target instanceof Element ? event.target.closest("[role=option]") : null;
      if (option !== null) this.#complete([...list.children].indexOf(option));
    });
    draft.addEventListener("blur", () => this.close());
  }

  get open() {
    return !this.#list.hidden;
  }

  /** The draft has changed. */
  update() {
    const draft = this.#draft.value;
    if (draft !== this.#closedFor) this.#closedFor = null;
    const before = this.#offers.length;
    this.#offers = this.#closedFor === null ? this.#offersFor(draft) : [];
    this.#selected = 0;
    if (this.#offers.length === 0) this.close();
    else this.#show(before);
  }

  close() {
    this.#offers = [];
    this.#list.hidden = true;
    this.#list.replaceChildren();
    this.#draft.removeAttribute("aria-activedescendant");
    this.#draft.removeAttribute("aria-controls");
  }

  /** @param {KeyboardEvent} event @returns {boolean} whether the key was for the list */
  key(event) {
    if (!this.open || event.shiftKey || event.ctrlKey || event.altKey || event.metaKey) return false;
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (step !== undefined) this.#select((this.#selected + step + this.#offers.length) % this.#offers.length);
    else if (event.key === "Escape") {
      event.stopPropagation(); // it means the list, not the answer
      this.#closedFor = this.#draft.value;
      this.close();
    } else if (["Tab", "Enter"].includes(event.key) && !this.#typedOut()) this.#complete(this.#selected);
    else {
      if (event.key === "Tab") this.close(); // or the next stop would be the list
      return false;
    }
    return true;
  }

  /** Whether the draft is what the list would make of it, but for a space: then Enter runs it. */
  #typedOut() {
    const typed = this.#draft.value.trimEnd().toLowerCase();
    return this.#offers.some(({ text }) => text.trimEnd().toLowerCase() === typed);
  }

  /** @param {string} draft @returns {Offer[]} */
  #offersFor(draft) {
    const typed = draft.toLowerCase();
    if (!typed.startsWith("/") || typed.includes("\n")) return [];
    const commands = commandsOf(this.#page);
    if (!/\s/.test(typed)) {
      return commands.filter(({ name }) => name.startsWith(typed)).map((command) => ({
        text: command.argument === undefined ? command.name : `${command.name} `,
        label: usage(command),
        description: describe(command),
      }));
    }
    const command = commands.find(({ name, options }) => options && typed.startsWith(`${name} `));
    const options = command?.options?.(this.#page).map((option) => `${command.name} ${option}`) ?? [];
    const fitting = options.filter((option) => option.toLowerCase().startsWith(typed));
    return fitting.map((option) => ({ text: option, label: option, description: "" }));
  }

  /** @param {number} before how many offers there were */
  #show(before) {
    const options = this.#offers.map(({ label, description }, k) =>
      el("li", { role: "option", id: `command-${k}`, "aria-selected": String(k === this.#selected) },
        el("span", { class: "name", text: label, translate: "no" }), el("span", { class: "about", text: description })));
    this.#list.replaceChildren(...options);
    this.#list.hidden = false;
    this.#draft.setAttribute("aria-controls", this.#list.id);
    this.#select(this.#selected);
    if (before !== this.#offers.length) this.#announce(t("command.offers", { n: this.#offers.length }));
  }

  /** @param {number} index */
  #select(index) {
    this.#selected = index;
    for (const [k, option] of [...this.#list.children].entries()) {
      option.setAttribute("aria-selected", String(k === index));
      if (k === index) option.scrollIntoView({ block: "nearest" });
    }
    this.#draft.setAttribute("aria-activedescendant", `command-${index}`);
  }

  /** @param {number} index */
  #complete(index) {
    const { text } = this.#offers[index];
    this.#draft.value = text;
    this.#draft.setSelectionRange(text.length, text.length);
    this.#draft.focus();
    this.#draft.dispatchEvent(new Event("input", { bubbles: true }));
  }
}
