/** One field of the settings sheet: its label, its box, its slider, what is wrong with it, and the way back. */

import { el, iconButton } from "../shell/dom.js";
import { t } from "../words/words.js";
import { FIELDS, labelOf, write } from "./fields.js";

/** @typedef {import("./settings.js").Settings} Settings */

export class FieldRow {
  #name;
  #settings;
  #input;
  /** @type {HTMLInputElement | null} */
  #slide = null;
  #problem;
  #note;
  #back;
  element;

  /** @param {string} name @param {Settings} settings */
  constructor(name, settings) {
    this.#name = name;
    this.#settings = settings;
    const id = `field-${name}`;
    this.#input = makeInput(name, id);
    const { kind, slides } = FIELDS[name];
    this.#problem = el("p", { class: "wrong", id: `wrong-${name}`, hidden: true });
    this.#note = el("p", { class: "differs", id: `differs-${name}`, hidden: true });
    this.#back = iconButton("again", t("settings.back", { field: labelOf(name) }), {
      class: "back", on: { click: () => this.#goBack() },
    });
    if (slides) this.#slide = this.#makeSlide();
    const label = el("label", { for: id, text: labelOf(name) });
    const hint = el("p", { class: "hint", id: `hint-${name}`, text: t(`settings.${name}.hint`) });
    const wide = ["lines", "ids", "bias", "json", "text", "choice"].includes(kind);
    this.element = el("div", { class: `field ${wide ? "wide" : kind}`, data: { field: name } },
      el("div", { class: "name" }, label, this.#back), this.#input, this.#slide, this.#problem, this.#note, hint);
    this.#input.addEventListener("input", () => this.#take());
    this.#input.addEventListener("blur", () => this.show());
  }

  /** What is in force is shown; what is being typed, or is wrong, stays until the box is left. */
  show() {
    const { kind, needs } = FIELDS[this.#name];
    const settings = this.#settings;
    const input = this.#input;
    const typing = document.activeElement === input;
    const fallback = settings.recommended(this.#name);
    if (!typing) {
      this.#complain("");
      const text = settings.text(this.#name);
      if (input instanceof HTMLInputElement && kind === "flag") input.checked = text === "true";
      else input.value = text;
    }
    if ("placeholder" in input) input.placeholder = fallback === undefined ? unset(this.#name) : write(this.#name, fallback);
    if (this.#slide !== null) this.#slide.value = settings.text(this.#name) || unset(this.#name);
    this.#back.hidden = settings.own(this.#name) === undefined;
    this.#showDifference();
    if (needs) this.element.hidden = !isMet(needs, settings);
  }

  /** Where the change is meant for all chats, and the one that is shown has a value of its own. */
  #showDifference() {
    const chats = this.#settings.scope === "all" ? this.#settings.own(this.#name, "chat") : undefined;
    this.#note.hidden = chats === undefined;
    if (chats !== undefined) {
      this.#note.textContent = t("settings.differs", { value: FIELDS[this.#name].kind === "flag" ? t("settings.on") : write(this.#name, chats) });
    }
  }

  #take() {
    const input = this.#input;
    const flag = FIELDS[this.#name].kind === "flag" && input instanceof HTMLInputElement;
    // A number input reads as empty while its text is no number; that must not take the stored value away.
    const bad = input.validity.badInput;
    const text = flag ? (input.checked ? "true" : "") : input.value;
    this.#complain(bad ? t("settings.problem.number", { field: labelOf(this.#name) }) : this.#settings.set(this.#name, text));
  }

  /** @param {string} problem */
  #complain(problem) {
    this.#problem.hidden = problem === "";
    this.#problem.textContent = problem;
    const described = [problem !== "" && this.#problem.id, this.#note.id, `hint-${this.#name}`];
    this.#input.setAttribute("aria-describedby", described.filter(Boolean).join(" "));
    if (problem === "") this.#input.removeAttribute("aria-invalid");
    else this.#input.setAttribute("aria-invalid", "true");
  }

  #goBack() {
    this.#settings.set(this.#name, "");
    this.#input.focus(); // the button is gone
    this.show();
    if ("select" in this.#input) this.#input.select();
    this.#input.value = FIELDS[this.#name].kind === "flag" ? this.#input.value : this.#settings.text(this.#name);
    this.#complain("");
  }

  #makeSlide() {
    const { min, max, step } = FIELDS[this.#name];
    const slide = el("input", {
      type: "range", class: "slide", min, max, step, "aria-label": t("settings.slider", { field: labelOf(this.#name) }),
    });
    slide.addEventListener("input", () => {
      this.#settings.set(this.#name, slide.value);
      this.show();
    });
    return slide;
  }
}

/** @param {string} name @param {string} id */
function makeInput(name, id) {
  const { kind, min, max, choices = [] } = FIELDS[name];
  if (kind === "flag") return el("input", { type: "checkbox", role: "switch", class: "switch", id });
  if (kind === "number" || kind === "whole") {
    const inputmode = min < 0 ? undefined : kind === "whole" ? "numeric" : "decimal"; // those keys have no minus
    return el("input", { type: "number", class: "value", id, min, max, step: "any", inputmode });
  }
  if (kind === "choice") {
    const options = choices.map((choice) => el("option", { value: choice, text: t(`settings.${name}.${choice}`) }));
    return el("select", { class: "value", id }, el("option", { value: "", text: t(`settings.${name}.unset`) }), ...options);
  }
  return el("textarea", { id, rows: kind === "json" ? 5 : 2, spellcheck: "false", dir: "auto" });
}

/** What an empty box means, where nobody recommends anything. @param {string} name */
function unset(name) {
  const { unset: key = "settings.unset.none" } = FIELDS[name];
  return key.includes(".") && Number.isNaN(Number(key)) ? t(key) : key;
}

/** @param {string} needs @param {Settings} settings */
function isMet(needs, settings) {
  const [name, value] = needs.split("=");
  const now = settings.own(name) ?? settings.recommended(name);
  return value === undefined ? now === true : now === value;
}
