/** Conversations by how long ago they were last written in. */

/** @typedef {import("../core/conversation.js").Head} Head */

/** @typedef {"pinned" | "today" | "yesterday" | "week" | "earlier"} Group */

/**
 * @param {Head[]} heads pinned ones first, then the newest @param {Date} [now]
 * @returns {[Group, Head[]][]} in their order, none empty
 */
export function grouped(heads, now = new Date()) {
  /** @param {number} days */
  const morning = (days) => new Date(now.getFullYear(), now.getMonth(), now.getDate() - days).getTime();
  const [today, yesterday, week] = [0, 1, 7].map(morning);
  /** @param {Head} head @returns {Group} */
  const groupOf = ({ pinned, updated }) => {
    if (pinned) return "pinned";
    if (updated >= today) return "today";
    if (updated >= yesterday) return "yesterday";
    return updated >= week ? "week" : "earlier";
  };
  /** @type {Map<Group, Head[]>} */
  const groups = new Map();
  for (const head of heads) {
    const group = groupOf(head);
    const members = groups.get(group);
    if (members === undefined) groups.set(group, [head]);
    else members.push(head);
  }
  return [...groups];
}

/** @param {Head} one @param {Head} other */
export function byAge(one, other) {
  return Number(other.pinned) - Number(one.pinned) || other.updated - one.updated;
}
