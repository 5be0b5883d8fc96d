/** Named sets of settings: three that come with the page, and the reader's own. */

import { t } from "../words/words.js";
import { checked, isField } from "./fields.js";

/**
 * @typedef {import("./settings.js").Settings} Settings
 * @typedef {import("./settings.js").Scope} Scope
 * @typedef {import("./settings.js").Values} Values
 * @typedef {{name: string, fields: Values, system: string}} Preset
 * @typedef {{id: string, name: string, own: boolean}} Listed
 */

export const PRESETS_KEY = "fastpath.presets";
const NAME_LENGTH = 60; // characters

/** How the built-in ones sample, but for "balanced", which is the model's own way. @type {Record<string, Values>} */
const BUILT_IN = {
  precise: { temperature: 0.2, top_p: 0.9, min_p: 0.05 },
  balanced: {},
  creative: { temperature: 1.1, top_p: 1, min_p: 0.05 },
};
const SAMPLED = ["temperature", "top_p", "top_k", "min_p"];
/** What draws from all tokens as the model has them. @type {Values} */
const NEUTRAL = { temperature: 1, top_p: 1, top_k: 0, min_p: 0 };

/** Tells by `change`. */
export class Presets extends EventTarget {
  #settings;
  #storage;
  /** @type {Preset[]} */
  #own = [];

  /** @param {Settings} settings @param {Storage | null} storage */
  constructor(settings, storage) {
    super();
    this.#settings = settings;
    this.#storage = storage;
    this.reload();
  }

  /** All of them, the built-in ones first. @returns {Listed[]} */
  list() {
    const builtIn = Object.keys(BUILT_IN).map((id) => ({ id, name: t(`settings.preset.${id}`), own: false }));
    return [...builtIn, ...this.#own.map(({ name }) => ({ id: `own:${name}`, name, own: true }))];
  }

  /** Whether what is in force is what this preset sets. @param {string} id */
  matches(id) {
    const own = this.#find(id);
    if (own !== undefined) {
      return same(own.fields, this.#settings.values()) && own.system === this.#settings.system;
    }
    return SAMPLED.every((name) => (this.#settings.get(name) ?? NEUTRAL[name]) === this.#builtIn(id, name));
  }

  /**
   * Sets what a preset holds. One of the reader's own replaces all settings of the scope; a built-in one only
   * says how tokens are drawn.
   * @param {string} id @param {Scope} [scope]
   */
  apply(id, scope = this.#settings.scope) {
    const own = this.#find(id);
    if (own === undefined) {
      // What is so anyway stays unset, so that it follows the model, or what counts for all conversations.
      const isSo = (/** @type {string} */ name) => this.#settings.recommended(name, scope) ?? NEUTRAL[name];
      const values = SAMPLED.map((name) => [name, this.#builtIn(id, name)]);
      const wanted = values.map(([name, value]) => [name, value === isSo(name) ? undefined : value]);
      if (Object.hasOwn(BUILT_IN, id)) this.#settings.setAll(Object.fromEntries(wanted), scope);
      return;
    }
    this.#settings.reset(scope);
    this.#settings.setAll(own.fields, scope);
    this.#settings.setSystem(own.system, scope);
  }

  /** The preset with this name, however it is written. @param {string} name @returns {Listed | undefined} */
  named(name) {
    const wanted = name.trim().toLowerCase();
    return this.list().find((preset) => preset.name.toLowerCase() === wanted || preset.id === wanted);
  }

  /** Keeps what is in force under a name, as a new preset. @param {string} name @returns {string} what is wrong */
  save(name) {
    const problem = this.#problemOf(name);
    return problem || this.#keep([...this.#own, { name: name.trim(), ...this.#inForce() }]);
  }

  /** What is in force takes the place of what it held. @param {string} id @returns {string} what is wrong */
  overwrite(id) {
    const changed = this.#find(id);
    return this.#keep(this.#own.map((each) => (each === changed ? { name: each.name, ...this.#inForce() } : each)));
  }

  /** @param {string} id @param {string} name @returns {string} what is wrong */
  rename(id, name) {
    const changed = this.#find(id);
    const problem = changed?.name.toLowerCase() === name.trim().toLowerCase() ? "" : this.#problemOf(name);
    return problem || this.#keep(this.#own.map((each) => (each === changed ? { ...each, name: name.trim() } : each)));
  }

  /** @param {string} id */
  remove(id) {
    const gone = this.#find(id);
    this.#keep(this.#own.filter((each) => each !== gone));
  }

  /** The reader's own ones, as JSON. */
  toJson() {
    return JSON.stringify({ type: "fastpath.presets", version: 1, presets: this.#own }, null, 2);
  }

  /**
   * Adds presets from JSON; those whose names there are already get another one.
   * @param {string} json @returns {number} how many there were
   */
  fromJson(json) {
    const found = read(json);
    const all = [...this.#own];
    for (const preset of found) {
      let name = preset.name;
      for (let k = 2; all.some((each) => each.name === name); k++) name = `${preset.name} (${k})`;
      all.push({ ...preset, name });
    }
    if (found.length > 0) this.#keep(all);
    return found.length;
  }

  /** Takes what another tab has stored. */
  reload() {
    try {
      this.#own = read(this.#storage?.getItem(PRESETS_KEY) ?? "[]");
    } catch {
      this.#own = []; // storage is forbidden
    }
    this.dispatchEvent(new Event("change"));
  }

  /** @param {string} id */
  #find(id) {
    return this.#own.find(({ name }) => id === `own:${name}`);
  }

  /** What a built-in preset has for a field: its own, else what the model card says. @param {string} id @param {string} name */
  #builtIn(id, name) {
    return BUILT_IN[id]?.[name] ?? this.#settings.recommended(name, "all") ?? NEUTRAL[name];
  }

  #inForce() {
    return { fields: this.#settings.values(), system: this.#settings.system };
  }

  /** @param {string} name */
  #problemOf(name) {
    const wanted = name.trim();
    if (wanted === "") return t("settings.preset.unnamed");
    if (wanted.length > NAME_LENGTH) return t("settings.preset.long", { most: NAME_LENGTH });
    return this.named(wanted) === undefined ? "" : t("settings.preset.taken", { name: wanted });
  }

  /** @param {Preset[]} presets @returns {string} what is wrong */
  #keep(presets) {
    try {
      if (this.#storage === null) throw new Error("no storage");
      this.#storage.setItem(PRESETS_KEY, JSON.stringify(presets));
    } catch {
      return t("settings.preset.unkept");
    }
    this.#own = presets;
    this.dispatchEvent(new Event("change"));
    return "";
  }
}

/** @param {string} json a list, or what `toJson` wrote @returns {Preset[]} */
function read(json) {
  let stored;
  try {
    stored = JSON.parse(json);
  } catch {
    return [];
  }
  const list = Array.isArray(stored) ? stored : stored?.presets;
  if (!Array.isArray(list)) return [];
  return list.filter((preset) => typeof preset?.name === "string" && preset.name.trim() !== "").map((preset) => {
    const names = Object.keys(preset.fields ?? {}).filter(isField);
    const fields = names.map((name) => [name, checked(name, preset.fields[name])]);
    return {
      name: preset.name.trim().slice(0, NAME_LENGTH),
      fields: Object.fromEntries(fields.filter(([, value]) => value !== undefined)),
      system: typeof preset.system === "string" ? preset.system : "",
    };
  });
}

/** @param {Values} one @param {Values} other */
function same(one, other) {
  const names = new Set([...Object.keys(one), ...Object.keys(other)]);
  return [...names].every((name) => JSON.stringify(one[name]) === JSON.stringify(other[name]));
}
