/** The settings sheet: one row for each field of settings.js, and the system prompt. */

import { FIELDS } from "./settings.js";

/** @typedef {import("./settings.js").Settings} Settings */

/** @type {Record<string, {hint: string, unset: string, slides: boolean}>} */
const WORDS = {
  temperature: { hint: "0 always takes the likeliest token. Higher varies more.", unset: "1", slides: true },
  top_p: { hint: "Samples from the likeliest tokens up to this share.", unset: "1", slides: true },
  top_k: { hint: "Samples from this many likeliest tokens. 0 is off.", unset: "off", slides: false },
  max_tokens: { hint: "In tokens.", unset: "what fits", slides: false },
  seed: { hint: "The same seed gives the same answer.", unset: "random", slides: false },
};

export class SettingsPanel {
  #dialog;
  #settings;
  /** @type {(() => void)[]} */
  #refreshers = [];

  /** @param {HTMLDialogElement} dialog @param {Settings} settings */
  constructor(dialog, settings) {
    this.#dialog = dialog;
    this.#settings = settings;
    for (const name of Object.keys(FIELDS)) this.#addField(name);
    this.#wireSystem();
    this.#find("#reset-settings").addEventListener("click", () => settings.reset());
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
    this.#find("#about").textContent = text;
  }

  #refresh() {
    for (const refresh of this.#refreshers) refresh();
  }

  #wireSystem() {
    const system = /** @type {HTMLTextAreaElement} */ (this.#find("#system"));
    system.addEventListener("input", () => (this.#settings.system = system.value));
    this.#refreshers.push(() => {
      if (document.activeElement !== system) system.value = this.#settings.system;
    });
  }

  /** @param {string} name */
  #addField(name) {
    const { label, min, max, step } = FIELDS[name];
    const { hint, unset, slides } = WORDS[name];
    const template = /** @type {HTMLTemplateElement} */ (document.getElementById("field-template"));
    const row = /** @type {HTMLElement} */ (template.content.firstElementChild?.cloneNode(true));
    const [labelElement, slide, value, hintElement] = /** @type {any[]} */ ([...row.children]);
    value.id = `field-${name}`;
    hintElement.id = `hint-${name}`;
    labelElement.htmlFor = value.id;
    labelElement.textContent = label;
    hintElement.textContent = hint;
    value.setAttribute("aria-describedby", hintElement.id);
    slide.setAttribute("aria-label", `${label}, slider`);
    for (const input of [value, slide]) Object.assign(input, { min: String(min), max: String(max) });
    value.step = "any";
    slide.step = String(step);
    slide.hidden = !slides;
    this.#wireField(name, value, slide, unset);
    this.#find("#fields").append(row);
  }

  /**
   * @param {string} name @param {HTMLInputElement} value @param {HTMLInputElement} slide
   * @param {string} unset stands in the empty field when the model card has no recommendation
   */
  #wireField(name, value, slide, unset) {
    const show = () => {
      const now = this.#settings.get(name);
      const recommended = this.#settings.recommended(name);
      value.placeholder = recommended === undefined ? unset : String(recommended);
      if (document.activeElement !== value) value.value = now === undefined ? "" : String(now);
      slide.value = String(now ?? 1);
    };
    // A number input reads as empty while its text is no number; that must not take the stored value away.
    const take = () => {
      const problem = value.validity.badInput ? "Not a number." : this.#settings.set(name, value.value);
      value.setCustomValidity(problem);
      value.title = problem;
    };
    value.addEventListener("input", take);
    value.addEventListener("blur", () => {
      value.setCustomValidity("");
      value.title = "";
      show();
    });
    slide.addEventListener("input", () => this.#settings.set(name, slide.value));
    this.#refreshers.push(show);
  }

  /** @param {string} selector @returns {HTMLElement} */
  #find(selector) {
    return /** @type {HTMLElement} */ (this.#dialog.querySelector(selector));
  }
}
