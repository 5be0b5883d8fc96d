/**
 * How answers are sampled. A value in force is the conversation's own if it has one, else the reader's own for
 * all conversations, else what the model card recommends, else the server's business (the field is not sent).
 *
 * The reader's own values are stored here; a conversation's stand in its head, which is stored with it.
 */

import { FIELDS, checked, isField, parse, toRequest, write } from "./fields.js";

export { FIELDS };

/**
 * @typedef {import("../core/conversation.js").Head} Head
 * @typedef {"all" | "chat"} Scope whether a change counts for all conversations, or for the one that is shown
 * @typedef {Record<string, unknown>} Values
 */

export const STORAGE_KEY = "fastpath.settings";

/** Stands for "without a system prompt" in a conversation, where the reader has one for all others. */
const NO_SYSTEM = " ";

/**
 * Tells by events: `change` (something in force may have changed), `kept` (the conversation's head has changed
 * and should be stored), `unkept` (the browser's storage took no more).
 */
export class Settings extends EventTarget {
  /** @type {Values} */
  #card = {};
  /** @type {Values} */
  #own = {};
  #system = "";
  #storage;
  /** @type {Head | null} */
  #head = null;
  /** @type {Scope} */
  #scope = "all";

  /** @param {Storage | null} storage null where the browser offers none */
  constructor(storage) {
    super();
    this.#storage = storage;
    this.#read();
  }

  /** What the model card recommends. @param {Record<string, unknown>} defaults */
  recommend(defaults) {
    this.#card = {};
    for (const [name, value] of Object.entries(defaults)) {
      const known = ["number", "whole"].includes(FIELDS[name]?.kind) && typeof value === "number";
      if (known && Number.isFinite(value)) this.#card[name] = value;
    }
    this.#tell();
  }

  /** The conversation that is shown from now on; null for none. @param {Head | null} head */
  bind(head) {
    this.#head = head;
    this.#tell();
  }

  /** Whether there is a conversation that can have settings of its own. */
  get bound() {
    return this.#head !== null;
  }

  /** Whether changes count for all conversations, or for the one that is shown. @returns {Scope} */
  get scope() {
    return this.#head === null ? "all" : this.#scope;
  }

  set scope(scope) {
    this.#scope = scope;
    this.#tell();
  }

  /** The value in force, undefined for the server's own default. @param {string} name @returns {any} */
  get(name) {
    return this.#chats()[name] ?? this.#own[name] ?? this.#card[name];
  }

  /** What would be in force if nothing were set in this scope. @param {string} name @returns {any} */
  recommended(name, scope = this.scope) {
    return (scope === "chat" ? this.#own[name] : undefined) ?? this.#card[name];
  }

  /** The value set in this scope. @param {string} name @returns {any} */
  own(name, scope = this.scope) {
    return scope === "chat" ? this.#chats()[name] : this.#own[name];
  }

  /** What this scope has for a field, as a text. @param {string} name */
  text(name, scope = this.scope) {
    return write(name, this.own(name, scope) ?? this.recommended(name, scope));
  }

  /**
   * Sets a value; an empty text takes it away. One that counts for all conversations counts for the one that
   * is shown, too, whatever it had before.
   * @param {string} name a key of FIELDS
   * @param {string} text as typed
   * @returns {string} what is wrong with it, empty if nothing
   */
  set(name, text, scope = this.scope) {
    const { value, problem } = parse(name, text);
    if (problem !== "") return problem;
    this.#put({ [name]: value }, scope);
    return "";
  }

  /** Sets several values at once; undefined takes one away. @param {Values} values */
  setAll(values, scope = this.scope) {
    const known = Object.keys(values).filter(isField);
    this.#put(Object.fromEntries(known.map((name) => [name, checked(name, values[name])])), scope);
  }

  /** The system prompt in force. */
  get system() {
    return this.#head?.system ? this.#head.system.trim() && this.#head.system : this.#system;
  }

  set system(text) {
    this.setSystem(text);
  }

  /** The system prompt of this scope. */
  systemIn(scope = this.scope) {
    return scope === "chat" ? this.system : this.#system;
  }

  /** @param {string} text */
  setSystem(text, scope = this.scope) {
    if (scope === "all") this.#system = text;
    this.#changeHead((head) => {
      const same = text === this.#system;
      head.system = same ? "" : text === "" ? NO_SYSTEM : text;
    });
    if (scope === "all") this.#write();
    this.#tell();
  }

  /**
   * Writes the system prompt in force into the conversation, with which it is stored and exported. To be
   * called when a message is sent; a later change for all conversations still counts for the one shown.
   */
  settle() {
    if (this.#head?.system === "" && this.#system.trim() !== "") {
      this.#changeHead((head) => (head.system = this.#system));
    }
  }

  /** True if the reader has set anything, here or for all conversations. */
  get changed() {
    return this.system.trim() !== "" || Object.keys({ ...this.#own, ...this.#chats() }).length > 0;
  }

  /** Whether anything is set in this scope. */
  changedIn(scope = this.scope) {
    const system = scope === "chat" ? (this.#head?.system ?? "") : this.#system;
    return system !== "" || Object.keys(scope === "chat" ? this.#chats() : this.#own).length > 0;
  }

  /** Takes everything back that was set in this scope, the system prompt too. */
  reset(scope = this.scope) {
    this.#changeHead((head) => Object.assign(head, { settings: {}, system: "" }));
    if (scope === "all") {
      this.#own = {};
      this.#system = "";
      this.#write();
    }
    this.#tell();
  }

  /** Everything that the reader has set and that is in force. @returns {Values} */
  values() {
    return { ...this.#own, ...this.#chats() };
  }

  /** The sampling fields of a request. @returns {Record<string, unknown>} */
  request() {
    return toRequest({ ...this.#card, ...this.values() });
  }

  /** Takes what another tab has stored. */
  reload() {
    this.#own = {};
    this.#system = "";
    this.#read();
    this.#tell();
  }

  /** The conversation's own values, those left out that an import or an older page got wrong. @returns {Values} */
  #chats() {
    const settings = this.#head?.settings ?? {};
    /** @type {Values} */
    const values = {};
    for (const name of Object.keys(settings)) {
      const value = checked(name, settings[name]);
      if (value !== undefined) values[name] = value;
    }
    return values;
  }

  /** @param {Values} values @param {Scope} scope */
  #put(values, scope) {
    if (scope === "all") {
      merge(this.#own, values);
      this.#write();
    }
    const names = Object.keys(values);
    const chats = scope === "chat" ? values : Object.fromEntries(names.map((name) => [name, undefined]));
    this.#changeHead((head) => merge((head.settings = { ...head.settings }), chats));
    this.#tell();
  }

  /** @param {(head: Head) => void} change */
  #changeHead(change) {
    if (this.#head === null) return;
    const before = JSON.stringify([this.#head.system, this.#head.settings]);
    change(this.#head);
    if (JSON.stringify([this.#head.system, this.#head.settings]) !== before) {
      this.dispatchEvent(new Event("kept"));
    }
  }

  #read() {
    try {
      const stored = JSON.parse(this.#storage?.getItem(STORAGE_KEY) ?? "{}");
      if (typeof stored.system === "string") this.#system = stored.system;
      for (const name of Object.keys(FIELDS)) {
        const value = checked(name, stored[name]);
        if (value !== undefined) this.#own[name] = value;
      }
    } catch {
      // Stored by something else, or storage is forbidden: start from the model card.
    }
  }

  #write() {
    try {
      this.#storage?.setItem(STORAGE_KEY, JSON.stringify({ ...this.#own, system: this.#system }));
    } catch {
      this.dispatchEvent(new Event("unkept")); // full or forbidden: the settings hold until the page is closed
    }
  }

  #tell() {
    this.dispatchEvent(new Event("change"));
  }
}

/** @param {Values} into @param {Values} values undefined takes one away */
function merge(into, values) {
  for (const [name, value] of Object.entries(values)) {
    if (value === undefined) delete into[name];
    else into[name] = value;
  }
}
