/** The box at the bottom: the draft and its files, and the one button that sends or stops. */

import { t } from "../words/words.js";
import { isCommand } from "./commands.js";

/**
 * @typedef {import("../core/conversation.js").TextFile} TextFile
 * @typedef {import("./drafts.js").Drafts} Drafts
 * @typedef {import("./files.js").Attachments} Attachments
 * @typedef {import("./gauge.js").Gauge} Gauge
 * @typedef {Pick<import("./command_list.js").CommandList, "update" | "key" | "close">} CommandList
 *
 * @typedef {object} Actions
 * @property {(text: string, files: TextFile[]) => boolean} send tells whether it took the draft; if not, it stays
 * @property {() => void} stop
 * @property {() => void} [editLast] ArrowUp in an empty draft
 */

const KEEP_AFTER = 300; // milliseconds without a key

export class Composer {
  #draft;
  #button;
  #actions;
  #drafts;
  #files;
  #gauge;
  #commands;
  #busy = false;
  /** @type {string | null} the conversation whose draft this is, null for a new one */
  #conversation = null;
  /** The message that is being edited; the draft proper waits aside. @type {string | null} */
  #editing = null;
  #aside = { text: "", files: /** @type {TextFile[]} */ ([]) };
  /** @type {number | undefined} */
  #timer;
  /** What was last read or kept. Only changes are kept, for another tab may have the same draft. */
  #known = "";
  /** What the Enter key does: send, or begin a new line (then Ctrl+Enter sends). @type {"send" | "line"} */
  enterKey = "send";

  /**
   * @param {{draft: HTMLTextAreaElement, button: HTMLButtonElement, form: HTMLFormElement}} elements
   * @param {Actions} actions
   * @param {{drafts?: Drafts, files?: Attachments, gauge?: Gauge, commands?: CommandList}} [parts] composer_parts.js makes them
   */
  constructor({ draft, button, form }, actions, { drafts, files, gauge, commands } = {}) {
    this.#draft = draft;
    this.#button = button;
    this.#actions = actions;
    this.#drafts = drafts;
    this.#files = files;
    this.#gauge = gauge;
    this.#commands = commands;
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("mousedown", (event) => {
      if (event.target instanceof HTMLElement && !event.target.closest("button, textarea, [role=listbox]")) {
        setTimeout(() => this.focus());
      }
    });
    draft.addEventListener("input", () => this.#changed());
    draft.addEventListener("keydown", (event) => this.#key(event));
    draft.addEventListener("blur", () => this.keep());
    addEventListener("pagehide", () => this.keep());
    document.addEventListener("visibilitychange", () => document.hidden && this.keep());
    button.addEventListener("click", () => (this.#busy ? actions.stop() : this.submit()));
    files?.addEventListener("change", () => this.#changed());
    this.#put(drafts?.read(null) ?? { text: "", files: [] });
    this.#known = this.#now();
  }

  get text() {
    return this.#draft.value;
  }

  /** @returns {TextFile[]} what goes with the draft */
  get files() {
    return this.#files?.files ?? [];
  }

  /** Whether the draft holds the words of a message that is being edited. */
  get editing() {
    return this.#editing !== null;
  }

  /** Sends what is written, if it may be sent now. */
  submit() {
    const text = this.text;
    const files = this.files;
    if ((text.trim() === "" && files.length === 0) || this.#files?.reading) return;
    const at = this.#conversation;
    const { editing } = this;
    const left = isCommand(text) && !editing ? files : []; // a command takes no files
    const aside = editing ? this.#aside : { text: "", files: left };
    if (!this.#actions.send(text, files)) return;
    // Sending may have brought up another conversation (the first message gives a new one its id), or have
    // ended the edit; what was sent is nobody's draft any more in any case.
    this.#drafts?.write(at, { ...aside, edit: null });
    if (this.#conversation === at && this.editing) this.#leaveEdit();
    else if (this.#conversation === at && !editing) this.#put({ text: "", files: left });
    this.#known = this.#now();
    this.focus();
  }

  /**
   * The conversation that is shown from now on. Its draft comes up; the one so far is kept. Nothing happens if
   * it is the one that was shown, so this may be called whenever something has changed.
   * @param {string | null} id null for one without messages
   */
  setConversation(id) {
    if (id === this.#conversation) return;
    this.keep();
    this.#conversation = id;
    this.#editing = null;
    this.#aside = { text: "", files: [] };
    this.#put(this.#drafts?.read(id) ?? { text: "", files: [] });
    this.#known = this.#now();
  }

  /** An edit that a reload or another conversation broke off: `edit(kept.text, {message: kept.message})`. */
  get keptEdit() {
    return this.#drafts?.read(this.#conversation).edit ?? null;
  }

  /**
   * Puts a message's text up for editing; the draft so far comes back afterwards.
   * @param {string} text @param {{message?: string, files?: TextFile[]}} [of] the message's id and files
   */
  edit(text, { message = "", files = [] } = {}) {
    if (this.#editing === null) this.#aside = { text: this.text, files: this.files };
    this.#editing = message;
    this.#put({ text, files });
    this.#toEnd();
  }

  /** @returns {import("./drafts.js").Edit | null} what is left behind */
  cancelEdit() {
    if (this.#editing === null) return null;
    const left = { message: this.#editing, text: this.text };
    this.#leaveEdit();
    this.keep();
    this.#toEnd();
    return left;
  }

  /** Puts a text into the draft, as if typed. @param {string} text */
  fill(text) {
    this.#put({ text, files: this.files });
    this.#toEnd();
  }

  /** While an answer grows the button stops it. @param {boolean} busy */
  setBusy(busy) {
    this.#busy = busy;
    this.#button.classList.toggle("busy", busy);
    this.#button.setAttribute("aria-label", t(busy ? "composer.stop" : "composer.send"));
    this.#button.title = t(busy ? "composer.stop.title" : "composer.send");
    this.#refresh();
  }

  /** Tokens of the conversation so far, and how many fit. @param {{used: number | null, limit: number | null}} context */
  setContext(context) {
    this.#gauge?.setContext(context);
  }

  /** Not on touch screens, where it would open the keyboard over the answer. */
  focus() {
    if (!touchOnly()) this.#draft.focus();
  }

  /** Stores the draft now. */
  keep() {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    const at = this.#conversation;
    const now = this.#now();
    if (now === this.#known) return;
    this.#known = now;
    if (this.#editing === null) this.#drafts?.write(at, { text: this.text, files: this.files, edit: null });
    else this.#drafts?.write(at, { ...this.#aside, edit: { message: this.#editing, text: this.text } });
  }

  /** The draft as it is, files by name and size. */
  #now() {
    const sizes = [...this.files, ...this.#aside.files].map(({ name, text }) => [name, text.length]);
    return JSON.stringify([this.#conversation, this.#editing, this.text, this.#aside.text, sizes]);
  }

  #leaveEdit() {
    this.#editing = null;
    const aside = this.#aside;
    this.#aside = { text: "", files: [] };
    this.#put(aside);
  }

  /** @param {{text: string, files: TextFile[]}} draft */
  #put({ text, files }) {
    this.#draft.value = text;
    this.#files?.set(files);
    this.#commands?.close();
    this.#refresh();
  }

  #toEnd() {
    this.#draft.focus();
    this.#draft.setSelectionRange(this.text.length, this.text.length);
  }

  /** @param {KeyboardEvent} event */
  #key(event) {
    // keyCode 229: Safari ends a composition before the key that ended it is reported.
    if (event.isComposing || event.keyCode === 229) return;
    if (this.#commands?.key(event)) event.preventDefault();
    else if (event.key === "Enter" && this.#sends(event)) {
      event.preventDefault();
      this.submit();
    } else if (event.key === "ArrowUp" && this.#actions.editLast && this.#mayEditLast(event)) {
      event.preventDefault();
      this.#actions.editLast();
    }
  }

  /** @param {KeyboardEvent} event */
  #sends({ shiftKey, altKey, ctrlKey, metaKey }) {
    if (shiftKey || altKey) return false;
    if (ctrlKey || metaKey) return true;
    return this.enterKey === "send" && !touchOnly(); // a phone's Enter is the only way to a new line
  }

  /** @param {KeyboardEvent} event */
  #mayEditLast({ shiftKey, altKey, ctrlKey, metaKey }) {
    const plain = !shiftKey && !altKey && !ctrlKey && !metaKey;
    return plain && this.text === "" && this.files.length === 0 && !this.#busy && !this.editing;
  }

  #changed() {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.keep(), KEEP_AFTER);
    this.#refresh();
    this.#commands?.update();
  }

  #refresh() {
    const empty = this.text.trim() === "" && this.files.length === 0;
    this.#button.disabled = !this.#busy && (empty || this.#files?.reading === true);
    this.#gauge?.update(this.text, this.files);
    if (CSS.supports("field-sizing", "content")) return; // the stylesheet does it, and sets the limit
    this.#draft.style.height = "auto";
    this.#draft.style.height = `${this.#draft.scrollHeight}px`;
  }
}

function touchOnly() {
  return matchMedia("(hover: none) and (pointer: coarse)").matches;
}
