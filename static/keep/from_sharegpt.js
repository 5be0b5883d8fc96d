/**
 * Reads ShareGPT's form, `{id, conversations: [{from: "human" | "gpt" | "system", value}]}`, and the one that
 * data sets use today, `{messages: [{role, content}]}`.
 */

import { array, object, string, timeOf } from "./loose.js";
import { inLine, plant } from "./plant.js";

/** @param {Record<string, unknown>} item */
export function isShareGpt(item) {
  const list = array(item.conversations) ?? array(item.conversation) ?? array(item.messages);
  return list !== undefined && (list.length === 0 || list.some(isTurn));
}

/** @param {unknown} value */
export function isTurn(value) {
  const turn = object(value);
  return turn !== undefined && (string(turn.from) ?? string(turn.role)) !== undefined;
}

/** @param {Record<string, unknown>} item @param {import("./plant.js").Note} note */
export function fromShareGpt(item, note) {
  const list = array(item.conversations) ?? array(item.conversation) ?? item.messages;
  const nodes = inLine(list, (found) => ({
    role: found.from ?? found.role,
    content: found.value ?? found.content,
    created: found.timestamp,
  }));
  const title = string(item.title) ?? string(item.name) ?? "";
  const created = timeOf(item.created ?? item.create_time ?? item.timestamp) ?? timeOf(item.lastModified) ?? Date.now();
  const head = {
    title, named: title !== "", created, updated: timeOf(item.lastModified) ?? created, system: string(item.system) ?? "",
  };
  return plant({ head, nodes }, note);
}
