/**
 * The conversation on the screen: the messages of the path that is shown, and notes between them.
 *
 * A long conversation opens at once: far from the reader's eyes a message is only its text, which is dressed
 * (markdown, tools) when it comes near.
 */

import { el } from "../shell/dom.js";
import { t } from "../words/words.js";
import { AnswerView } from "./answer_view.js";
import { canContinue, endedByItself } from "./going_on.js";
import { part, stamp } from "./stamp.js";
import { when } from "./when.js";

/**
 * @typedef {import("../core/conversation.js").Message} Message
 * @typedef {import("../core/conversation.js").Conversation} Conversation
 */

const DRESSED_AT_ONCE = 8; // messages at the end; with these the first screen is full
const NEAR = "1200px 0px"; // from the visible part, within which messages are dressed

export class LogView {
  #log;
  #welcome;
  #near;
  /** @type {Conversation | null} */
  #conversation = null;
  /** @type {Map<string, AnswerView>} */
  #views = new Map();
  /** @type {[string, string] | null} two answers that stand side by side */
  pair = null;

  /** @param {HTMLElement} log @param {HTMLElement} welcome shown while the log is empty @param {HTMLElement} scroller */
  constructor(log, welcome, scroller) {
    this.#log = log;
    this.#welcome = welcome;
    this.#near = new IntersectionObserver((entries) => this.#comeNear(entries), { root: scroller, rootMargin: NEAR });
  }

  /**
   * Shows the conversation's path. What is there already stays as it is.
   * @param {Conversation} conversation @param {ReadonlyMap<string, AnswerView>} growing views of answers on their way
   */
  show(conversation, growing) {
    if (conversation !== this.#conversation) this.#forget();
    this.#conversation = conversation;
    const focused = this.#log.contains(document.activeElement);
    const path = conversation.path();
    const kept = this.#keepCommon(path);
    const fragment = document.createDocumentFragment();
    for (const [at, message] of path.entries()) {
      if (at < kept) continue;
      fragment.append(this.#element(message, growing, at >= path.length - DRESSED_AT_ONCE));
    }
    this.#log.append(fragment);
    for (const message of path) this.refresh(message.id);
    this.#welcome.hidden = this.#log.childElementCount > 0;
    const last = [...this.#log.querySelectorAll(".message")].at(-1);
    // What had the focus may be gone: the keyboard goes on from the end of the chat, not from the page's top.
    if (focused && !this.#log.contains(document.activeElement) && last instanceof HTMLElement) last.focus({ preventScroll: true });
  }

  /** @param {string} id @returns {AnswerView | undefined} if it is shown, and dressed */
  view(id) {
    return this.#views.get(id);
  }

  /** @param {string} id @returns {HTMLElement | null} */
  find(id) {
    return this.#log.querySelector(`.message[data-id="${CSS.escape(id)}"]`);
  }

  /** Dresses a message now, since the reader goes there. @param {string} id @returns {HTMLElement | null} */
  dress(id) {
    const element = this.find(id);
    if (element?.classList.contains("plain")) this.#dress(element);
    return this.find(id);
  }

  /** Brings a message's tools up to date: its variants, and what can be done with it. @param {string} id */
  refresh(id) {
    const conversation = this.#conversation;
    const message = conversation?.find(id);
    const element = this.find(id);
    if (!conversation || !message || !element || element.classList.contains("plain")) return;
    const siblings = conversation.siblings(id);
    const variants = part(element, ".variants");
    variants.hidden = siblings.length < 2;
    const of = siblings.length;
    const at = siblings.indexOf(id) + 1;
    part(variants, ".count").textContent = `${at}/${of}`;
    part(variants, ".count").setAttribute("aria-label", t("chat.variant", { at, of }));
    /** @type {HTMLButtonElement} */ (part(variants, ".prev")).disabled = at === 1;
    /** @type {HTMLButtonElement} */ (part(variants, ".next")).disabled = at === of;
    if (message.role === "user") return;
    const busy = message.state === "streaming";
    part(element, ".continue").hidden = busy || !canContinue(conversation, id) || endedByItself(message);
    part(element, ".tool.heat").hidden = busy || !message.scores?.length;
    for (const name of [".regenerate", ".compare", ".more"]) part(element, name).hidden = busy;
  }

  /** A line of the console, which is no message. @param {string} text */
  addNote(text) {
    this.#log.append(el("aside", { class: "note", "aria-label": t("chat.note"), text }));
    this.#welcome.hidden = true;
  }

  /** Fades what an edit leaves behind; null for nothing. @param {string | null} id */
  markReplaced(id) {
    for (const element of this.#log.children) element.classList.remove("replaced");
    let element = id === null ? null : this.#row(this.find(id));
    for (; element; element = element.nextElementSibling) element.classList.add("replaced");
  }

  /**
   * Calls back with a message's id when one of its tools is used.
   * @param {string} tool class name of the button @param {(id: string, button: HTMLElement) => void} action
   */
  onTool(tool, action) {
    this.#log.addEventListener("click", (event) => {
      const button = /** @type {HTMLElement} */ (event.target).closest(`button.${tool}`);
      const message = button?.closest(".message");
      if (button?.closest(".body")) return; // a block of code has buttons of its own
      if (button instanceof HTMLElement && message instanceof HTMLElement) action(message.dataset.id ?? "", button);
    });
  }

  #forget() {
    this.#near.disconnect();
    this.#log.replaceChildren();
    this.#views.clear();
  }

  /**
   * Removes what stands behind the part that the path and the log have in common, notes included.
   * @param {Message[]} path @returns {number} how many messages stay
   */
  #keepCommon(path) {
    let kept = 0;
    let element = this.#log.firstElementChild;
    for (; element; element = element.nextElementSibling) {
      if (element.classList.contains("note")) continue;
      const message = path[kept];
      if (message === undefined || !this.#stands(element, message)) break;
      kept += 1;
    }
    while (element) {
      const next = element.nextElementSibling;
      for (const each of [element, ...element.querySelectorAll(".message")]) {
        if (each instanceof HTMLElement) this.#views.delete(each.dataset.id ?? "");
        this.#near.unobserve(each);
      }
      element.remove();
      element = next;
    }
    return kept;
  }

  /** @param {Element} element @param {Message} message whether this element shows the message as it is now */
  #stands(element, message) {
    const pair = this.#pairOf(message);
    if (element instanceof HTMLElement && element.dataset.pair !== undefined) {
      return pair !== null && element.dataset.pair === pair.join(" ");
    }
    return pair === null && element instanceof HTMLElement && element.dataset.id === message.id;
  }

  /** @param {Message} message */
  #pairOf(message) {
    return this.pair?.includes(message.id) ? this.pair : null;
  }

  /** @param {Message} message @param {ReadonlyMap<string, AnswerView>} growing @param {boolean} dressed */
  #element(message, growing, dressed) {
    const pair = this.#pairOf(message);
    if (pair !== null) return this.#pairElement(pair, growing);
    if (dressed || growing.has(message.id)) return this.#dressed(message, growing);
    const element = el("article", { class: `message plain ${message.role === "user" ? "user" : "answer"}` });
    element.dataset.id = message.id;
    const text = message.content === "" ? (message.files ?? []).map(({ name }) => name).join(", ") : message.content;
    element.append(el("div", { class: message.role === "user" ? "bubble" : "body", dir: "auto", text }));
    this.#near.observe(element);
    return element;
  }

  /** @param {[string, string]} pair @param {ReadonlyMap<string, AnswerView>} growing */
  #pairElement(pair, growing) {
    const row = el("section", { class: "pair", "aria-label": t("chat.sideBySide"), data: { pair: pair.join(" ") } });
    for (const [at, id] of pair.entries()) {
      const message = this.#conversation?.find(id);
      if (message === undefined) continue;
      const element = this.#dressed(message, growing);
      element.setAttribute("aria-label", t(at === 0 ? "chat.first" : "chat.second"));
      element.append(el("button", { type: "button", class: "choose", text: t("chat.useThis") }));
      row.append(element);
    }
    return row;
  }

  /** @param {Message} message @param {ReadonlyMap<string, AnswerView>} [growing] @returns {HTMLElement} */
  #dressed(message, growing) {
    if (message.role === "user") return userElement(message);
    const view = growing?.get(message.id) ?? new AnswerView(message);
    this.#views.set(message.id, view);
    return view.element;
  }

  /** @param {IntersectionObserverEntry[]} entries */
  #comeNear(entries) {
    for (const { target, isIntersecting } of entries) {
      if (isIntersecting && target instanceof HTMLElement && target.isConnected) this.#dress(target);
    }
  }

  /** @param {HTMLElement} element */
  #dress(element) {
    this.#near.unobserve(element);
    const id = element.dataset.id ?? "";
    const message = this.#conversation?.find(id);
    if (message === undefined) return;
    element.replaceWith(this.#dressed(message));
    this.refresh(id);
  }

  /** The log's own child that holds this message. @param {HTMLElement | null} element @returns {Element | null} */
  #row(element) {
    return element?.closest(".pair") ?? element;
  }
}

/** @param {Message} message */
function userElement(message) {
  const element = stamp("user-template");
  element.dataset.id = message.id;
  const bubble = part(element, ".bubble");
  bubble.textContent = message.content;
  bubble.hidden = message.content === "";
  if (Number.isFinite(message.created)) part(element, ".tools").prepend(when(message.created));
  const files = (message.files ?? []).map(({ name }) =>
    el("li", { class: "file", text: name, title: t("chat.file", { name }) }),
  );
  if (files.length > 0) bubble.before(el("ul", { class: "message-files" }, ...files));
  return element;
}
