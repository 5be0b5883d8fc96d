/** A long text that is pasted can become a file: it then goes with the message instead of filling the box. */

import { toast } from "../shell/toast.js";
import { t } from "../words/words.js";

/** @typedef {import("./files.js").Attachments} Attachments */

const LONG = 4000; // characters, more than a few screens

/** @param {HTMLTextAreaElement} draft @param {Attachments} attachments */
export function offerFiles(draft, attachments) {
  draft.addEventListener("paste", (event) => {
    const text = (event.clipboardData?.getData("text/plain") ?? "").replace(/\r\n?/g, "\n"); // as the box has it
    if (text.length < LONG) return;
    const run = () => toFile(draft, attachments, text);
    toast(t("files.long_paste"), { action: { label: t("files.as_file"), run } });
  });
}

/** @param {HTMLTextAreaElement} draft @param {Attachments} attachments @param {string} text */
function toFile(draft, attachments, text) {
  const at = draft.value.indexOf(text);
  if (at < 0) return; // it was changed, or sent
  draft.setRangeText("", at, at + text.length, "end");
  attachments.addText(freeName(attachments), text); // tells of the change, so that the draft is kept, too
  draft.dispatchEvent(new Event("input", { bubbles: true }));
  draft.focus();
}

/** @param {Attachments} attachments */
function freeName({ files }) {
  for (let k = 1; ; k++) {
    const name = t(k === 1 ? "files.pasted" : "files.pasted_more", { n: k });
    if (!files.some((file) => file.name === name)) return name;
  }
}
