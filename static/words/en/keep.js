/** @type {Record<string, import("../words.js").Word>} */
export const keep = {
  "keep.notKept.forbidden": "This browser lets the page keep nothing, so conversations last until you close it. Export what you want to keep.",
  "keep.notKept.blocked": "An older tab of this page is in the way, so conversations last until you close this one. Close the other tabs and reload.",
  "keep.notKept.newer": "A newer version of this page is in use. Reload, so that conversations are kept again.",
  "keep.full": "There is no room left to keep conversations. What you see lasts until you close the page: export it, or delete old conversations.",
  "keep.failed": "A conversation could not be saved and lasts until you close the page: export it. ({why})",
};
