/** Keeps the newest text in view, unless the reader is reading something else. */

import { t } from "../words/words.js";

const NEAR = 80; // pixels from the bottom within which the reader counts as following
const UPWARDS = new Set(["PageUp", "ArrowUp", "Home"]);

export class Follower {
  #scroller;
  #jump;
  #following = true;
  #top = 0;
  #height = 0; // of the content, when it was last looked at
  #touched = 0; // where a finger was last
  #selecting = false; // whether text of the page is marked
  #spacer = document.createElement("div");
  /** @type {HTMLElement | null} the message that stays at the top until the answer fills the page */
  #held = null;

  /**
   * @param {HTMLElement} scroller the element that scrolls
   * @param {HTMLElement} jump the button that leads back to the newest text
   */
  constructor(scroller, jump) {
    this.#scroller = scroller;
    this.#jump = jump;
    this.#spacer.className = "scroll-end";
    this.#spacer.setAttribute("aria-hidden", "true");
    scroller.append(this.#spacer);
    this.#listen();
    const observer = new ResizeObserver(() => this.#resized());
    observer.observe(scroller);
    for (const child of scroller.children) if (child !== this.#spacer) observer.observe(child);
  }

  #listen() {
    const passive = { passive: true };
    const scroller = this.#scroller;
    scroller.addEventListener("scroll", () => this.#moved(), passive);
    // The reader's hand counts before the page has moved: text that arrives meanwhile must not pull it back.
    scroller.addEventListener("wheel", (event) => event.deltaY < 0 && this.#letGo(), passive);
    scroller.addEventListener("touchstart", (event) => (this.#touched = event.touches[0].clientY), passive);
    scroller.addEventListener("touchmove", (event) => this.#dragged(event.touches[0].clientY), passive);
    document.addEventListener("keydown", (event) => {
      const typing = event.target instanceof Element && event.target.closest("textarea, input, select, dialog");
      if (UPWARDS.has(event.key) && !typing) this.#letGo();
    });
    this.#jump.addEventListener("click", () => this.toEnd());
    // Asked for while text comes in, the selection would have the page laid out.
    document.addEventListener("selectionchange", () => (this.#selecting = this.#isSelecting()));
  }

  /** Whether new text is kept in view. */
  get following() {
    return this.#following;
  }

  /** Goes to the end and follows again, whatever the reader was doing. */
  toEnd() {
    this.#following = true;
    this.#release();
    this.#goToEnd();
    this.#show();
  }

  /**
   * Puts a message at the top of the page, with room below it for its answer, and follows from there on: the
   * page moves only when the answer has filled the room.
   * @param {HTMLElement} element
   */
  toMessage(element) {
    this.#release();
    this.#held = element;
    this.#following = true;
    this.#makeRoom();
    this.#goTo(this.#scroller.scrollHeight);
    this.#show();
  }

  #resized() {
    this.#makeRoom();
    if (this.#following && this.#selecting) this.#following = false;
    if (this.#following) this.#goToEnd();
    else if (this.#scroller.scrollHeight > this.#height + 1 && this.#distance() > NEAR) this.#markUnread();
    this.#height = this.#scroller.scrollHeight;
    this.#show();
  }

  /** As much room below the answer as brings its question to the top. */
  #makeRoom() {
    if (this.#held === null) return;
    if (!this.#held.isConnected) return this.#release();
    const below = this.#spacer.offsetTop - this.#held.offsetTop;
    const room = Math.max(0, this.#scroller.clientHeight - below - 16);
    if (room === 0) this.#release();
    else this.#spacer.style.height = `${room}px`;
  }

  #release() {
    this.#held = null;
    this.#spacer.style.height = "0";
  }

  /**
   * Remembers where it went, since the scroll event comes only with the next frame: a reader who moves up
   * before that would seem to have come down from the old place.
   */
  #goToEnd() {
    this.#goTo(this.#scroller.scrollHeight);
  }

  /** Never smoothly: the next text would come before the end is reached. @param {number} top */
  #goTo(top) {
    this.#scroller.scrollTop = top;
    this.#top = this.#scroller.scrollTop;
    this.#height = this.#scroller.scrollHeight;
  }

  #letGo() {
    if (this.#distance() <= 1 && this.#scroller.scrollTop <= 0) return; // nowhere to go
    this.#following = false;
  }

  /** @param {number} y */
  #dragged(y) {
    if (y > this.#touched + 2) this.#letGo();
    this.#touched = y;
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

  /** Who marks text is reading it: it stays where it is, then and afterwards. */
  #isSelecting() {
    const selection = document.getSelection();
    return selection !== null && !selection.isCollapsed && this.#scroller.contains(selection.anchorNode);
  }

  #markUnread() {
    if (this.#jump.classList.contains("unread")) return;
    this.#jump.classList.add("unread");
    this.#name("reading.jumpUnread");
  }

  #show() {
    const near = this.#distance() <= NEAR;
    if (this.#jump.hidden !== near) this.#jump.hidden = near;
    if (!near || !this.#jump.classList.contains("unread")) return;
    this.#jump.classList.remove("unread");
    this.#name("reading.jump");
  }

  /** @param {string} key */
  #name(key) {
    this.#jump.setAttribute("aria-label", t(key));
    this.#jump.title = t(key);
  }
}
