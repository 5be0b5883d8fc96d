/** Looking at values that may be anything. */

const DEEPEST = 8; // levels of an object that is kept as it is
const MILLISECONDS = 1e11; // a greater number of seconds would be in the year 5138

/** @param {unknown} value @returns {Record<string, unknown> | undefined} */
export function object(value) {
  return typeof value === "object" && value !== null && !Array.isArray(value)
    ? /** @type {Record<string, unknown>} */ (value)
    : undefined;
}

/** @param {unknown} value @returns {unknown[] | undefined} */
export function array(value) {
  return Array.isArray(value) ? value : undefined;
}

/** @param {unknown} value */
export function string(value) {
  return typeof value === "string" ? value : undefined;
}

/** @param {unknown} value */
export function number(value) {
  return typeof value === "number" && Number.isFinite(value) ? value : undefined;
}

/**
 * A time in milliseconds since 1970, from milliseconds, seconds or a date in words.
 * @param {unknown} value
 */
export function timeOf(value) {
  const given = number(value) ?? (typeof value === "string" ? Date.parse(value) : NaN);
  const time = typeof value === "number" && given < MILLISECONDS ? given * 1000 : given;
  return time > 0 && time < 8.64e15 ? Math.round(time) : undefined;
}

/**
 * A message's text, from a text or a list of parts.
 * @param {unknown} content @returns {{text: string, lost: number}} lost: how many parts are not text
 */
export function textOf(content) {
  if (typeof content === "string") return { text: content, lost: 0 };
  if (typeof content === "number") return { text: String(content), lost: 0 };
  if (content === undefined || content === null) return { text: "", lost: 0 };
  const parts = array(content);
  if (parts === undefined) return { text: "", lost: 1 };
  const texts = parts.map((part) => string(part) ?? string(object(part)?.text)).filter((text) => text !== undefined);
  return { text: texts.join("\n\n"), lost: parts.length - texts.length };
}

/**
 * A copy of a value that JSON can hold, without what lies too deep in it.
 * @param {unknown} value @returns {any}
 */
export function plain(value, depth = DEEPEST) {
  if (typeof value !== "object" || value === null) return typeof value === "function" ? null : value;
  if (depth === 0) return null;
  if (Array.isArray(value)) return value.map((item) => plain(item, depth - 1));
  const entries = Object.entries(value).filter(([name]) => name !== "__proto__");
  return Object.fromEntries(entries.map(([name, item]) => [name, plain(item, depth - 1)]));
}
