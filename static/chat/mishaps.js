/** What goes wrong in the page itself, and would otherwise stand in the browser's console alone. */

import { toast } from "../shell/toast.js";
import { t } from "../words/words.js";

const told = new Set(); // once each: a mistake that is made with each piece of an answer is one mistake

export function tellMishaps() {
  addEventListener("error", ({ error, message }) => {
    if (!message.startsWith("ResizeObserver loop")) tellMishap(error ?? message); // harmless: the rest comes with the next frame
  });
  addEventListener("unhandledrejection", ({ reason }) => {
    if (reason?.name !== "AbortError") tellMishap(reason); // given up on purpose
  });
}

/** @param {unknown} error */
export function tellMishap(error) {
  const said = error instanceof Error || error instanceof DOMException ? error.message : String(error);
  if (told.has(said)) return;
  told.add(said);
  toast(t("chat.mishap", { said }), { kind: "problem" });
}
