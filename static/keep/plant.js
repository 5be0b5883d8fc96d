/**
 * From loose nodes, as an imported file holds them, to a conversation that is whole: every parent is there, no
 * node is its own ancestor, every id is there once. What does not fit is left out or mended, and noted; the
 * rest stays.
 */

import { newHead, newId, titleOf } from "../core/conversation.js";
import { array, number, object, string, textOf, timeOf } from "./loose.js";

/**
 * @typedef {import("../core/conversation.js").Head} Head
 * @typedef {import("../core/conversation.js").Message} Message
 * @typedef {import("../core/conversation.js").Records} Records
 *
 * @typedef {object} Node a message as a file holds it; nothing is sure of it but that it is an object
 * @property {unknown} [id]
 * @property {unknown} [parent]
 * @property {unknown} [role]
 * @property {unknown} [content] a text, or a list of parts
 * @property {unknown} [created] a time in any notation
 * @property {Partial<Message>} [more] what else is known of it, checked already
 * @property {boolean} [silent] leave it out without a note
 *
 * @typedef {object} Draft
 * @property {Partial<Head>} head checked already; `leaf` may name what is not there
 * @property {Node[]} nodes siblings in their order
 * @property {boolean} [keepIds] for a file of our own; ids of others may be anything
 *
 * @typedef {(why: string, n?: number) => void} Note
 */

/** How files name the two who speak. */
const ROLES = new Map(
  Object.entries({
    user: "user", human: "user", prompter: "user",
    assistant: "assistant", gpt: "assistant", chatgpt: "assistant", bot: "assistant", model: "assistant",
  }),
);

/** @param {Draft} draft @param {Note} note @returns {Records} */
export function plant({ head: given, nodes, keepIds = false }, note) {
  const head = newHead({ ...given });
  const known = named(nodes, note);
  const parents = new Map([...known].map(([id, node]) => [id, parentOf(node)]));
  for (const [id, parent] of parents) {
    if (parent !== null && !known.has(parent)) {
      parents.set(id, null);
      note("parent");
    }
  }
  for (const id of circles(parents)) {
    parents.set(id, null);
    note("circle");
  }
  const left = leftOut(known, head, parents, note);
  /** @param {string | null} id @returns {string | null} the nearest that is not left out */
  const kept = (id) => {
    const passed = [];
    let at = id;
    for (; at !== null && left.has(at); at = parents.get(at) ?? null) passed.push(at);
    for (const each of passed) parents.set(each, at); // a short cut for the next
    return at;
  };
  /** @type {Map<string, string>} */
  const ids = new Map([...known.keys()].filter((id) => !left.has(id)).map((id) => [id, keepIds ? id : newId()]));
  /** @param {string | null} id */
  const renamed = (id) => (id === null ? null : (ids.get(id) ?? null));
  const messages = [...ids].map(([id, name]) => {
    const parent = renamed(kept(parents.get(id) ?? null));
    return message(known.get(id) ?? {}, name, parent, head, note);
  });
  const leaf = given.leaf != null && parents.has(given.leaf) ? given.leaf : null;
  head.leaf = renamed(kept(leaf)) ?? messages.at(-1)?.id ?? null;
  if (head.title === "") head.title = titleOf(messages.find(({ role }) => role === "user")?.content ?? "");
  return { head, messages };
}

/** The nodes by their ids; one without, or with another's, gets a new one. @param {Node[]} nodes @param {Note} note */
function named(nodes, note) {
  /** @type {Map<string, Node>} */
  const known = new Map();
  for (const node of nodes) {
    if (object(node) === undefined) {
      note("notMessage");
      continue;
    }
    const id = idOf(node.id);
    if (id !== null && known.has(id)) note("twice");
    known.set(id === null || known.has(id) ? newId() : id, node);
  }
  return known;
}

/** One node of each circle. @param {Map<string, string | null>} parents @returns {string[]} */
function circles(parents) {
  const found = [];
  /** @type {Map<string, string>} from which node each was reached */
  const seen = new Map();
  for (const start of parents.keys()) {
    /** @type {string | null} */
    let at = start;
    while (at !== null && !seen.has(at)) {
      seen.set(at, start);
      at = parents.get(at) ?? null;
    }
    if (at !== null && seen.get(at) === start) found.push(at);
  }
  return found;
}

/**
 * The ids of what is no message of ours. The first system prompt is the conversation's.
 * @param {Map<string, Node>} known @param {Head} head @param {Map<string, string | null>} parents @param {Note} note
 */
function leftOut(known, head, parents, note) {
  /** @type {Set<string>} */
  const left = new Set();
  for (const [id, node] of known) {
    const role = string(node.role) ?? "";
    if (ROLES.has(role.toLowerCase())) continue;
    left.add(id);
    if (node.silent) continue;
    const text = textOf(node.content).text;
    const system = role === "system" || role === "developer";
    if (system && head.system === "") head.system = text;
    else if (!system || (text !== "" && text !== head.system)) note("role");
  }
  return left;
}

/** @param {Node} node @param {string} id @param {string | null} parent @param {Head} head @param {Note} note @returns {Message} */
function message(node, id, parent, head, note) {
  const { text, lost } = textOf(node.content);
  if (lost > 0) note("parts", lost);
  return {
    id,
    parent,
    role: /** @type {"user" | "assistant"} */ (ROLES.get((string(node.role) ?? "").toLowerCase())),
    content: text,
    state: "done",
    created: timeOf(node.created) ?? head.created,
    ...node.more,
  };
}

/** @param {Node} node */
function parentOf(node) {
  return idOf(node.parent);
}

/** @param {unknown} value @returns {string | null} */
function idOf(value) {
  const id = number(value)?.toString() ?? string(value) ?? "";
  return id === "" ? null : id;
}

/**
 * Nodes that follow each other, for files that know no tree.
 * @param {unknown} list @param {(item: Record<string, unknown>) => Node} read @returns {Node[]}
 */
export function inLine(list, read) {
  return (array(list) ?? []).map((item, at) => {
    const found = object(item);
    // A damaged item stays in the list, to be noted; what follows it hangs on the one before.
    const node = found === undefined ? { role: "?" } : read(found);
    return { ...node, id: `line ${at}`, parent: at === 0 ? null : `line ${at - 1}` };
  });
}
