/** What there is to know about the model that answers: the content of a dialog. */

import { el } from "../shell/dom.js";
import { loadStyle } from "../shell/style.js";
import { spokenLanguage, t } from "../words/words.js";
import { size, whole } from "./figures.js";

await loadStyle(new URL("../styles/engine.css", import.meta.url));

/**
 * @typedef {{id: string, contextLength: number | null, samplingDefaults: Record<string, number>,
 *   facts?: Record<string, any>}} Model as `fetchModel` of server/api.js says it
 * @typedef {object} ModelFacts each null where it is not known
 * @property {Model | null} model
 * @property {Record<string, any> | null} stats of `/stats`
 * @property {Record<string, any> | null} version of `/version`
 */

/** How many numbers there are, in short: "124M". @param {number} value */
function short(value) {
  return value.toLocaleString(spokenLanguage(), { notation: "compact", maximumSignificantDigits: 3 });
}

/** @param {ModelFacts} facts @returns {HTMLElement} */
export function modelCard({ model, stats, version }) {
  const facts = model?.facts ?? {};
  const blocks = stats?.blocks_total ?? facts.num_blocks;
  /** @type {[string, string | null][]} */
  const rows = [
    ["id", text(model?.id)],
    ["context", number(model?.contextLength, tokens)],
    ["parameters", number(facts.n_params, short)],
    ["size", number(facts.size, size)],
    ["dtype", text(facts.dtype ?? version?.dtype)],
    ["device", text(facts.device ?? version?.device)],
    ["rows", number(facts.max_rows ?? stats?.max_rows, whole)],
    ["cache", number(blocks * facts.block_size, tokens)],
    ["vocabulary", number(facts.n_vocab, tokens)],
    ["generation", text(facts.generation ?? version?.generation)],
    ["server", text(version?.version)],
    ["torch", text(version?.torch)],
  ];
  const known = rows.filter(([, value]) => value !== null);
  const content = el("div", { class: "card" });
  if (known.length === 0) content.append(el("p", { text: t("seeing.card.nothing") }));
  else content.append(list(known.map(([name, value]) => [t(`seeing.card.${name}`), value ?? ""])));
  const defaults = Object.entries(model?.samplingDefaults ?? {});
  if (defaults.length > 0) content.append(el("h3", { text: t("seeing.card.defaults") }), chips(defaults));
  const chosen = Array.isArray(facts.features) ? facts.features : [];
  if (chosen.length > 0) {
    content.append(el("details", {}, el("summary", { text: t("seeing.card.features") }), features(chosen)));
  };
  return content;
}

/**
 * Asks the server for all of it, as far as it answers.
 * @param {{model: () => Promise<Model>, stats: () => Promise<any>, version: () => Promise<any>}} ask
 * @returns {Promise<ModelFacts>}
 */
export async function readModelFacts(ask) {
  const none = () => null;
  const [model, stats, version] = await Promise.all([
    ask.model().catch(none), ask.stats().catch(none), ask.version().catch(none),
  ]);
  return { model, stats, version };
}

/** @param {[string, string][]} rows */
function list(rows) {
  const made = el("dl", { class: "card-list", translate: "no" });
  for (const [name, value] of rows) made.append(el("div", {}, el("dt", { text: name }), el("dd", { text: value })));
  return made;
}

/**
 * What the engine chose at its start: quantisation, kernels, caches.
 * @param {{feature: string, used: string, why: string}[]} rows
 */
function features(rows) {
  return list(rows.map(({ feature, used, why }) => [feature, why ? `${used} (${why})` : used]));
}

/** @param {number} n */
function tokens(n) {
  return t("seeing.tokens", { n });
}

/** @param {[string, unknown][]} fields */
function chips(fields) {
  const list = el("ul", { class: "facts-sent", translate: "no" });
  for (const [name, value] of fields) {
    list.append(el("li", {}, el("code", { text: `${name} ${JSON.stringify(value)}` })));
  }
  return list;
}

/** @param {unknown} value @returns {string | null} */
function text(value) {
  return typeof value === "string" && value !== "" ? value : null;
}

/** @param {unknown} value @param {(value: number) => string} shown @returns {string | null} */
function number(value, shown) {
  return typeof value === "number" && Number.isFinite(value) && value > 0 ? shown(value) : null;
}
