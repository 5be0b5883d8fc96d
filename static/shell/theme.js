/**
 * Light, dark, or as the system has it. first.js has set what was remembered before the first paint; the
 * colours themselves are in base.css and follow `data-theme`.
 */

import { t } from "../words/words.js";
import { el } from "./dom.js";
import { remember, remembered } from "./memory.js";

/** @typedef {"system" | "light" | "dark"} Theme */

const KEY = "theme";
/** @type {Theme[]} */
const THEMES = ["system", "light", "dark"];
const GROUND = { light: "#fbfbf9", dark: "#161715" }; // --ground in base.css
const systemDark = matchMedia("(prefers-color-scheme: dark)");

/** @returns {Theme} */
export function theme() {
  return THEMES.find((name) => name === remembered(KEY)) ?? "system";
}

/** @param {Theme} name */
function setTheme(name) {
  remember(KEY, name);
  apply(name);
}

/** Follows the system, and another tab's choice. */
export function watchTheme() {
  apply(theme());
  systemDark.addEventListener("change", () => apply(theme()));
  addEventListener("storage", (event) => {
    if (event.key === `fastpath.${KEY}`) apply(theme());
  });
}

/**
 * The "Page" section of the settings sheet.
 * @returns {HTMLElement}
 */
export function pageSection() {
  const radios = THEMES.map(radio);
  const legend = el("legend", { text: t("shell.theme") });
  return el("fieldset", { class: "themes" }, legend, el("div", { class: "segments" }, ...radios));
}

/** @param {Theme} name */
function radio(name) {
  const words = { system: t("shell.theme_system"), light: t("shell.theme_light"), dark: t("shell.theme_dark") };
  const input = el("input", { type: "radio", name: "theme", value: name, checked: theme() === name });
  input.addEventListener("change", () => setTheme(name));
  return el("label", {}, input, el("span", { text: words[name] }));
}

/** @param {Theme} name */
function apply(name) {
  const root = document.documentElement;
  if (name === "system") delete root.dataset.theme;
  else root.dataset.theme = name;
  const dark = name === "dark" || (name === "system" && systemDark.matches);
  const meta = document.querySelector('meta[name="theme-color"]');
  meta?.setAttribute("content", dark ? GROUND.dark : GROUND.light);
  for (const input of document.querySelectorAll('input[name="theme"]')) {
    if (input instanceof HTMLInputElement) input.checked = input.value === name;
  }
}
