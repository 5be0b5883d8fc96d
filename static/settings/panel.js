/** The settings sheet: whom changes count for, presets, the system prompt, and all fields in their groups. */

import { byId, el } from "../shell/dom.js";
import { t } from "../words/words.js";
import { FieldRow } from "./field_row.js";
import { FIELDS } from "./fields.js";
import { PresetRow } from "./preset_row.js";

/**
 * @typedef {import("./settings.js").Settings} Settings
 * @typedef {import("./settings.js").Scope} Scope
 * @typedef {import("./presets.js").Presets} Presets
 * @typedef {import("./fields.js").Group} Group
 */

/** @type {Group[]} */
const GROUPS = ["answer", "sampling", "penalties", "stopping", "advanced"];
const FOLDED = new Set(["advanced"]);

export class SettingsPanel {
  #dialog;
  #settings;
  /** @type {(() => void)[]} */
  #refreshers = [];
  #page = el("section", { class: "group", hidden: true }, el("h3", { text: t("settings.group.page") }));
  #about = el("p", { class: "about", id: "about", translate: "no" });

  /**
   * @param {HTMLDialogElement} dialog @param {Settings} settings
   * @param {{presets?: Presets, announce?: (text: string) => void}} [more]
   */
  constructor(dialog, settings, { presets, announce = () => {} } = {}) {
    this.#dialog = dialog;
    this.#settings = settings;
    const content = [
      this.#scope(),
      presets && new PresetRow(presets, settings, announce).element,
      this.#system(),
      ...GROUPS.map((group) => this.#group(group)),
      this.#page,
      this.#about,
      this.#foot(),
    ];
    byId("settings-content").replaceChildren(...content.filter((part) => part !== undefined));
    // Enter in a field is no wish to close the sheet.
    dialog.querySelector("form")?.addEventListener("submit", (event) => {
      if (!(event.submitter instanceof HTMLElement) || !event.submitter.matches(".close")) event.preventDefault();
    });
    dialog.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && event.target instanceof HTMLInputElement) event.preventDefault();
    });
    dialog.addEventListener("click", (event) => {
      if (event.target === dialog) dialog.close(); // the backdrop
    });
    settings.addEventListener("change", () => this.#refresh());
    this.#refresh();
  }

  open() {
    this.#dialog.showModal();
  }

  /** What stands at the foot about the model. @param {string} text */
  describeModel(text) {
    this.#about.textContent = text;
  }

  /** Puts something into the group "Page", such as the choice of a theme. @param {HTMLElement} element */
  addSection(element) {
    this.#page.append(element);
    this.#page.hidden = false;
  }

  #refresh() {
    for (const refresh of this.#refreshers) refresh();
  }

  #scope() {
    const hint = el("p", { class: "hint", id: "scope-hint" });
    /** @param {Scope} scope */
    const choice = (scope) => {
      const input = el("input", { type: "radio", name: "scope", value: scope, "aria-describedby": "scope-hint" });
      input.addEventListener("change", () => (this.#settings.scope = scope));
      this.#refreshers.push(() => (input.checked = this.#settings.scope === scope));
      return el("label", {}, input, el("span", { text: t(`settings.scope.${scope}`) }));
    };
    const element = el("fieldset", { class: "scope" }, el("legend", { text: t("settings.scope") }),
      el("div", { class: "choices" }, choice("all"), choice("chat")), hint);
    this.#refreshers.push(() => {
      element.hidden = !this.#settings.bound;
      hint.textContent = t(`settings.scope.${this.#settings.scope}.hint`);
    });
    return element;
  }

  #system() {
    const settings = this.#settings;
    const text = el("textarea", {
      id: "system", rows: 4, dir: "auto", placeholder: t("settings.system.placeholder"), "aria-describedby": "system-hint system-differs",
    });
    const differs = el("p", { class: "differs", id: "system-differs" });
    text.addEventListener("input", () => settings.setSystem(text.value));
    text.addEventListener("blur", () => (text.value = settings.systemIn()));
    this.#refreshers.push(() => {
      if (document.activeElement !== text) text.value = settings.systemIn();
      differs.hidden = settings.scope !== "all" || settings.system === settings.systemIn();
      differs.textContent = t("settings.differs", { value: settings.system || t("settings.system.empty") });
    });
    return el("div", { class: "field wide" },
      el("label", { for: "system", text: t("settings.system") }), text, differs,
      el("p", { class: "hint", id: "system-hint", text: t("settings.system.hint") }));
  }

  /** @param {Group} group */
  #group(group) {
    const rows = Object.keys(FIELDS).filter((name) => FIELDS[name].group === group)
      .map((name) => new FieldRow(name, this.#settings));
    for (const row of rows) this.#refreshers.push(() => row.show());
    const elements = rows.map((row) => row.element);
    const title = el("h3", { text: t(`settings.group.${group}`) });
    if (!FOLDED.has(group)) return el("section", { class: "group" }, title, ...elements);
    return el("details", { class: "group" }, el("summary", {}, title), ...elements);
  }

  #foot() {
    const settings = this.#settings;
    const reset = el("button", { type: "button", class: "quiet", id: "reset-settings", on: { click: () => settings.reset() } });
    const note = el("p", { text: t("settings.kept") });
    settings.addEventListener("unkept", () => (note.textContent = t("settings.unkept")));
    this.#refreshers.push(() => {
      reset.textContent = t(settings.scope === "chat" ? "settings.reset.chat" : "settings.reset");
    });
    return el("footer", {}, note, reset);
  }
}
