/**
 * Reads the exports of llama.cpp's page: one object `{conv, messages}` or a list of them, and the newer form
 * of one record a line, where a line of type "session" begins a conversation and lines of type "message"
 * follow.
 */

import { factsOf } from "./from_own.js";
import { array, number, object, string, timeOf } from "./loose.js";
import { plant } from "./plant.js";

/** @typedef {import("../core/conversation.js").Message} Message */

/** @param {Record<string, unknown>} item */
export function isLlama(item) {
  return object(item.conv) !== undefined && array(item.messages) !== undefined;
}

/**
 * Gathers records of lines into objects of the older form.
 * @param {unknown[]} lines @returns {unknown[]} with whatever stands before the first session as it is
 */
export function sessions(lines) {
  /** @type {unknown[]} */
  const found = [];
  /** @type {unknown[] | undefined} the messages of the session that is read */
  let messages;
  for (const line of lines) {
    const record = object(line);
    if (record?.type === "session") {
      messages = [];
      found.push({ conv: record, messages });
    } else if (record?.type === "message" && messages !== undefined) messages.push(record.message);
    else if (record === undefined || record.type === undefined) found.push(line);
  }
  return found;
}

/** @param {Record<string, unknown>} item @param {import("./plant.js").Note} note */
export function fromLlama(item, note) {
  const conv = object(item.conv) ?? {};
  const updated = timeOf(conv.lastModified) ?? Date.now();
  const list = array(item.messages) ?? [];
  const nodes = list.map((value) => {
    const found = object(value);
    if (found === undefined) return /** @type {any} */ (value);
    const { id, parent, role, content, timestamp: created } = found;
    if (string(found.reasoningContent ?? found.thinking)) note("reasoning");
    // An empty root holds the first messages together.
    const silent = found.type === "root";
    return { id, parent, role: silent ? "root" : role, content, created, more: more(found, note), silent };
  });
  const first = Math.min(updated, ...list.slice(0, 3).map((value) => timeOf(object(value)?.timestamp) ?? Infinity));
  const title = string(conv.name) ?? "";
  const head = { title, named: title !== "", pinned: conv.pinned === true, created: first, updated, leaf: string(conv.currNode) ?? null };
  return plant({ head, nodes }, note);
}

/** @param {Record<string, unknown>} found @param {import("./plant.js").Note} note @returns {Partial<Message>} */
function more(found, note) {
  /** @type {Partial<Message>} */
  const read = {};
  const extras = array(found.extra)?.map(object) ?? [];
  const files = extras.flatMap((extra) => {
    const text = string(extra?.content);
    return text === undefined ? [] : [{ name: string(extra?.name) ?? "", text, tokens: null }];
  });
  if (files.length > 0) read.files = files;
  if (extras.length > files.length) note("parts", extras.length - files.length);
  if (found.role !== "assistant") return read;
  const timings = object(found.timings) ?? {};
  const predicted = number(timings.predicted_n);
  const took = number(timings.predicted_ms);
  const cached = number(timings.cache_n);
  const prompt = number(timings.prompt_n);
  read.facts = factsOf({
    model: found.model,
    started: timeOf(found.timestamp),
    ttft: number(timings.prompt_ms),
    rate: predicted !== undefined && took !== undefined && took > 0 ? (predicted / took) * 1000 : null,
    promptTokens: prompt === undefined ? null : prompt + (cached ?? 0),
    cachedTokens: cached,
    completionTokens: predicted,
  });
  return read;
}
