/** Hands the reader a file. */

const LONGEST = 80; // characters of a name
const PATIENCE = 60_000; // milliseconds; a browser may ask where to put it first

/**
 * @param {string} name @param {string} type
 * @param {string | string[]} content a text, or its parts where it may be longer than the longest text
 */
export function download(name, type, content) {
  const address = URL.createObjectURL(new Blob([content].flat(), { type }));
  const link = document.createElement("a");
  link.href = address;
  link.download = fileName(name);
  link.click();
  setTimeout(() => URL.revokeObjectURL(address), PATIENCE);
}

/** A name that every system takes. @param {string} name */
export function fileName(name) {
  const dot = name.lastIndexOf(".");
  const [stem, ending] = dot < 0 ? [name, ""] : [name.slice(0, dot), name.slice(dot)];
  const plain = stem.replace(/[\p{C}\s\\/:*?"<>|]+/gu, " ").trim().replace(/^\.+/, "").trim();
  return ([...plain].slice(0, LONGEST).join("").trim() || "conversation") + ending;
}
