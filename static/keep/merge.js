/** One conversation's head, changed in two places. */

/** @typedef {import("../core/conversation.js").Head} Head */

/**
 * @param {{head: Head, base: Head | undefined}[]} edits in their order
 * @returns {(stored: Map<string, Head>) => Head[]} what to store, given what is stored
 */
export function merging(edits) {
  return (stored) => {
    const merged = new Map(stored);
    for (const { head, base } of edits) merged.set(head.id, mergeHeads(merged.get(head.id), base, head));
    return [...new Set(edits.map(({ head }) => head.id))].map((id) => /** @type {Head} */ (merged.get(id)));
  };
}

/**
 * What to store when `mine` is written over `stored`. With `base`, the version that `mine` was made from, each
 * place's changes are kept, and where both changed the same the newer one counts. Without it, the newer head
 * counts. A name that the reader gave never yields to one that was made from the first message.
 * @param {Head | undefined} stored @param {Head | undefined} base @param {Head} mine
 * @returns {Head}
 */
function mergeHeads(stored, base, mine) {
  if (stored === undefined) return mine;
  const older = stored.updated > mine.updated;
  const merged = { ...mine };
  if (base === undefined) {
    if (older) Object.assign(merged, stored);
  } else {
    for (const field of /** @type {(keyof Head)[]} */ (Object.keys(stored))) {
      const theirs = !same(stored[field], base[field]);
      const ours = !same(mine[field], base[field]);
      if (theirs && (older || !ours)) Object.assign(merged, { [field]: stored[field] });
    }
  }
  if (stored.named && !merged.named) Object.assign(merged, { title: stored.title, named: true });
  return { ...merged, updated: Math.max(stored.updated, mine.updated) };
}

/** @param {unknown} one @param {unknown} other */
function same(one, other) {
  return one === other || JSON.stringify(one) === JSON.stringify(other);
}
