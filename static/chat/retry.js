/** Counts down to the next try, as long as the server asked for. */

const MOST_RETRIES = 3; // without the reader's hand, one after another

export class Retry {
  /** @type {number | undefined} */
  #timer;
  #made = 0;

  /**
   * @param {number} seconds
   * @param {(left: number) => void} tell called now and each second; 0 at the end
   * @param {() => void} again
   */
  after(seconds, tell, again) {
    this.cancel();
    if (this.#made >= MOST_RETRIES) return;
    let left = Math.max(1, Math.ceil(seconds));
    tell(left);
    this.#timer = setInterval(() => {
      left -= 1;
      tell(left);
      if (left > 0) return;
      this.cancel();
      this.#made += 1;
      again();
    }, 1000);
  }

  cancel() {
    clearInterval(this.#timer);
  }

  /** An answer came, or the reader asked: the count begins anew. */
  forget() {
    this.cancel();
    this.#made = 0;
  }
}
