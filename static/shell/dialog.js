/** Dialogs: the browser's own, so that focus, Escape and the page behind are its business. */

import { t } from "../words/words.js";
import { el, iconButton } from "./dom.js";

let number = 0;

/**
 * Opens a dialog with a title, a close button and the given content. It is gone from the page once closed;
 * the focus goes back to where it was.
 * @param {string} title
 * @param {{class?: string}} options
 * @param {...(Node | string)} content
 * @returns {HTMLDialogElement}
 */
export function openDialog(title, options, ...content) {
  const id = `dialog-title-${(number += 1)}`;
  const dialog = el("dialog", { class: `dialog ${options.class ?? ""}`, "aria-labelledby": id });
  const close = iconButton("close", t("shell.close"), { class: "plain icon-only", on: { click: () => dialog.close() } });
  dialog.append(el("header", { class: "dialog-head" }, el("h2", { id, text: title }), close), ...content);
  return show(dialog);
}

/**
 * Asks a question with two answers.
 * @param {string} question
 * @param {{confirm?: string, cancel?: string, detail?: string, danger?: boolean}} [options] the words of the
 *   two buttons, a sentence below the question; danger: something would be lost, so the focus is on "no"
 * @returns {Promise<boolean>} false also for Escape and for a click beside the dialog
 */
export function ask(question, { confirm = t("shell.ok"), cancel = t("shell.cancel"), detail, danger = false } = {}) {
  const id = `dialog-title-${(number += 1)}`;
  const dialog = el("dialog", {
    class: "dialog question",
    role: "alertdialog",
    "aria-labelledby": id,
    "aria-describedby": detail ? `${id}-detail` : null,
  });
  /** @param {string} text @param {string} name @param {boolean} first */
  const button = (text, name, first) =>
    el("button", { type: "button", class: name, text, autofocus: first, on: { click: () => dialog.close(name) } });
  dialog.append(
    el("h2", { id, text: question }),
    detail ? el("p", { id: `${id}-detail`, text: detail }) : "",
    el(
      "div",
      { class: "dialog-foot" },
      button(cancel, "quiet", danger),
      button(confirm, danger ? "strong danger" : "strong", !danger),
    ),
  );
  return new Promise((answer) => {
    dialog.addEventListener("close", () => answer(dialog.returnValue.startsWith("strong")));
    show(dialog);
  });
}

/** @param {HTMLDialogElement} dialog */
function show(dialog) {
  const before = document.activeElement;
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog) dialog.close(); // the backdrop
  });
  dialog.addEventListener("close", () => {
    // The browser has given the focus back when it closed the dialog; since then the reader may have gone on.
    const lost = dialog.contains(document.activeElement) || document.activeElement === document.body;
    dialog.remove();
    if (lost && before instanceof HTMLElement && document.contains(before)) before.focus({ preventScroll: true });
  });
  document.body.append(dialog);
  dialog.showModal();
  return dialog;
}
