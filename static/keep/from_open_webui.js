/** Reads open-webui's export: a list of `{id, title, chat: {history: {messages, currentId}, messages, ...}}`. */

import { factsOf } from "./from_own.js";
import { array, number, object, string, timeOf } from "./loose.js";
import { inLine, plant } from "./plant.js";

/**
 * @typedef {import("../core/conversation.js").Message} Message
 * @typedef {import("../core/conversation.js").TextFile} TextFile
 * @typedef {import("./plant.js").Node} Node
 * @typedef {import("./plant.js").Note} Note
 */

/** @param {Record<string, unknown>} item */
export function isOpenWebui(item) {
  const chat = object(item.chat) ?? item;
  return object(object(chat.history)?.messages) !== undefined || (chat !== item && array(chat.messages) !== undefined);
}

/** @param {Record<string, unknown>} item @param {Note} note */
export function fromOpenWebui(item, note) {
  const chat = object(item.chat) ?? item;
  const history = object(chat.history);
  const tree = object(history?.messages);
  const nodes = tree === undefined
    ? inLine(chat.messages, (found) => nodeOf(found, note))
    : Object.entries(tree).map(([key, value]) => {
        const found = object(value);
        return found === undefined ? /** @type {any} */ (value) : { ...nodeOf(found, note), id: key, parent: found.parentId };
      });
  const title = string(item.title) ?? string(chat.title) ?? "";
  const created = timeOf(item.created_at) ?? timeOf(chat.timestamp) ?? Date.now();
  const head = {
    title,
    named: title !== "",
    pinned: item.pinned === true,
    created,
    updated: timeOf(item.updated_at) ?? created,
    leaf: string(history?.currentId) ?? null,
    system: string(object(chat.params)?.system) ?? string(chat.system) ?? "",
  };
  return plant({ head, nodes: inOrder(nodes, tree) }, note);
}

/**
 * Siblings in the order of their parent's list: an object's own order is not theirs.
 * @param {Node[]} nodes @param {Record<string, unknown> | undefined} tree
 */
function inOrder(nodes, tree) {
  /** @type {Map<unknown, number>} */
  const places = new Map();
  for (const value of Object.values(tree ?? {})) {
    for (const [at, id] of (array(object(value)?.childrenIds) ?? []).entries()) places.set(id, at);
  }
  return nodes
    .map((node, at) => ({ node, at }))
    .sort((one, other) => (places.get(one.node?.id) ?? 0) - (places.get(other.node?.id) ?? 0) || one.at - other.at)
    .map(({ node }) => node);
}

/** @param {Record<string, unknown>} found @param {Note} note @returns {Node} */
function nodeOf(found, note) {
  const { role, content, timestamp } = found;
  /** @type {Partial<Message>} */
  const more = {};
  const given = array(found.files)?.map(object) ?? [];
  const files = given.flatMap((file) => fileOf(file) ?? []);
  if (files.length > 0) more.files = files;
  if (given.length > files.length) note("parts", given.length - files.length);
  if (role === "assistant") {
    if (found.error) more.state = "failed";
    else if (found.done === false) more.state = "stopped";
    more.facts = factsFrom(found);
  }
  return { role, content, created: timestamp, more };
}

/** @param {Record<string, unknown>} found */
function factsFrom(found) {
  const usage = object(found.usage) ?? object(found.info) ?? {};
  const seconds = number(usage.eval_duration) ?? NaN; // nanoseconds, where an Ollama answered
  const completion = number(usage.completion_tokens) ?? number(usage.eval_count);
  return factsOf({
    model: string(found.model) ?? string(found.modelName),
    started: timeOf(found.timestamp),
    rate: completion !== undefined && seconds > 0 ? (completion / seconds) * 1e9 : number(usage["response_token/s"]),
    promptTokens: number(usage.prompt_tokens) ?? number(usage.prompt_eval_count),
    completionTokens: completion,
  });
}

/** @param {Record<string, unknown> | undefined} file @returns {TextFile | undefined} */
function fileOf(file) {
  const inner = object(file?.file);
  const text = string(object(inner?.data)?.content) ?? string(file?.content);
  if (text === undefined) return undefined;
  return { name: string(file?.name) ?? string(inner?.filename) ?? "", text, tokens: null };
}
