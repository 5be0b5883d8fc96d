/** The buttons at each message. */

import { keys } from "../server/keys.js";
import { toast } from "../shell/toast.js";
import { t } from "../words/words.js";
import { withFiles } from "../core/conversation.js";
import { canContinue, endedByItself } from "./going_on.js";

/**
 * @typedef {import("./chat.js").Chat} Chat
 * @typedef {import("./view.js").LogView} LogView
 */

/**
 * @param {Chat} chat @param {LogView} log
 * @param {{announce: (text: string) => void, edit: (id: string) => void}} page
 */
export function wireTools(chat, log, { announce, edit }) {
  const step = (/** @type {-1 | 1} */ by) => (/** @type {string} */ id) => {
    const beside = chat.variantBeside(id, by);
    if (beside === null) return;
    chat.selectVariant(beside);
    const name = by < 0 ? "prev" : "next";
    const variants = log.find(beside)?.querySelector(".variants");
    const button = variants?.querySelector(`.${name}:enabled`) ?? variants?.querySelector("button:enabled");
    if (button instanceof HTMLElement) button.focus();
    announce(log.find(beside)?.querySelector(".count")?.getAttribute("aria-label") ?? "");
  };
  log.onTool("prev", step(-1));
  log.onTool("next", step(1));
  /** What has to wait while an answer grows. @param {(id: string) => void} action */
  const idle = (action) => (/** @type {string} */ id) => (chat.busy ? toast(t("chat.wait")) : action(id));
  log.onTool("edit", idle(edit));
  log.onTool("regenerate", idle((id) => chat.regenerate(id)));
  log.onTool("continue", idle((id) => chat.continueAnswer(id)));
  log.onTool("compare", idle((id) => chat.compare(id)));
  log.onTool("choose", (id) => chat.choose(id));
  log.onTool("delete", idle((id) => remove(chat, id)));
  log.onTool("copy", (id) => copy(chat.conversation.find(id)?.content ?? "", announce));
  log.onTool("heat", (id) => toggleHeat(chat, log, id));
  log.onTool("more", async (id, button) => {
    const { openMenu } = await import("../shell/menu.js");
    openMenu(button, moreItems(chat, log, id, announce));
  });
}

/** @param {Chat} chat @param {string} id */
function remove(chat, id) {
  const undo = chat.remove(id);
  if (undo !== null) toast(t("chat.deleted"), { action: { label: t("chat.undo"), run: undo } });
}

/** @param {string} text @param {(text: string) => void} announce */
async function copy(text, announce) {
  try {
    await navigator.clipboard.writeText(text);
    announce(t("chat.copied"));
  } catch {
    toast(t("chat.notCopied"), { kind: "problem" });
  }
}

/** @param {Chat} chat @param {LogView} log @param {string} id */
async function toggleHeat(chat, log, id) {
  const button = log.find(id)?.querySelector(".tool.heat");
  const body = /** @type {HTMLElement | null | undefined} */ (log.find(id)?.querySelector(".body"));
  const scores = chat.conversation.find(id)?.scores;
  if (!body || !scores || !button) return;
  const on = button.getAttribute("aria-pressed") !== "true";
  button.setAttribute("aria-pressed", String(on));
  const { hideScores, showScores } = await import("../seeing/heat.js");
  if (on) showScores(body, scores);
  else hideScores(body);
}

/** @param {Chat} chat @param {LogView} log @param {string} id @param {(text: string) => void} announce */
function moreItems(chat, log, id, announce) {
  /** @param {"asCurl" | "asPython"} name */
  const copyAs = async (name) => {
    const { conversation } = chat;
    const message = conversation.find(id);
    if (message === undefined) return;
    const [recipe, { wireBody }] = await Promise.all([import("../seeing/recipe.js"), import("../server/stream.js")]);
    const facts = message.earlier?.[0] ?? message.facts; // of the part that began the answer
    const body = wireBody({ ...facts?.request, messages: conversation.wire(message.parent) });
    if (facts?.seed != null) Object.assign(body, { seed: facts.seed });
    const address = new URL("v1/chat/completions", document.baseURI).href;
    await copy(recipe[name](body, address, { key: keys.key !== null }), announce);
  };
  const message = chat.conversation.find(id);
  const scores = message?.scores?.length;
  const more = message !== undefined && endedByItself(message) && canContinue(chat.conversation, id);
  return [
    ...(more ? [{ label: t("shell.continue"), run: () => chat.continueAnswer(id) }] : []),
    { label: t("chat.compare"), run: () => chat.compare(id) },
    ...(scores ? [{ label: t("chat.heat"), run: () => toggleHeat(chat, log, id) }] : []),
    { label: t("chat.copyCurl"), run: () => copyAs("asCurl") },
    { label: t("chat.copyPython"), run: () => copyAs("asPython") },
    { label: t("chat.copyPrompt"), run: () => copy(promptOf(chat, id), announce) },
    { label: t("chat.delete"), run: () => remove(chat, id), danger: true },
  ];
}

/** @param {Chat} chat @param {string} id the message that was answered */
function promptOf(chat, id) {
  const asked = chat.conversation.find(chat.conversation.find(id)?.parent ?? null);
  return asked === undefined ? "" : withFiles(asked);
}
