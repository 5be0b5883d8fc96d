/**
 * Short messages at the edge of the page. They take no focus, and they stay while someone points at them or
 * has the focus in them.
 */

import { t } from "../words/words.js";
import { el, iconButton } from "./dom.js";

/** @typedef {{label: string, run: () => void}} Action */

const SECONDS = { info: 5, problem: 12 };
const MOST = 4;

/** @type {HTMLElement | null} */
let tray = null;

/**
 * @param {string} text
 * @param {{kind?: "info" | "problem", action?: Action, seconds?: number}} [options] with an action it stays
 *   twice as long; 0 seconds: until it is dismissed
 * @returns {() => void} takes the message away
 */
export function toast(text, { kind = "info", action, seconds = SECONDS[kind] * (action ? 2 : 1) } = {}) {
  const card = el("div", { class: `toast ${kind}`, role: kind === "problem" ? "alert" : "group" });
  const patience = new Patience(card, seconds, remove);
  function remove() {
    patience.end();
    card.remove();
    if (tray?.childElementCount === 0 && tray.matches(":popover-open")) tray.hidePopover();
  }
  const act = () => {
    remove();
    action?.run();
  };
  card.append(el("p", { text, dir: "auto" }));
  if (action) card.append(el("button", { type: "button", class: "link", text: action.label, on: { click: act } }));
  card.append(iconButton("close", t("shell.dismiss"), { class: "tool dismiss", on: { click: remove } }));
  const place = openTray();
  place.append(card);
  while (place.childElementCount > MOST) place.firstElementChild?.remove();
  if (kind === "info") announce(text);
  return remove;
}

/** Says something to those who cannot see it, through the page's one status region. @param {string} text */
export function announce(text) {
  const status = document.getElementById("status");
  if (status) status.textContent = text;
}

/** The tray lies above everything, also above an open dialog: outside of that one nothing could be pressed. */
function openTray() {
  tray ??= el("div", { class: "toasts", popover: "manual", role: "region", "aria-label": t("shell.notices") });
  const dialogs = document.querySelectorAll("dialog:modal");
  const dialog = dialogs[dialogs.length - 1];
  const host = dialog ?? document.body;
  const place = tray;
  if (place.parentElement !== host) {
    host.append(place);
    dialog?.addEventListener("close", () => moveOut(place), { once: true });
  }
  if (place.matches(":popover-open")) place.hidePopover(); // to be the topmost again
  place.showPopover();
  return place;
}

/** @param {HTMLElement} place */
function moveOut(place) {
  document.body.append(place);
  if (place.childElementCount > 0) place.showPopover();
}

/** Counts the seconds while nobody is busy with the card. */
class Patience {
  #timer = 0;
  #seconds;
  #done;

  /** @param {HTMLElement} card @param {number} seconds @param {() => void} done */
  constructor(card, seconds, done) {
    this.#seconds = seconds;
    this.#done = done;
    for (const type of ["pointerenter", "focusin"]) card.addEventListener(type, () => this.end());
    for (const type of ["pointerleave", "focusout"]) card.addEventListener(type, () => this.#begin());
    this.#begin();
  }

  end() {
    clearTimeout(this.#timer);
  }

  #begin() {
    this.end();
    if (this.#seconds > 0) this.#timer = setTimeout(this.#done, this.#seconds * 1000);
  }
}
