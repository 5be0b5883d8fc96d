/** Puts the frame together: theme, panels, the keys that belong to the page as a whole. */

import { t } from "../words/words.js";
import { byId } from "./dom.js";
import { Keys } from "./keys.js";
import { Layout } from "./layout.js";
import { watchTheme } from "./theme.js";

/**
 * Call it once, after the language is chosen and before other keys are added.
 * @returns {Layout}
 */
export function mountFrame() {
  watchTheme();
  const layout = new Layout();
  const openSheet = async () => (await import("./key_sheet.js")).openKeySheet();
  byId("open-keys").addEventListener("click", openSheet);
  Keys.add({ keys: "Escape", label: "", run: () => layout.closeOverlays(), when: () => layout.covered });
  Keys.add({ keys: "Ctrl+B", label: t("shell.sidebar"), group: "chats", run: () => layout.toggle("sidebar") });
  Keys.add({ keys: "Ctrl+Shift+S", label: t("shell.engine"), run: () => layout.toggle("engine") });
  Keys.add({ keys: "/", label: t("shell.skip_draft"), run: () => byId("draft").focus(), when: () => !layout.covered });
  Keys.add({ keys: "Ctrl+/", label: t("shell.keys_sheet"), run: openSheet });
  Keys.add({ keys: "?", label: t("shell.keys_sheet"), run: openSheet });
  addMoves();
  return layout;
}

/** From message to message: the focus goes to a whole message, whose tools then follow by Tab. */
function addMoves() {
  const up = () => moveToMessage(-1);
  const down = () => moveToMessage(1);
  Keys.add({ keys: "Alt+ArrowUp", label: t("shell.message_up"), group: "messages", run: up, when: mayMove });
  Keys.add({ keys: "Alt+ArrowDown", label: t("shell.message_down"), group: "messages", run: down, when: mayMove });
}

/** In a text these keys move by paragraphs on some systems; an empty box has none. */
function mayMove() {
  const here = document.activeElement;
  const empty = here instanceof HTMLTextAreaElement && here.value === "";
  const inLog = here?.closest("main") !== null;
  return messages().length > 0 && (empty || inLog || here === document.body);
}

/** @returns {HTMLElement[]} */
function messages() {
  return [...byId("log").querySelectorAll("article.message")];
}

/** The message that has the focus, or contains what has it. @returns {HTMLElement | null} */
export function focusedMessage() {
  return document.activeElement?.closest("article.message") ?? null;
}

/** Below the last one is the draft. @param {number} step */
function moveToMessage(step) {
  const all = messages();
  const now = focusedMessage();
  const at = now === null ? all.length : all.indexOf(now);
  const next = at + step;
  if (next >= all.length) byId("draft").focus();
  else all[Math.max(0, next)].focus();
}
