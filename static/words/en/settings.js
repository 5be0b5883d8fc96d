/** @type {Record<string, import("../words.js").Word>} */
export const settings = {};
