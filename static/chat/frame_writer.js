/** Gathers text and puts it on the screen once per frame. */

const MAX_WRITTEN = 16384; // characters in one frame, so that a flood of text does not freeze the page
const FRAME_PATIENCE = 100; // milliseconds; a page that has just been hidden gets no frame

/** A hidden page has no frames, so its text waits until the page is seen again or the answer ends. */
export class FrameWriter {
  #text = "";
  /** @type {number | null} */
  #frame = null;
  #write;

  /** @param {(text: string) => void} write */
  constructor(write) {
    this.#write = write;
  }

  /** @param {string} text */
  add(text) {
    this.#text += text;
    this.#frame ??= requestAnimationFrame(() => this.#writeSome());
  }

  /** Writes all that is left, in as many frames as it takes. */
  async finish() {
    while (this.#text.length > MAX_WRITTEN && !document.hidden) {
      await new Promise((done) => {
        requestAnimationFrame(done);
        setTimeout(done, FRAME_PATIENCE);
      });
      if (this.#frame === null) this.#writeSome();
    }
    if (this.#frame !== null) cancelAnimationFrame(this.#frame);
    this.#frame = null;
    this.#take(this.#text.length);
  }

  #writeSome() {
    this.#frame = null;
    this.#take(MAX_WRITTEN);
    if (this.#text !== "") this.#frame = requestAnimationFrame(() => this.#writeSome());
  }

  /** @param {number} length */
  #take(length) {
    const text = this.#text.slice(0, length);
    this.#text = this.#text.slice(length);
    if (text !== "") this.#write(text);
  }
}
