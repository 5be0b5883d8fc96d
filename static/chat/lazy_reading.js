/**
 * What shows answers (markdown, its sanitiser, highlighting) is a third of the page, and is not needed before
 * there is an answer. Until it is there, a text is shown as it came.
 */

import { loadStyle } from "../shell/style.js";

/** @typedef {typeof import("../reading/body.js")} Reading */

/** @type {Reading | null} */
let reading = null;
/** @type {Promise<void> | null} */
let loading = null;
/** @type {WeakMap<HTMLElement, object>} what was last asked to be shown in an element */
const wanted = new WeakMap();

/** An answer is near: what it takes is loaded. */
export function prepare() {
  loadReading();
  for (const part of [import("../server/stream.js"), import("./answer.js")]) part.catch(() => {}); // asked for again when needed
}

/** Loads it. If it cannot be had, texts stay as they came, and the next answer tries again. @returns {Promise<void>} */
export function loadReading() {
  const style = loadStyle(new URL("../styles/reading.css", import.meta.url));
  loading ??= Promise.all([import("../reading/body.js"), style]).then(
    ([module]) => void (reading = module),
    () => void (loading = null),
  );
  return loading;
}

/** As AnswerBody of reading/body.js. */
export class LazyBody {
  #element;
  /** @type {import("../reading/body.js").AnswerBody | null} */
  #body = null;
  #text = "";
  #finished = false;

  /** @param {HTMLElement} element */
  constructor(element) {
    this.#element = element;
    wanted.set(element, this);
    if (reading !== null) this.#body = new reading.AnswerBody(element);
    else {
      element.replaceChildren();
      loadReading().then(() => this.#take());
    }
  }

  /** @param {string} text */
  append(text) {
    if (this.#body !== null) return this.#body.append(text);
    this.#text += text;
    this.#element.append(text);
  }

  finish() {
    this.#finished = true;
    this.#body?.finish();
  }

  #take() {
    if (reading === null || wanted.get(this.#element) !== this) return;
    this.#body = new reading.AnswerBody(this.#element);
    if (this.#text !== "") this.#body.append(this.#text);
    if (this.#finished) this.#body.finish();
  }
}

/** As in reading/body.js. @param {HTMLElement} element @param {string} text */
export function showText(element, text) {
  if (reading !== null) {
    wanted.delete(element);
    return reading.showText(element, text);
  }
  const body = new LazyBody(element);
  body.append(text);
  body.finish();
}
