/** How often an answer that grows is drawn. */

// Milliseconds between two changes of the page: few when an answer begins, more when it has become long, since
// most of what a change costs is the same for one word and for ten.
const STEP = 8;
const MAX_PACE = 120;
// Text that comes faster than anyone reads (about 250 tokens per second) is seen to flow by, not read.
const READABLE = 1; // characters per millisecond
const FLOWING_STEP = 25;
const MAX_FLOWING_PACE = 200;
const PATIENT = 4096; // characters of a rest that is made anew at that pace; a longer one is more rarely
const CHARACTERS_PER_MILLISECOND = 40;

export class Pace {
  #changes = 0;
  #changed = 0; // when it was last
  #flowing = false;

  /** Whether text comes faster than anyone reads. */
  get flowing() {
    return this.#flowing;
  }

  /** The page has been changed. @param {number} added characters */
  note(added) {
    const now = performance.now();
    this.#flowing = this.#changes > 1 && added > READABLE * (now - this.#changed);
    this.#changed = now;
    this.#changes++;
  }

  /** Milliseconds until it should be changed again. @param {number} rest characters that are made anew then */
  wait(rest) {
    const slow = rest < PATIENT ? 0 : rest / CHARACTERS_PER_MILLISECOND;
    const pace = this.#flowing
      ? Math.min(MAX_FLOWING_PACE, FLOWING_STEP * this.#changes)
      : Math.min(MAX_PACE, STEP * this.#changes);
    return this.#changed + Math.max(slow, pace) - performance.now();
  }
}
