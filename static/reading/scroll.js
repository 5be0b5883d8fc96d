/** Keeps the newest text in view, unless the reader is reading something else. */

const NEAR = 80; // pixels from the bottom within which the reader counts as following

export class Follower {
  #scroller;
  #jump;
  #following = true;
  #top = 0;

  /**
   * @param {HTMLElement} scroller the element that scrolls
   * @param {HTMLElement} jump the button that leads back to the newest text
   */
  constructor(scroller, jump) {
    this.#scroller = scroller;
    this.#jump = jump;
    scroller.addEventListener("scroll", () => this.#moved(), { passive: true });
    jump.addEventListener("click", () => this.toEnd());
    new ResizeObserver(() => this.follow()).observe(scroller);
  }

  /** Call after text was added. */
  follow() {
    if (this.#following && !this.#selecting()) this.#goToEnd();
    this.#show();
  }

  /** Goes to the end and follows again, whatever the reader was doing. */
  toEnd() {
    this.#following = true;
    this.#goToEnd();
    this.#show();
  }

  /** After sending: the new message is in view. @param {HTMLElement} _message */
  toMessage(_message) {
    this.toEnd();
  }

  /**
   * Remembers where it went, since the scroll event comes only with the next frame: a reader who moves up
   * before that would seem to have come down from the old place.
   */
  #goToEnd() {
    this.#scroller.scrollTop = this.#scroller.scrollHeight;
    this.#top = this.#scroller.scrollTop;
  }

  /**
   * The reader scrolled (or we did). Upwards lets go at once, even within the near zone: following on would
   * pull the text out of the reader's hands. Downwards into the near zone takes hold again.
   */
  #moved() {
    const top = this.#scroller.scrollTop;
    const left = this.#distance();
    if (left <= 1) this.#following = true;
    else if (top < this.#top) this.#following = false;
    else if (top > this.#top && left <= NEAR) this.#following = true;
    this.#top = top;
    this.#show();
  }

  #distance() {
    return this.#scroller.scrollHeight - this.#scroller.clientHeight - this.#scroller.scrollTop;
  }

  /** Marking text with the mouse must not be disturbed. */
  #selecting() {
    const selection = document.getSelection();
    return selection !== null && !selection.isCollapsed && this.#scroller.contains(selection.anchorNode);
  }

  #show() {
    this.#jump.hidden = this.#distance() <= NEAR;
  }
}
