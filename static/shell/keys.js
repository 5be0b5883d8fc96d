/**
 * The keys of the page. Whoever offers something by key adds it here, so that it works in one way everywhere
 * and stands in the sheet that `?` opens (key_sheet.js).
 */

import { t } from "../words/words.js";
import { remember, remembered } from "./memory.js";

/**
 * @typedef {"chats" | "messages" | "page"} Group
 *
 * @typedef {object} Shortcut
 * @property {string} keys "Ctrl+Shift+O", "Escape", "?"; Ctrl is the Command key on Apple's keyboards
 * @property {string} label what it does, for the sheet; without one it is not listed
 * @property {() => void} run
 * @property {() => boolean} [when] it counts only if this says so; else the next entry with these keys may
 * @property {Group} [group] where the sheet lists it
 */

const SINGLE = "single-keys";
const apple = /Mac|iPhone|iPad/.test(navigator.platform);

/** @type {Shortcut[]} */
const entries = [];

export const Keys = {
  /** @param {Shortcut} entry @returns {() => void} takes it out again */
  add(entry) {
    if (entries.length === 0) document.addEventListener("keydown", onKey);
    entries.push(entry);
    return () => void entries.splice(entries.indexOf(entry), 1);
  },

  /** All of them, in the order of their groups. */
  list() {
    return entries.filter((entry) => entry.label !== "");
  },

  /** Keys without Ctrl or Alt can be switched off: they get in the way of speech input. */
  get single() {
    return remembered(SINGLE) !== "off";
  },

  set single(on) {
    remember(SINGLE, on ? "on" : "off");
  },
};

/** The keys as they are written on the reader's keyboard, one text for each key. @param {string} keys @returns {string[]} */
export function writtenKeys(keys) {
  return keys.split("+").map((key) => {
    if (key === "Ctrl") return apple ? "⌘" : t("shell.key_ctrl");
    if (key === "Shift") return apple ? "⇧" : t("shell.key_shift");
    if (key === "Alt") return apple ? "⌥" : t("shell.key_alt");
    if (key === "Escape") return t("shell.key_escape");
    return { ArrowUp: "↑", ArrowDown: "↓" }[key] ?? key;
  });
}

/** True where a key writes a character. @param {EventTarget | null} target */
function writesText(target) {
  if (!(target instanceof HTMLElement)) return false;
  if (target.isContentEditable || target instanceof HTMLTextAreaElement || target instanceof HTMLSelectElement) return true;
  return target instanceof HTMLInputElement && !/^(button|checkbox|radio|range|reset|submit|file)$/.test(target.type);
}

/** @param {KeyboardEvent} event */
function onKey(event) {
  // keyCode 229: Safari ends a composition before the key that ended it is reported.
  if (event.defaultPrevented || event.isComposing || event.keyCode === 229) return;
  if (document.querySelector("dialog:modal")) return; // its keys are its own
  const entry = entries.find((each) => matches(each.keys, event) && (each.when?.() ?? true));
  if (!entry) return;
  event.preventDefault();
  entry.run();
}

/** @param {string} keys @param {KeyboardEvent} event */
function matches(keys, event) {
  const parts = keys.split("+");
  const key = parts.pop() ?? "";
  const ctrl = parts.includes("Ctrl");
  const alt = parts.includes("Alt");
  if (ctrl !== (apple ? event.metaKey : event.ctrlKey) || (apple ? event.ctrlKey : event.metaKey)) return false;
  if (alt !== event.altKey) return false;
  if (key.length === 1 && !ctrl && !alt) {
    // What character it is counts, however a keyboard makes it.
    return event.key === key && !writesText(event.target) && Keys.single;
  }
  return parts.includes("Shift") === event.shiftKey && sameKey(key, event);
}

/** Letters count by their place where the keyboard writes no Latin. @param {string} key @param {KeyboardEvent} event */
function sameKey(key, event) {
  if (event.key.toLowerCase() === key.toLowerCase()) return true;
  return key.length === 1 && !/^[\x20-\x7e]$/.test(event.key) && event.code === `Key${key.toUpperCase()}`;
}
