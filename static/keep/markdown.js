/** A conversation to read: the path that is shown, with how each answer came about. */

import { Conversation, withFiles } from "../core/conversation.js";
import { spokenLanguage, t } from "../words/words.js";

/**
 * @typedef {import("../core/conversation.js").Facts} Facts
 * @typedef {import("../core/conversation.js").Message} Message
 * @typedef {import("../core/conversation.js").Records} Records
 */

/** Fields of a request that say how it travels, not how the answer is chosen. */
const CARRIERS = new Set(["stream", "stream_options", "model", "seed", "n", "messages", "resumable", "logprobs", "top_logprobs"]);

/** @param {Records} records */
export function toMarkdown({ head, messages }) {
  const path = new Conversation({ head: { ...head }, messages }).path();
  const parts = [`# ${oneLine(head.title) || t("keep.untitled")}`, about(head.created, path)];
  if (head.system.trim() !== "") parts.push(`**${t("keep.md.system")}**`, quoted(head.system));
  for (const message of path) parts.push(heading(message), withFiles(message), ...facts(message));
  return `${parts.filter((part) => part !== "").join("\n\n")}\n`;
}

/** When, and with which models. @param {number} created @param {Message[]} path */
function about(created, path) {
  const models = new Set(path.flatMap(({ facts }) => (facts?.model ? [facts.model] : [])));
  return [time(created), ...[...models].map((model) => `\`${model}\``)].join(" · ");
}

/** @param {Message} message */
function heading({ role, created }) {
  return `## ${t(role === "user" ? "keep.md.you" : "keep.md.answer")} · ${time(created)}`;
}

/** @param {Message} message @returns {string[]} */
function facts({ facts, state }) {
  const ended = state === "failed" ? [t("keep.md.failed")] : [];
  const words = facts === undefined ? ended : [...figures(facts), ...ended, ...sampling(facts)];
  return words.length === 0 ? [] : [`*${words.join(" · ")}*`];
}

/** @param {Facts} facts */
function figures({ ttft, rate, itl50, itl95, promptTokens, completionTokens, finish, seed }) {
  const words = [];
  if (ttft !== null) words.push(t("keep.md.ttft", { n: Math.round(ttft) }));
  if (rate !== null) words.push(t("keep.md.rate", { rate: rate.toFixed(1) }));
  if (itl50 != null && itl95 != null) words.push(t("keep.md.itl", { p50: itl50.toFixed(1), p95: itl95.toFixed(1) }));
  if (promptTokens !== null) words.push(t("keep.md.prompt", { n: promptTokens }));
  if (completionTokens !== null) words.push(t("keep.md.tokens", { n: completionTokens }));
  if (finish !== null) words.push(t("keep.md.finish", { finish }));
  if (seed !== null) words.push(t("keep.md.seed", { seed: String(seed) }));
  return words;
}

/** @param {Facts} facts */
function sampling({ request }) {
  const fields = Object.entries(request).filter(([name, value]) => !CARRIERS.has(name) && value !== null);
  return fields.map(([name, value]) => `${name} ${typeof value === "object" ? JSON.stringify(value) : String(value)}`);
}

/** @param {number} milliseconds */
function time(milliseconds) {
  return new Date(milliseconds).toLocaleString(spokenLanguage(), { dateStyle: "medium", timeStyle: "short" });
}

/** @param {string} text */
function quoted(text) {
  return text.trim().split("\n").map((line) => `> ${line}`.trimEnd()).join("\n");
}

/** @param {string} text */
function oneLine(text) {
  return text.trim().split(/\s+/).join(" ");
}
