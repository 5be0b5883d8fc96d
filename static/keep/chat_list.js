/** The list of conversations: grouped, with one place for the Tab key, and drawn only as far as it is scrolled. */

import { el, iconButton } from "../shell/dom.js";
import { t } from "../words/words.js";
import { grouped } from "./groups.js";

/**
 * @typedef {import("../core/conversation.js").Head} Head
 * @typedef {import("./groups.js").Group} Group
 */

const AT_ONCE = 60; // rows

export class ChatList {
  element = el("div", { class: "chat-list" });
  #more = el("button", { type: "button", class: "plain more-chats" });
  /** @type {Map<string, HTMLLIElement>} */
  #rows = new Map();
  /** @type {Map<Group, HTMLElement>} */
  #sections = new Map();
  /** @type {Head[]} */
  #heads = [];
  #shown = AT_ONCE;

  constructor() {
    this.#more.addEventListener("click", () => this.#showMore());
    new IntersectionObserver((entries) => entries.some((entry) => entry.isIntersecting) && this.#showMore(), {
      rootMargin: "400px",
    }).observe(this.#more);
  }

  /** @param {Head[]} heads pinned ones first, then the newest */
  draw(heads) {
    this.#heads = heads;
    const focused = this.element.contains(document.activeElement) ? document.activeElement : null;
    const shown = heads.slice(0, this.#shown);
    const ids = new Set(shown.map(({ id }) => id));
    for (const [id, row] of this.#rows) {
      if (ids.has(id)) continue;
      row.remove();
      this.#rows.delete(id);
    }
    const sections = grouped(shown).map(([group, members]) => {
      const section = this.#section(group);
      arrange(/** @type {HTMLElement} */ (section.lastElementChild), members.map((head) => this.#row(head)));
      return section;
    });
    this.#more.hidden = heads.length <= this.#shown;
    this.#more.textContent = t("keep.more", { n: heads.length - shown.length });
    arrange(this.element, [...sections, this.#more]);
    // A row that has moved has lost the focus.
    if (focused instanceof HTMLElement && focused.isConnected && document.activeElement !== focused) focused.focus();
    if (this.element.querySelector(".chat-row[tabindex='0']") === null) this.#makeTabbable(this.buttons()[0]);
  }

  /** @param {string | null} current @param {(id: string) => boolean} isBusy */
  mark(current, isBusy) {
    for (const [id, row] of this.#rows) {
      const button = /** @type {HTMLElement} */ (row.querySelector(".chat-row"));
      if (id === current) button.setAttribute("aria-current", "true");
      else button.removeAttribute("aria-current");
      const busy = isBusy(id);
      row.classList.toggle("busy", busy);
      /** @type {HTMLElement} */ (row.querySelector(".state")).textContent = busy ? t("keep.busy") : "";
    }
    const at = current === null ? undefined : this.row(current);
    if (at !== undefined && !this.element.contains(document.activeElement)) this.#makeTabbable(at.querySelector("button"));
  }

  /** @param {string} id @returns {HTMLLIElement | undefined} */
  row(id) {
    return this.#rows.get(id);
  }

  /** @returns {HTMLButtonElement[]} those that open a conversation, from the top */
  buttons() {
    return [...this.element.querySelectorAll(/** @type {"button"} */ ("button.chat-row"))];
  }

  /** Moves the focus. @param {HTMLElement | undefined} from @param {"ArrowUp" | "ArrowDown" | "Home" | "End"} key */
  move(from, key) {
    const at = from === undefined ? -1 : this.buttons().indexOf(/** @type {HTMLButtonElement} */ (from));
    if (key === "End") this.#shown = this.#heads.length;
    if (key === "End" || (key === "ArrowDown" && at === this.buttons().length - 1)) this.#showMore();
    const buttons = this.buttons();
    const to = { ArrowUp: at - 1, ArrowDown: at + 1, Home: 0, End: buttons.length - 1 }[key];
    this.focus(buttons[to]);
    return buttons[to] !== undefined;
  }

  /** @param {HTMLElement | null | undefined} button */
  focus(button) {
    if (!button) return;
    this.#makeTabbable(button);
    button.focus();
  }

  /** Where the focus goes when this one goes. @param {string} id @returns {string | undefined} */
  beside(id) {
    const at = this.#heads.findIndex((head) => head.id === id);
    return (this.#heads[at + 1] ?? this.#heads[at - 1])?.id;
  }

  #showMore() {
    if (this.#rows.size >= this.#heads.length) return;
    this.#shown = Math.max(this.#shown, this.#rows.size) + AT_ONCE;
    const fresh = new Set(this.#rows.keys());
    this.draw(this.#heads);
    const added = [...this.#rows.keys()].filter((id) => !fresh.has(id));
    this.element.dispatchEvent(new CustomEvent("drawn", { detail: added }));
  }

  /** Only one row is reached by Tab; the arrows go to the others. @param {HTMLElement | null | undefined} button */
  #makeTabbable(button) {
    if (!button) return;
    for (const old of this.element.querySelectorAll("[tabindex='0']")) old.setAttribute("tabindex", "-1");
    for (const own of button.closest("li")?.querySelectorAll("button") ?? []) own.setAttribute("tabindex", "0");
  }

  /** @param {Group} group */
  #section(group) {
    const there = this.#sections.get(group);
    if (there !== undefined) return there;
    const title = `chats-${group}`;
    const section = el(
      "section",
      { "aria-labelledby": title },
      el("h3", { id: title, text: t(`keep.group.${group}`) }),
      el("ul"),
    );
    this.#sections.set(group, section);
    return section;
  }

  /** @param {Head} head */
  #row({ id, title }) {
    const shown = title.trim() || t("keep.untitled");
    const row = this.#rows.get(id) ?? newRow(id);
    this.#rows.set(id, row);
    const name = /** @type {HTMLElement} */ (row.querySelector(".chat-title"));
    if (name.textContent === shown) return row;
    name.textContent = shown;
    /** @type {HTMLElement} */ (row.querySelector(".chat-row")).title = shown;
    /** @type {HTMLElement} */ (row.querySelector(".tool")).setAttribute("aria-label", t("keep.menu", { title: shown }));
    return row;
  }
}

/** @param {string} id */
function newRow(id) {
  const button = el(
    "button",
    { type: "button", class: "chat-row", tabindex: "-1" },
    el("span", { class: "chat-title", dir: "auto" }),
    el("span", { class: "state unseen" }),
  );
  const more = iconButton("more", "", { class: "tool chat-menu", tabindex: "-1", "aria-haspopup": "menu", title: t("keep.menuTitle") });
  return el("li", { data: { id } }, button, more);
}

/** Makes these the children, and moves only those that are not in their place. @param {HTMLElement} parent @param {HTMLElement[]} wanted */
function arrange(parent, wanted) {
  const keep = new Set(/** @type {Element[]} */ (wanted));
  for (const child of [...parent.children]) if (!keep.has(child)) child.remove();
  let at = parent.firstElementChild;
  for (const child of wanted) {
    if (child === at) at = at.nextElementSibling;
    else parent.insertBefore(child, at);
  }
}
