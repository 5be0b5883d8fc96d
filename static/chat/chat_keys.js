/** The keys of a conversation. */

import { Keys } from "../shell/keys.js";
import { focusedMessage } from "../shell/frame.js";
import { t } from "../words/words.js";

/**
 * @param {import("./chat.js").Chat} chat
 * @param {{newChat: () => void, edit: (id: string) => void, remove: () => void, find: () => void}} page
 */
export function wireChatKeys(chat, { newChat, edit, remove, find }) {
  Keys.add({ keys: "Escape", label: t("chat.keyStop"), group: "messages", run: () => chat.stop(), when: () => chat.busy });
  Keys.add({ keys: "Escape", label: "", run: () => chat.cancelEdit(), when: () => chat.editing !== null });
  Keys.add({ keys: "Ctrl+Shift+O", label: t("chat.new"), group: "chats", run: newChat });
  Keys.add({ keys: "Ctrl+Shift+N", label: "", run: newChat }); // nanochat's key; browsers may keep it for themselves
  Keys.add({ keys: "Ctrl+K", label: t("chat.keyFind"), group: "chats", run: find });
  Keys.add({ keys: "Ctrl+Shift+D", label: t("chat.keyDelete"), group: "chats", run: remove, when: () => !chat.conversation.empty });
  const editLast = () => {
    const last = lastQuestion(chat);
    if (last !== undefined) edit(last.id);
  };
  Keys.add({ keys: "Ctrl+Shift+E", label: t("chat.keyEdit"), group: "messages", run: editLast });
  for (const [keys, by] of /** @type {[string, -1 | 1][]} */ ([["[", -1], ["]", 1]])) {
    Keys.add({
      keys, group: "messages", label: t(by < 0 ? "chat.keyPrevious" : "chat.keyNext"),
      run: () => step(by), when: () => focusedMessage() !== null,
    });
  }
}

/** @param {import("./chat.js").Chat} chat */
export function lastQuestion(chat) {
  return chat.conversation.path().findLast(({ role }) => role === "user");
}

/** The focus stays on the message, whichever version is shown. @param {-1 | 1} by */
function step(by) {
  const message = focusedMessage();
  const place = message?.parentElement && [...message.parentElement.children].indexOf(message);
  /** @type {HTMLButtonElement | null | undefined} */
  (message?.querySelector(by < 0 ? ".variants .prev" : ".variants .next"))?.click();
  if (message?.isConnected || typeof place !== "number") return;
  const now = document.getElementById("log")?.children[place];
  if (now instanceof HTMLElement) now.focus();
}
