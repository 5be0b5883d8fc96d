/** What the server serves, once it is there. */

import { fetchModel } from "../server/api.js";
import { byId } from "../shell/dom.js";
import { t } from "../words/words.js";

/** @typedef {import("../server/api.js").Model} Model */

const FIRST_WAIT = 500; // milliseconds
const LONGEST_WAIT = 5000;

/** Asks until the server answers: it may still be loading its model. @param {(model: Model) => void} tell */
export async function learnModel(tell, wait = FIRST_WAIT) {
  const line = byId("model");
  try {
    const model = await fetchModel();
    line.textContent = line.title = model.id;
    tell(model);
  } catch {
    line.textContent = t("chat.waiting");
    setTimeout(() => learnModel(tell, Math.min(wait * 2, LONGEST_WAIT)), wait);
  }
}
