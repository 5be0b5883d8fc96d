/** The next try without the reader's hand: after as long as the server asked for, or when the network is back. */

const MOST_RETRIES = 3; // without the reader's hand, one after another

export class Retry {
  /** @type {number | undefined} */
  #timer;
  #made = 0;
  /** @type {((left: number) => void) | null} */
  #tell = null;
  #listening = new AbortController();

  /** How often it was tried without the reader's hand since an answer came. */
  get made() {
    return this.#made;
  }

  /**
   * @param {number} seconds
   * @param {(left: number) => void} tell called now and each second; 0 at the end
   * @param {() => void} again
   */
  after(seconds, tell, again) {
    this.cancel();
    if (this.#made >= MOST_RETRIES) return;
    let left = Math.max(1, Math.ceil(seconds));
    this.#tell = tell;
    tell(left);
    this.#timer = setInterval(() => {
      left -= 1;
      if (left > 0) return tell(left);
      this.cancel();
      this.#made += 1;
      again();
    }, 1000);
  }

  /** @param {() => void} again @returns {boolean} whether that will be tried */
  whenOnline(again) {
    this.cancel();
    if (this.#made >= MOST_RETRIES) return false;
    this.#listening = new AbortController();
    const back = () => {
      this.cancel();
      this.#made += 1;
      again();
    };
    addEventListener("online", back, { signal: this.#listening.signal });
    return true;
  }

  cancel() {
    clearInterval(this.#timer);
    this.#listening.abort();
    this.#tell?.(0);
    this.#tell = null;
  }

  /** An answer came, or the reader asked: the count begins anew. */
  forget() {
    this.cancel();
    this.#made = 0;
  }
}
