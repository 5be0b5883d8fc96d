/** The list of all keys, as a dialog. */

import { t } from "../words/words.js";
import { openDialog } from "./dialog.js";
import { el } from "./dom.js";
import { Keys, writtenKeys } from "./keys.js";

/** @typedef {import("./keys.js").Shortcut} Shortcut */

/** Opens the sheet; Escape closes it. */
export function openKeySheet() {
  const groups = [
    group(t("shell.keys_chats"), "chats"),
    group(t("shell.keys_messages"), "messages"),
    group(t("shell.keys_page"), "page"),
  ];
  const single = el("input", { type: "checkbox", checked: Keys.single });
  single.addEventListener("change", () => (Keys.single = single.checked));
  const choice = el("label", { class: "check" }, single, el("span", { text: t("shell.keys_single") }));
  openDialog(t("shell.keys_sheet"), { class: "key-sheet" }, el("div", { class: "key-groups" }, ...groups), choice);
}

/** @param {string} title @param {import("./keys.js").Group} name */
function group(title, name) {
  const entries = Keys.list().filter((entry) => (entry.group ?? "page") === name);
  if (entries.length === 0) return "";
  const labels = [...new Set(entries.map(({ label }) => label))];
  const rows = labels.map((label) => row(label, entries.filter((entry) => entry.label === label)));
  return el("section", {}, el("h3", { text: title }), el("dl", {}, ...rows));
}

/** @param {string} label @param {Shortcut[]} entries what does the same by different keys */
function row(label, entries) {
  const ways = entries.map(({ keys }) => el("dd", {}, ...writtenKeys(keys).map((key) => el("kbd", { text: key }))));
  return el("div", {}, el("dt", { text: label }), ...ways);
}
