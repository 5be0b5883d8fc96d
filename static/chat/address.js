/** The conversation that is shown stands in the page's address, so that a reload and the Back button find it. */

import { toast } from "../shell/toast.js";
import { t } from "../words/words.js";

/** @typedef {import("./chat.js").Chat} Chat */

const ADDRESS = /^#\/chat\/([\w-]+)$/;

/** The id in the page's address, or null. */
function addressed() {
  return location.hash.match(ADDRESS)?.[1] ?? null;
}

/**
 * Opens what the address says, and keeps the address in step.
 * @param {Chat} chat @returns {Promise<void>} when the conversation is there
 */
export async function wireAddress(chat) {
  let going = false; // towards what the address says: nothing to write there
  const go = async () => {
    const id = addressed();
    if (id === chat.conversation.head.id) return;
    going = true;
    if (id === null) chat.newChat();
    else if (!(await chat.open(id))) toast(t("chat.gone"), { kind: "problem" });
    going = false;
    write("replaceState");
  };
  /** @param {"pushState" | "replaceState"} how */
  const write = (how) => {
    const { head, empty } = chat.conversation;
    const id = empty ? null : head.id;
    if (going || id === addressed()) return;
    history[how](null, "", id === null ? location.pathname + location.search : `#/chat/${id}`);
  };
  chat.addEventListener("opened", () => write("pushState"));
  // The first message of a new conversation: Back leads to where the reader was before it.
  chat.addEventListener("changed", () => write("replaceState"));
  addEventListener("popstate", go);
  if (addressed() !== null) await go();
}
