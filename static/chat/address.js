/** The conversation that is shown stands in the page's address, so that a reload and the Back button find it. */

import { toast } from "../shell/toast.js";
import { t } from "../words/words.js";
import { tellMishap } from "./mishaps.js";

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
  let going = 0; // ways towards what the address says: nothing to write there meanwhile
  const go = async () => {
    const id = addressed();
    if (id === null && location.hash !== "") return write("replaceState"); // a link within the page
    going += 1;
    try {
      if (id === null && chat.conversation.empty) chat.stay();
      else if (id === null) chat.newChat();
      else if (!(await chat.open(id))) {
        toast(t("chat.gone"), { kind: "problem" });
        if (!chat.conversation.empty) chat.newChat();
      }
    } catch (error) {
      tellMishap(error);
    }
    going -= 1;
    write("replaceState");
  };
  /** @param {"pushState" | "replaceState"} how */
  const write = (how) => {
    const { head, empty } = chat.conversation;
    const id = empty ? null : head.id;
    if (going > 0 || id === addressed()) return;
    history[how](null, "", id === null ? location.pathname + location.search : `#/chat/${id}`);
  };
  chat.addEventListener("opened", () => write("pushState"));
  // The first message of a new conversation: Back leads to where the reader was before it.
  chat.addEventListener("changed", () => write("replaceState"));
  addEventListener("popstate", go);
  if (addressed() !== null) await go();
}
