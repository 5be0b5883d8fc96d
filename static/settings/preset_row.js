/** The presets at the top of the settings sheet. */

import { el } from "../shell/dom.js";
import { t } from "../words/words.js";

/**
 * @typedef {import("./presets.js").Presets} Presets
 * @typedef {import("./presets.js").Listed} Listed
 * @typedef {import("./settings.js").Settings} Settings
 */

export class PresetRow {
  #presets;
  #announce;
  #buttons = el("div", { class: "presets", role: "group", "aria-label": t("settings.group.presets") });
  #tools = el("div", { class: "preset-tools" });
  #problem = el("p", { class: "wrong", id: "wrong-preset", role: "alert" });
  /** The preset whose tools are shown: the one used last. @type {string | null} */
  #chosen = null;
  element = el("section", { class: "group" }, el("h3", { text: t("settings.group.presets") }),
    this.#buttons, this.#tools, this.#problem, el("p", { class: "hint", text: t("settings.preset.hint") }));

  /** @param {Presets} presets @param {Settings} settings @param {(text: string) => void} announce */
  constructor(presets, settings, announce) {
    this.#presets = presets;
    this.#announce = announce;
    presets.addEventListener("change", () => {
      this.#showButtons();
      this.#showTools();
    });
    settings.addEventListener("change", () => this.#showPressed());
    this.#showButtons();
    this.#showTools();
  }

  #showButtons() {
    const make = (/** @type {Listed} */ { id, name }) => el("button", {
      type: "button", class: "preset", text: name, data: { id }, on: { click: () => this.#use(id, name) },
    });
    this.#buttons.replaceChildren(...this.#presets.list().map(make));
    this.#showPressed();
  }

  #showPressed() {
    for (const button of this.#buttons.querySelectorAll("button")) {
      button.setAttribute("aria-pressed", String(this.#presets.matches(button.dataset.id ?? "")));
    }
  }

  /** @param {string} id @param {string} name */
  #use(id, name) {
    this.#chosen = id;
    this.#presets.apply(id);
    this.#problem.textContent = "";
    this.#announce(t("settings.preset.applied", { name }));
    this.#showTools();
  }

  /** Tools for the reader's own preset that was used last, and to save a new one. */
  #showTools() {
    const own = this.#presets.list().find(({ id, own }) => own && id === this.#chosen);
    const tool = (/** @type {string} */ key, /** @type {() => void} */ run) =>
      el("button", { type: "button", class: "small", text: t(`settings.preset.${key}`), on: { click: run } });
    const any = this.#presets.list().some((preset) => preset.own);
    this.#tools.replaceChildren(
      el("div", { class: "row" },
        tool("new", () => this.#askName("", (name) => this.#presets.save(name))),
        any && tool("copy", () => this.#copy()),
        tool("paste", () => this.#askJson())));
    if (own === undefined) return;
    this.#tools.prepend(el("div", { class: "row", role: "group", "aria-label": t("settings.preset.change", { name: own.name }) },
      tool("overwrite", () => {
        this.#tell(this.#presets.overwrite(own.id), "saved", own.name);
      }),
      tool("rename", () => this.#askName(own.name, (name) => this.#presets.rename(own.id, name))),
      tool("remove", () => {
        this.#presets.remove(own.id);
        this.#tell("", "removed", own.name);
        this.#focus();
      })));
  }

  /** @param {string} given @param {(name: string) => string} keep gives back what is wrong with the name */
  #askName(given, keep) {
    const input = el("input", { type: "text", class: "value", value: given, "aria-label": t("settings.preset.name"),
      placeholder: t("settings.preset.name"), "aria-describedby": "wrong-preset", autocomplete: "off", dir: "auto" });
    const leave = () => {
      this.#problem.textContent = "";
      this.#showTools();
      this.#focus();
    };
    const save = () => {
      const name = input.value.trim();
      this.#chosen = `own:${name}`; // the presets tell of their change while they keep it
      if (this.#tell(keep(name), "saved", name)) leave();
      else input.setAttribute("aria-invalid", "true");
    };
    input.addEventListener("keydown", (event) => {
      if (event.isComposing || !["Enter", "Escape"].includes(event.key)) return;
      event.preventDefault(); // the sheet would close
      event.stopPropagation();
      if (event.key === "Enter") save();
      else leave();
    });
    const button = (/** @type {string} */ key, /** @type {() => void} */ run) =>
      el("button", { type: "button", class: "small", text: t(`settings.preset.${key}`), on: { click: run } });
    this.#tools.replaceChildren(el("div", { class: "row naming" }, input, button("save", save), button("cancel", leave)));
    input.focus();
    input.select();
  }

  /** Takes in presets that were copied, here or elsewhere. */
  #askJson() {
    const input = el("textarea", { class: "value", rows: 4, "aria-label": t("settings.preset.json"),
      placeholder: t("settings.preset.json"), "aria-describedby": "wrong-preset", spellcheck: "false", dir: "ltr" });
    const leave = () => {
      this.#problem.textContent = "";
      this.#showTools();
      this.#focus();
    };
    const add = () => {
      const n = this.#presets.fromJson(input.value);
      if (n === 0) {
        this.#problem.textContent = t("settings.preset.no_json");
        input.setAttribute("aria-invalid", "true");
        return;
      }
      leave();
      this.#announce(t("settings.preset.added", { n }));
    };
    input.addEventListener("keydown", (event) => {
      if (event.key !== "Escape" || event.isComposing) return;
      event.preventDefault(); // the sheet would close
      event.stopPropagation();
      leave();
    });
    const button = (/** @type {string} */ key, /** @type {() => void} */ run) =>
      el("button", { type: "button", class: "small", text: t(`settings.preset.${key}`), on: { click: run } });
    this.#tools.replaceChildren(el("div", { class: "row naming" }, input, button("add", add), button("cancel", leave)));
    input.focus();
  }

  async #copy() {
    try {
      await navigator.clipboard.writeText(this.#presets.toJson());
      this.#announce(t("settings.preset.copied"));
    } catch {
      this.#problem.textContent = t("settings.preset.not_copied");
    }
  }

  /** @param {string} problem @param {string} done key @param {string} name @returns {boolean} whether all is well */
  #tell(problem, done, name) {
    this.#problem.textContent = problem;
    if (problem === "") this.#announce(t(`settings.preset.${done}`, { name }));
    return problem === "";
  }

  #focus() {
    this.#buttons.querySelector("button")?.focus();
  }
}
