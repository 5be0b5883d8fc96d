/** The menu of a button: arrows, Home, End, the first letters of an entry, Escape; the focus comes back. */

import { el, icon } from "./dom.js";

/**
 * @typedef {object} Item
 * @property {string} label
 * @property {() => void} run
 * @property {string} [icon]
 * @property {boolean} [danger]
 * @property {boolean} [disabled]
 * @property {boolean} [checked] makes it an entry that is on or off
 */

const TYPING = 600; // milliseconds between two letters of the same word
const GAP = 4; // pixels

/** @type {WeakMap<HTMLElement, HTMLElement>} */
const open = new WeakMap();

/**
 * Opens the button's menu, or closes it if it is open.
 * @param {HTMLElement} button with `aria-haspopup="menu"` in the page, or it gets it here
 * @param {(Item | "line")[]} items
 */
export function openMenu(button, items) {
  const shown = open.get(button);
  if (shown) return shown.hidePopover();
  const menu = el("div", { class: "menu", role: "menu", popover: "auto", "aria-label": nameOf(button) });
  for (const item of items) menu.append(item === "line" ? el("div", { role: "separator" }) : entry(item, menu));
  menu.addEventListener("keydown", keyHandler(menu));
  menu.addEventListener("toggle", (event) => {
    if (/** @type {ToggleEvent} */ (event).newState === "closed") close(button, menu);
  });
  // Inside the same dialog or landmark: elsewhere a modal dialog would keep it from being used.
  (button.closest("dialog, main, nav, aside, header") ?? document.body).append(menu);
  button.setAttribute("aria-haspopup", "menu");
  button.setAttribute("aria-expanded", "true");
  open.set(button, menu);
  menu.showPopover();
  place(menu, button);
  move(menu, 0, 1);
}

/** @param {Item} item @param {HTMLElement} menu */
function entry(item, menu) {
  const run = () => {
    menu.hidePopover();
    item.run();
  };
  return el(
    "button",
    {
      type: "button",
      role: item.checked === undefined ? "menuitem" : "menuitemcheckbox",
      class: item.danger ? "danger" : null,
      "aria-checked": item.checked === undefined ? null : String(item.checked),
      "aria-disabled": item.disabled ? "true" : null,
      tabindex: "-1",
      on: { click: () => item.disabled || run(), pointermove: focusPointed },
    },
    item.icon && icon(item.icon),
    el("span", { text: item.label }),
    item.checked && icon("check"),
  );
}

/** @param {HTMLElement} button @param {HTMLElement} menu */
function close(button, menu) {
  open.delete(button);
  button.setAttribute("aria-expanded", "false");
  // Whoever has clicked elsewhere has the focus there already.
  if (menu.contains(document.activeElement) || document.activeElement === document.body) button.focus();
  menu.remove();
}

/** @param {HTMLElement} menu @returns {(event: KeyboardEvent) => void} */
function keyHandler(menu) {
  let typed = "";
  let last = 0;
  return (event) => {
    const entries = entriesOf(menu);
    const now = entries.indexOf(/** @type {HTMLElement} */ (document.activeElement));
    if (event.key === "ArrowDown") move(menu, now + 1, 1);
    else if (event.key === "ArrowUp") move(menu, now - 1, -1);
    else if (event.key === "Home") move(menu, 0, 1);
    else if (event.key === "End") move(menu, entries.length - 1, -1);
    else if (event.key === "Escape" || event.key === "Tab") menu.hidePopover();
    else if (event.key.length === 1 && event.key !== " " && !event.ctrlKey && !event.metaKey) {
      typed = event.timeStamp - last < TYPING ? typed + event.key : event.key;
      last = event.timeStamp;
      seek(entries, now, typed.toLowerCase());
    } else return;
    event.stopPropagation();
    if (event.key !== "Tab") event.preventDefault();
  };
}

/** @param {HTMLElement[]} entries @param {number} now @param {string} typed */
function seek(entries, now, typed) {
  const start = typed.length === 1 ? now + 1 : now;
  const order = [...entries.slice(start), ...entries.slice(0, start)];
  order.find((found) => found.textContent?.trim().toLowerCase().startsWith(typed))?.focus();
}

/** Focuses the entry at this place, around the ends. @param {HTMLElement} menu @param {number} at @param {number} step */
function move(menu, at, step) {
  const entries = entriesOf(menu);
  entries.at(at % entries.length)?.focus({ preventScroll: step === 0 });
}

/** @param {HTMLElement} menu @returns {HTMLElement[]} */
function entriesOf(menu) {
  return [...menu.querySelectorAll("button")];
}

/** @param {Event} event */
function focusPointed({ currentTarget: target }) {
  if (target instanceof HTMLElement && document.activeElement !== target) target.focus({ preventScroll: true });
}

/** @param {HTMLElement} button */
function nameOf(button) {
  return button.getAttribute("aria-label") ?? button.textContent?.trim() ?? "";
}

/** Below the button, or above where there is more room; its end edges aligned. @param {HTMLElement} menu @param {HTMLElement} button */
function place(menu, button) {
  const at = button.getBoundingClientRect();
  const { width, height } = menu.getBoundingClientRect();
  const rightToLeft = getComputedStyle(button).direction === "rtl";
  const left = rightToLeft ? at.left : at.right - width;
  const below = at.bottom + GAP + height <= innerHeight || at.top < height + GAP;
  menu.style.left = `${Math.max(GAP, Math.min(left, innerWidth - width - GAP))}px`;
  menu.style.top = `${Math.max(GAP, below ? at.bottom + GAP : at.top - GAP - height)}px`;
}
