/** A file's text, to look at. */

import { el, iconButton } from "../shell/dom.js";
import { t } from "../words/words.js";
import { sizeOf } from "./file_chips.js";

/** @param {import("../core/conversation.js").TextFile} file */
export function viewFile(file) {
  const close = () => dialog.close();
  const title = el("h2", { id: "file-title", text: file.name, dir: "auto", translate: "no" });
  const dialog = el("dialog", { class: "file-view", "aria-labelledby": "file-title" },
    el("header", {}, title, el("p", { text: sizeOf(file) }),
      iconButton("close", t("files.close"), { class: "plain icon-only", on: { click: close } })),
    el("pre", { text: file.text, tabindex: 0, dir: "auto", role: "region", "aria-label": file.name }));
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog) close(); // the backdrop
  });
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
}
