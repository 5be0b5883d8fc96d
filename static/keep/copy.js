/** A conversation once more, under ids of its own. */

import { newId } from "../core/conversation.js";

/** @typedef {import("../core/conversation.js").Records} Records */

/** @param {Records} records @returns {Records} */
export function copyOf({ head, messages }) {
  const ids = new Map(messages.map((message) => [message.id, newId()]));
  /** @param {string | null} id */
  const renamed = (id) => (id === null ? null : (ids.get(id) ?? null));
  return {
    head: { ...structuredClone(head), id: newId(), leaf: renamed(head.leaf) },
    messages: messages.map((message) => {
      // A copy of an answer that grows does not grow.
      const { stream, ...copy } = structuredClone(message);
      const state = copy.state === "streaming" ? "stopped" : copy.state;
      return { ...copy, state, id: ids.get(message.id) ?? newId(), parent: renamed(message.parent) };
    }),
  };
}

/** Whether two conversations say the same. @param {Records} one @param {Records} other */
export function sameWords(one, other) {
  if (one.messages.length !== other.messages.length) return false;
  const words = new Map(one.messages.map(({ id, content }) => [id, content]));
  return other.messages.every(({ id, content }) => words.get(id) === content);
}
