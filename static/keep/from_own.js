/** Reads the page's own export. */

import { array, number, object, plain, string, timeOf } from "./loose.js";
import { plant } from "./plant.js";

/**
 * @typedef {import("../core/conversation.js").Facts} Facts
 * @typedef {import("../core/conversation.js").Head} Head
 * @typedef {import("../core/conversation.js").Message} Message
 * @typedef {import("../core/conversation.js").TextFile} TextFile
 * @typedef {import("../core/conversation.js").TokenScore} TokenScore
 */

const STATES = new Set(["done", "stopped", "failed"]);
const FIGURES = /** @type {const} */ (["seed", "ttft", "rate", "itl50", "itl95", "promptTokens", "cachedTokens", "completionTokens"]);

/** @param {Record<string, unknown>} item */
export function isOwn(item) {
  return object(item.head) !== undefined && array(item.messages) !== undefined;
}

/** @param {Record<string, unknown>} item @param {import("./plant.js").Note} note */
export function fromOwn(item, note) {
  const nodes = (array(item.messages) ?? []).map((value) => {
    const found = object(value);
    if (found === undefined) return /** @type {any} */ (value);
    const { id, parent, role, content, created } = found;
    return { id, parent, role, content, created, more: more(found) };
  });
  return plant({ head: headOf(object(item.head) ?? {}), nodes, keepIds: true }, note);
}

/** @param {Record<string, unknown>} head @returns {Partial<Head>} */
function headOf(head) {
  const created = timeOf(head.created) ?? Date.now();
  const { id, ...rest } = plain(head);
  return {
    ...rest,
    ...(string(id) ? { id } : {}),
    title: string(head.title) ?? "",
    named: head.named === true,
    pinned: head.pinned === true,
    created,
    updated: timeOf(head.updated) ?? created,
    leaf: string(head.leaf) ?? null,
    system: string(head.system) ?? "",
    settings: plain(object(head.settings) ?? {}),
  };
}

/** What a message has besides its words. @param {Record<string, unknown>} found @returns {Partial<Message>} */
function more({ id, parent, role, content, created, state, files, facts, earlier, scores, stream, ...rest }) {
  const read = { ...plain(rest) };
  read.state = STATES.has(/** @type {any} */ (state)) ? state : state === "streaming" ? "stopped" : "done";
  const texts = array(files)?.flatMap((file) => fileOf(object(file)) ?? []);
  if (texts?.length) read.files = texts;
  if (object(facts)) read.facts = factsOf(object(facts) ?? {});
  const before = array(earlier)?.flatMap((each) => (object(each) ? [factsOf(object(each) ?? {})] : []));
  if (before?.length) read.earlier = before;
  const tokens = array(scores)?.map((score) => scoreOf(object(score)));
  if (tokens?.length && !tokens.includes(undefined)) read.scores = tokens;
  return read;
}

/** @param {Record<string, unknown> | undefined} file @returns {TextFile | undefined} */
export function fileOf(file) {
  if (typeof file?.text !== "string") return undefined;
  return { name: string(file.name) ?? "", text: file.text, tokens: number(file.tokens) ?? null };
}

/** @param {Record<string, unknown>} facts @returns {Facts} with null for what is not known */
export function factsOf(facts) {
  const read = /** @type {any} */ (plain(facts));
  for (const name of FIGURES) read[name] = number(facts[name]) ?? null;
  read.model = string(facts.model) ?? "";
  read.request = plain(object(facts.request) ?? {});
  read.started = number(facts.started) ?? 0;
  read.finish = string(facts.finish) ?? null;
  return read;
}

/** @param {Record<string, unknown> | undefined} score @returns {TokenScore | undefined} */
function scoreOf(score) {
  const found = scored(score);
  if (found === undefined) return undefined;
  return { ...found, alternatives: (array(score?.alternatives) ?? []).flatMap((each) => scored(object(each)) ?? []) };
}

/** @param {Record<string, unknown> | undefined} score */
function scored({ text, logprob } = {}) {
  if (typeof text !== "string") return undefined;
  // JSON knows no infinity: what can never come is written as null.
  if (logprob === null) return { text, logprob: -Infinity };
  return typeof logprob === "number" ? { text, logprob } : undefined;
}
