/** A block of code: its language, its buttons, its lines in colours. */

import { el, iconButton } from "../shell/dom.js";
import { announce } from "../shell/toast.js";
import { t } from "../words/words.js";
import { highlight, isLoaded, languageOf, load } from "./highlight.js";

const PART = 4096; // characters that are laid out together; what came before them is not laid out again
const PIECE = 16384; // characters of a line that is even longer than these; its pieces are laid out one by one
const MAX_COLOURED_OPEN = 8192; // characters; more is coloured only when the block is complete
const COLOUR_EVERY = 800; // milliseconds, while the block grows
const CONFIRMED = 2000; // milliseconds that "Copied" is shown

const graphemes = new Intl.Segmenter(undefined, { granularity: "grapheme" });

/** Code is coloured when it is about to be seen. @type {WeakMap<Element, CodeView>} */
const waiting = new WeakMap();
/** @type {IntersectionObserver | null} */
let observer = null;

/** @param {CodeView} view */
function colourWhenSeen(view) {
  observer ??= new IntersectionObserver(
    (entries) => {
      for (const { target, isIntersecting } of entries) {
        if (!isIntersecting) continue;
        observer?.unobserve(target);
        waiting.get(target)?.colour();
      }
    },
    { rootMargin: "600px" },
  );
  waiting.set(view.element, view);
  observer.observe(view.element);
}

export class CodeView {
  #code = el("code", { translate: "no" });
  #language;
  #text = "";
  #lines = el("span");
  #part = document.createTextNode(""); // the end of the lines
  #partLength = 0;
  #coloured = performance.now(); // when it was last, while it grows
  #cost = 0;
  #complete = false;
  /** @type {number | undefined} until the copy button has its own name again */
  #confirmed;
  element;

  /** @param {string} name what stands behind the fence */
  constructor(name) {
    this.#language = languageOf(name);
    const label = name === "" ? t("reading.code") : t("reading.codeIn", { language: name });
    const wrap = iconButton("wrap", t("reading.wrap"), { class: "tool wrap", "aria-pressed": "false" });
    wrap.addEventListener("click", () => this.#wrap(wrap));
    const copy = iconButton("copy", t("reading.copyCode"), { class: "tool copy-code" });
    copy.addEventListener("click", () => this.#copy(copy));
    this.element = el(
      "div",
      { class: "code" },
      el(
        "div",
        { class: "code-head" },
        el("span", { class: "code-language", text: name === "" ? t("reading.code") : name }),
        wrap,
        copy,
      ),
      el("pre", { tabindex: "0", role: "group", "aria-label": label, dir: "ltr" }, this.#code),
    );
    if (this.#language !== null) void load(this.#language).catch(() => {});
  }

  /** Adds to a block that grows. @param {string} text */
  append(text) {
    this.#text += text;
    this.#add(text);
    this.#colourSometimes();
  }

  /** @param {string} text */
  #add(text) {
    let rest = text;
    while (rest !== "") {
      if (this.#partLength > PART && this.#part.data.endsWith("\n")) this.#partLength = 0;
      if (this.#partLength === 0) this.#begin();
      const line = this.#partLength + rest.length > PART ? rest.indexOf("\n", Math.max(0, PART - this.#partLength)) + 1 : 0;
      const taken = line === 0 ? rest.length : line;
      this.#addToPart(rest.slice(0, taken));
      this.#partLength += taken;
      rest = rest.slice(taken);
    }
  }

  /** @param {string} text up to a line's end, or to the end of what there is */
  #addToPart(text) {
    let rest = text;
    for (let cut = cutOf(rest, PIECE - this.#part.length); cut < rest.length; cut = cutOf(rest, PIECE)) {
      this.#part.appendData(rest.slice(0, cut));
      rest = rest.slice(cut);
      this.#part = document.createTextNode("");
      this.#lines.append(el("span", { class: "piece" }, this.#part));
    }
    this.#part.appendData(rest);
  }

  /** The whole text of a block that is complete. @param {string} text */
  complete(text) {
    const shown = this.#text;
    this.#text = text;
    this.#complete = true;
    if (shown !== text) {
      this.#code.replaceChildren();
      this.#partLength = 0;
      this.#add(text);
    }
    // What the reader has seen grow is in view, and is laid out once this way.
    if (shown !== "" && this.#language !== null && isLoaded(this.#language)) this.#colourNow(this.#language);
    else if (this.#language !== null) colourWhenSeen(this);
  }

  /** Lines below each other in parts of their own: the browser lays out what is new and leaves the rest. */
  #begin() {
    this.#part = document.createTextNode("");
    this.#lines = el("span", { class: "lines" }, this.#part);
    this.#code.append(this.#lines);
  }

  /** Shows the colours now, or when they are loaded. */
  colour() {
    const language = this.#language;
    if (language === null) return;
    if (isLoaded(language)) this.#colourNow(language);
    else load(language).then(() => this.#colourNow(language), () => {});
  }

  /** @param {string} language */
  #colourNow(language) {
    const coloured = highlight(this.#text, language);
    if (coloured === null) return;
    this.#code.replaceChildren(coloured);
    this.#partLength = 0;
  }

  /** While it grows: now and then, the less often the longer it takes. */
  #colourSometimes() {
    const language = this.#language;
    if (this.#complete || language === null || this.#text.length > MAX_COLOURED_OPEN || !isLoaded(language)) return;
    const now = performance.now();
    if (now - this.#coloured < Math.max(COLOUR_EVERY, 100 * this.#cost)) return;
    const lines = this.#text.lastIndexOf("\n") + 1;
    const coloured = highlight(this.#text.slice(0, lines), language);
    if (lines === 0 || coloured === null) return;
    const rest = this.#text.slice(lines);
    this.#code.replaceChildren(coloured);
    this.#partLength = 0;
    if (rest !== "") this.#add(rest);
    this.#coloured = performance.now();
    this.#cost = this.#coloured - now;
  }

  /** @param {HTMLButtonElement} button */
  #wrap(button) {
    const wrapped = this.element.classList.toggle("wrapped");
    button.setAttribute("aria-pressed", String(wrapped));
  }

  /** @param {HTMLButtonElement} button */
  async #copy(button) {
    try {
      await navigator.clipboard.writeText(this.#text);
      this.#confirm(button, t("reading.copied"), true);
    } catch {
      this.#confirm(button, t("reading.copyFailed"), false);
    }
  }

  /** What came of it, as the button's name for a while. @param {HTMLButtonElement} button @param {string} text @param {boolean} done */
  #confirm(button, text, done) {
    announce(text);
    button.classList.toggle("confirmed", done);
    name(button, text);
    clearTimeout(this.#confirmed);
    this.#confirmed = setTimeout(() => {
      button.classList.remove("confirmed");
      name(button, t("reading.copyCode"));
    }, CONFIRMED);
  }
}

/** Where a text ends that is to have about so many characters: behind a whole sign. @param {string} text @param {number} room */
function cutOf(text, room) {
  if (text.length <= room) return text.length;
  const at = Math.max(0, room);
  const [sign] = graphemes.segment(text.slice(at, at + 64));
  return at + sign.segment.length;
}

/** @param {HTMLButtonElement} button @param {string} text */
function name(button, text) {
  button.title = text;
  button.setAttribute("aria-label", text);
}
