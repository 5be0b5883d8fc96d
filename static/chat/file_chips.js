/** The files of a draft on the screen, and the ways in which they come: picked, dropped, pasted. */

import { el, icon, iconButton } from "../shell/dom.js";
import { spokenLanguage, t } from "../words/words.js";
import { ACCEPT } from "./files.js";

/**
 * @typedef {import("../core/conversation.js").TextFile} TextFile
 * @typedef {import("./files.js").Attachments} Attachments
 * @typedef {{list: HTMLElement, button: HTMLElement, picker: HTMLInputElement, draft: HTMLTextAreaElement}} Places
 */

export class FileChips {
  #attachments;
  #places;

  /** @param {Attachments} attachments @param {Places} places */
  constructor(attachments, places) {
    this.#attachments = attachments;
    this.#places = places;
    attachments.addEventListener("change", () => this.#show());
    this.#show();
  }

  /** Listens to the button, the clipboard, and whatever is dropped on the page. */
  wire() {
    const { button, picker, draft } = this.#places;
    picker.accept = ACCEPT;
    button.addEventListener("click", () => picker.click());
    picker.addEventListener("change", () => {
      this.#add([...(picker.files ?? [])]);
      picker.value = ""; // so that the same file can be picked again
      draft.focus();
    });
    draft.addEventListener("paste", (event) => {
      const files = [...(event.clipboardData?.files ?? [])];
      // Some programs put a picture of the text beside the text; the text is meant.
      if (files.length === 0 || event.clipboardData?.types.includes("text/plain")) return;
      event.preventDefault();
      this.#add(files);
    });
    this.#wireDrops();
  }

  #wireDrops() {
    const shade = el("div", { class: "drop", hidden: true, "aria-hidden": true },
      el("p", {}, icon("clip"), el("span", { text: t("files.drop") })));
    document.body.append(shade);
    const bringsFiles = (/** @type {DragEvent} */ event) => event.dataTransfer?.types.includes("Files") ?? false;
    document.addEventListener("dragover", (event) => {
      if (!bringsFiles(event)) return;
      event.preventDefault();
      shade.hidden = document.querySelector("dialog:modal") !== null;
    });
    document.addEventListener("dragleave", (event) => {
      if (event.relatedTarget === null) shade.hidden = true; // it left the window
    });
    document.addEventListener("drop", async (event) => {
      if (!bringsFiles(event) || event.dataTransfer === null) return;
      event.preventDefault(); // the browser would go to the file
      if (shade.hidden) return;
      shade.hidden = true;
      const { filesOf } = dropped(event.dataTransfer);
      this.#add(await filesOf());
      this.#places.draft.focus();
    });
  }

  /** @param {File[]} files */
  #add(files) {
    if (files.length > 0) this.#attachments.add(files);
  }

  #show() {
    const { list } = this.#places;
    const hadFocus = list.contains(document.activeElement);
    list.replaceChildren(...this.#attachments.files.map((file) => this.#chip(file)));
    list.hidden = list.childElementCount === 0;
    list.setAttribute("aria-busy", String(this.#attachments.reading));
    if (hadFocus) this.#places.draft.focus();
  }

  /** @param {TextFile} file */
  #chip(file) {
    const view = async () => (await import("./file_view.js")).viewFile(file);
    return el("li", { class: "chip" },
      el("button", { type: "button", class: "view", title: t("files.view"), on: { click: view } },
        el("span", { class: "name", text: file.name, dir: "auto", translate: "no" }),
        el("span", { class: "size", text: sizeOf(file) })),
      iconButton("close", t("files.remove", { name: file.name }), {
        class: "remove", on: { click: () => this.#attachments.remove(file) },
      }));
  }
}

/** @param {TextFile} file @returns {string} its size, and its tokens where they are known */
export function sizeOf({ text, tokens }) {
  const kilobytes = new Blob([text]).size / 1000;
  const shown = kilobytes < 10 ? Math.max(0.1, Math.round(kilobytes * 10) / 10) : Math.round(kilobytes);
  const size = t("files.size", { size: shown.toLocaleString(spokenLanguage()) });
  return tokens === null ? size : `${size} · ${t("composer.tokens", { n: tokens })}`;
}

/**
 * What was dropped has to be taken hold of while its event lasts; reading it can wait.
 * @param {DataTransfer} transfer
 */
function dropped(transfer) {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.() ?? null);
  const files = [...transfer.files];
  if (!entries.some((entry) => entry?.isDirectory)) return { filesOf: async () => files };
  return {
    filesOf: async () => (await import("./folders.js")).filesIn(entries.filter((entry) => entry !== null)),
  };
}
