/** The choice of what the Enter key does in the composer. */

import { el } from "../shell/dom.js";
import { remember, remembered } from "../shell/memory.js";
import { t } from "../words/words.js";

/** @typedef {"send" | "line"} EnterKey */

const KEY = "enter-key";

/** @returns {EnterKey} */
export function enterKey() {
  return remembered(KEY) === "line" ? "line" : "send";
}

/**
 * The choice, for the group "Page" of the settings sheet.
 * @param {import("./composer.js").Composer} composer @returns {HTMLElement}
 */
export function enterKeySection(composer) {
  const input = el("input", { type: "checkbox", role: "switch", class: "switch", id: "enter-key", "aria-describedby": "enter-key-hint" });
  input.checked = composer.enterKey === "line";
  input.addEventListener("change", () => {
    composer.enterKey = input.checked ? "line" : "send";
    remember(KEY, composer.enterKey);
    showHint(composer.enterKey);
  });
  return el("div", { class: "field flag" },
    el("div", { class: "name" }, el("label", { for: input.id, text: t("composer.enter") })), input,
    el("p", { class: "hint", id: "enter-key-hint", text: t("composer.enter.hint") }));
}

/** Below the composer. @param {EnterKey} key */
export function showHint(key) {
  const hint = document.querySelector(".hints .keys");
  if (hint !== null) hint.textContent = t(key === "line" ? "composer.hint.line" : "shell.hint");
}
