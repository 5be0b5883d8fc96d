/** The common case of an answer that grows: a word more in the middle of a paragraph. */

// Letters that cannot begin or end any markdown where words stand already.
const PLAIN = /^[\p{L}\p{M}\p{Nd} ,;'"?%]+$|^[\p{L}\p{Nd}]*[.:)]?$/u;
const PLAIN_BEFORE = /[\p{L}\p{M}\p{Nd},;][ '"]?$/u;
const RISKY_LINE = /(?:^|\n)[ \t>]*(?:\d+|[-*+#=_|:]+)?[ \t]*$/;
const RISKY_WORD = /(?:www\.|:\/|@|&|\\|\$|https?:?|ftp:?)\S*$/i;

/**
 * Adds plain words to the end of an element. @param {HTMLElement} element @param {string} rest the source so far
 * @param {string} source what is added to it @returns {boolean} whether that was all there is to do
 */
export function addWords(element, rest, source) {
  if (!PLAIN.test(source)) return false;
  if (!PLAIN_BEFORE.test(rest.slice(-2)) || RISKY_LINE.test(rest.slice(rest.lastIndexOf("\n") + 1))) return false;
  if (RISKY_WORD.test(rest.slice(-80) + source)) return false;
  const node = lastText(element);
  if (node === null || !PLAIN_BEFORE.test(node.data.slice(-2))) return false;
  // Blanks at the end of a line may not have been shown.
  const blank = rest.endsWith(" ") && !node.data.endsWith(" ") ? " " : "";
  if (blank === "" && !node.data.endsWith(rest.slice(-1))) return false;
  node.appendData(blank + source);
  return true;
}

/** The text that an element ends with, null if it ends otherwise. @param {Node} element @returns {Text | null} */
function lastText(element) {
  /** @type {Node | null} */
  let node = element;
  while (node !== null && !(node instanceof Text)) {
    if (node instanceof HTMLElement && (node.className !== "" || node.tagName === "A")) return null;
    node = node.lastChild;
  }
  return node;
}
