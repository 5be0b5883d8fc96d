/** The settings sheet from outside: its parts are loaded when it is opened first. */

import { byId } from "../shell/dom.js";
import { PRESETS_KEY } from "./presets.js";
import { STORAGE_KEY } from "./settings.js";

/**
 * @typedef {import("./settings.js").Settings} Settings
 * @typedef {import("./presets.js").Presets} Presets
 * @typedef {import("./panel.js").SettingsPanel} SettingsPanel
 */

export class SettingsSheet {
  #settings;
  #more;
  /** @type {Promise<SettingsPanel> | null} */
  #panel = null;
  #about = "";
  /** @type {HTMLElement[]} */
  #sections = [];

  /** @param {Settings} settings @param {{presets: Presets, announce: (text: string) => void}} more */
  constructor(settings, more) {
    this.#settings = settings;
    this.#more = more;
    addEventListener("storage", ({ key }) => {
      if (key === STORAGE_KEY || key === null) settings.reload();
      if (key === PRESETS_KEY || key === null) more.presets.reload();
    });
  }

  async open() {
    this.#panel ??= this.#load();
    (await this.#panel).open();
  }

  /** What stands at the foot about the model. @param {string} text */
  async describeModel(text) {
    this.#about = text;
    (await this.#panel)?.describeModel(text);
  }

  /** Puts something into the group "Page", such as the choice of a theme. @param {HTMLElement} element */
  async addSection(element) {
    this.#sections.push(element);
    (await this.#panel)?.addSection(element);
  }

  async #load() {
    const { SettingsPanel } = await import("./panel.js");
    const panel = new SettingsPanel(byId("settings"), this.#settings, this.#more);
    panel.describeModel(this.#about);
    for (const section of this.#sections) panel.addSection(section);
    return panel;
  }
}
