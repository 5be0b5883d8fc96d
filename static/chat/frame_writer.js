/** Gathers text and puts it on the screen at most once per frame. */

const GATHER = 16; // milliseconds: a frame. Asking for frames themselves has the page drawn, changed or not
const MAX_WRITTEN = 16384; // characters at once, so that a flood of text does not freeze the page

/** A hidden page is drawn by nobody, so its text waits until the page is seen again or the answer ends. */
export class FrameWriter {
  #text = "";
  /** @type {number | null} */
  #due = null;
  #write;

  /** @param {(text: string) => void} write */
  constructor(write) {
    this.#write = write;
  }

  /** @param {string} text */
  add(text) {
    this.#text += text;
    this.#due ??= setTimeout(() => this.#writeSome(), GATHER);
  }

  /** Writes all that is left, in as many steps as it takes. */
  async finish() {
    if (this.#due !== null) clearTimeout(this.#due);
    while (this.#text.length > MAX_WRITTEN && !document.hidden) {
      this.#take(MAX_WRITTEN);
      await new Promise((done) => setTimeout(done, GATHER));
    }
    this.#due = null;
    this.#take(this.#text.length);
  }

  #writeSome() {
    this.#due = null;
    if (document.hidden) {
      this.#due = 0;
      return document.addEventListener("visibilitychange", () => this.#writeSome(), { once: true });
    }
    this.#take(MAX_WRITTEN);
    if (this.#text !== "") this.add("");
  }

  /** @param {number} length */
  #take(length) {
    const text = this.#text.slice(0, length);
    this.#text = this.#text.slice(length);
    if (text !== "") this.#write(text);
  }
}
