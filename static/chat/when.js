/** When something was said, as briefly as it can be told. */

import { el } from "../shell/dom.js";
import { spokenLanguage } from "../words/words.js";

/** @param {number} at milliseconds since 1970 @returns {HTMLElement} the time of day, and the day if it was another */
export function when(at) {
  const date = new Date(at);
  const today = date.toDateString() === new Date().toDateString();
  const language = spokenLanguage();
  const text = today
    ? date.toLocaleTimeString(language, { timeStyle: "short" })
    : date.toLocaleString(language, { dateStyle: "medium", timeStyle: "short" });
  return el("time", { class: "when", datetime: date.toISOString(), text });
}
