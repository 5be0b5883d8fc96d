/** What can be done with the conversations of the list. Loaded when it is first used. */

import { ask, openDialog } from "../shell/dialog.js";
import { el } from "../shell/dom.js";
import { openMenu } from "../shell/menu.js";
import { toast } from "../shell/toast.js";
import { t } from "../words/words.js";
import { copyOf } from "./copy.js";
import { download } from "./download.js";
import { jsonParts, toMarkdown } from "./formats.js";

/**
 * @typedef {import("../core/conversation.js").Head} Head
 * @typedef {import("../core/conversation.js").Records} Records
 * @typedef {import("./chat_list.js").ChatList} ChatList
 * @typedef {import("./formats.js").Skipped} Skipped
 */

const MOST_TOLD = 200; // lines of what an import left out

export class ChatActions {
  #parts;
  #list;
  #settle;

  /**
   * @param {import("./sidebar.js").Parts} parts @param {ChatList} list
   * @param {() => Promise<void>} settle brings the list up to date
   */
  constructor(parts, list, settle) {
    this.#parts = parts;
    this.#list = list;
    this.#settle = settle;
  }

  /** @param {string} id @param {HTMLElement} button */
  async menu(id, button) {
    const head = await this.#parts.library.head(id);
    if (head === undefined) return;
    openMenu(button, [
      { label: t("keep.rename"), icon: "edit", run: () => this.rename(id) },
      { label: t(head.pinned ? "keep.unpin" : "keep.pin"), icon: "pin", run: () => this.#pin(id, !head.pinned) },
      { label: t("keep.duplicate"), icon: "copy", run: () => this.#duplicate(id) },
      "line",
      { label: t("keep.asMarkdown"), icon: "export", run: () => this.#export(id, "md") },
      { label: t("keep.asJson"), icon: "export", run: () => this.#export(id, "json") },
      "line",
      { label: t("keep.remove"), icon: "bin", danger: true, run: () => this.remove(id) },
    ]);
  }

  /** A field in the place of the title. Enter and leaving it take the name, Escape does not. @param {string} id */
  async rename(id) {
    const row = this.#list.row(id);
    const head = await this.#parts.library.head(id);
    const button = row?.querySelector("button");
    if (!row || !button || head === undefined || row.querySelector("input") !== null) return;
    const input = el("input", { class: "chat-name", value: head.title, "aria-label": t("keep.newName"), dir: "auto", maxlength: "200" });
    let done = false;
    /** @param {boolean} take @param {boolean} back whether the focus goes back to the row */
    const end = async (take, back) => {
      if (done) return;
      done = true;
      row.classList.remove("renaming");
      input.remove();
      if (back) this.#list.focus(button);
      const title = input.value.trim().replace(/\s+/g, " ");
      if (take && title !== "" && title !== head.title) await this.#parts.library.changeHead(id, { title, named: true });
    };
    input.addEventListener("keydown", (event) => {
      event.stopPropagation();
      if (event.isComposing || (event.key !== "Enter" && event.key !== "Escape")) return;
      event.preventDefault();
      end(event.key === "Enter", true);
    });
    input.addEventListener("blur", () => end(true, false));
    row.classList.add("renaming");
    row.prepend(input);
    input.focus();
    input.select();
  }

  /** Removes a conversation, and offers to put it back. @param {string} id */
  async remove(id) {
    const { library, currentId, isBusy, newChat, open, stop } = this.#parts;
    const inList = this.#list.element.contains(document.activeElement);
    const next = this.#list.beside(id);
    if (isBusy?.(id)) await stop?.(id);
    const shown = currentId() === id;
    const records = await library.remove(id);
    if (records === undefined) return;
    if (shown) await newChat();
    await this.#settle();
    if (inList) this.#focus(next);
    const putBack = async () => {
      await library.write(records);
      await this.#settle();
      if (shown) await open(id, null);
      else this.#focus(id);
    };
    toast(t("keep.removed", { title: records.head.title || t("keep.untitled") }), { action: { label: t("keep.undo"), run: putBack } });
  }

  async removeAll() {
    const { library, currentId, isBusy, newChat, stop } = this.#parts;
    const heads = await library.list();
    if (heads.length === 0) return toast(t("keep.noneYet"));
    const sure = await ask(t("keep.removeAllQuestion", { n: heads.length }), {
      detail: t("keep.removeAllDetail"), confirm: t("keep.removeAll"), danger: true,
    });
    if (!sure) return;
    const shown = currentId();
    /** @type {Records[]} */
    const gone = [];
    for (const { id } of heads) {
      if (isBusy?.(id)) await stop?.(id);
      const records = await library.remove(id);
      if (records !== undefined) gone.push(records);
    }
    if (gone.some(({ head }) => head.id === shown)) await newChat();
    await this.#settle();
    const putBack = async () => {
      for (const records of gone) await library.write(records);
    };
    toast(t("keep.removedAll", { n: gone.length }), { action: { label: t("keep.undo"), run: putBack } });
  }

  async exportAll() {
    const all = await this.#parts.library.all();
    if (all.length === 0) return toast(t("keep.noneYet"));
    const day = new Date().toISOString().slice(0, 10);
    download(`fastpath-${day}.json`, "application/json", jsonParts(all));
  }

  /** Asks for files and takes them in. */
  importFiles() {
    const input = el("input", { type: "file", multiple: true, accept: ".json,.jsonl,.zip" });
    input.addEventListener("change", () => this.takeIn([...(input.files ?? [])]));
    input.click();
  }

  /** @param {File[]} files */
  async takeIn(files) {
    const { importFiles } = await import("./importing.js");
    const { added, known, skipped } = await importFiles(this.#parts.library, files);
    await this.#settle();
    const words = [t("keep.imported", { n: added })];
    if (known > 0) words.push(t("keep.known", { n: known }));
    if (skipped.length === 0) return toast(words.join(" "));
    const kind = added === 0 && known === 0 ? "problem" : "info";
    toast([...words, t("keep.skipped")].join(" "), { kind, action: { label: t("keep.what"), run: () => tell(skipped) }, seconds: 0 });
  }

  /** @param {string} id @param {boolean} pinned */
  async #pin(id, pinned) {
    await this.#parts.library.changeHead(id, { pinned });
    await this.#settle();
  }

  /** @param {string} id */
  async #duplicate(id) {
    const [records] = await this.#parts.library.all([id]);
    if (records === undefined) return;
    const copy = copyOf(records);
    const title = t("keep.copyOf", { title: records.head.title || t("keep.untitled") });
    Object.assign(copy.head, { title, named: true, pinned: false, updated: Date.now() });
    await this.#parts.library.write(copy);
    await this.#settle();
    await this.#parts.open(copy.head.id, null);
  }

  /** @param {string} id @param {"md" | "json"} format */
  async #export(id, format) {
    const [records] = await this.#parts.library.all([id]);
    if (records === undefined) return;
    const name = `${records.head.title}.${format}`;
    if (format === "json") download(name, "application/json", jsonParts([records]));
    else download(name, "text/markdown", toMarkdown(records));
  }

  /** @param {string | undefined} id */
  #focus(id) {
    const row = id === undefined ? undefined : this.#list.row(id);
    if (row !== undefined) this.#list.focus(row.querySelector("button"));
    else document.getElementById("search-chats")?.focus();
  }
}

/** @param {Skipped[]} skipped */
function tell(skipped) {
  const lines = skipped.slice(0, MOST_TOLD).map(({ what, why }) => el("li", { dir: "auto" }, el("strong", { text: what }), document.createTextNode(`: ${why}`)));
  const rest = skipped.length - lines.length;
  openDialog(t("keep.skippedTitle"), { class: "skipped" }, el("ul", {}, ...lines), rest > 0 ? t("keep.andMore", { n: rest }) : "");
}
