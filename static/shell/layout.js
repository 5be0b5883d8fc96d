/**
 * The two panels beside the conversation. Where there is room they stand in the page and are remembered;
 * where there is not they lie over it, and until they are closed nothing else can be reached.
 */

import { byId } from "./dom.js";
import { remember, remembered } from "./memory.js";

/** @typedef {"sidebar" | "engine"} Name */

/** Everything that an open overlay makes unreachable. */
const BEHIND = ".skips, .side, .top, main, .bottom, .engine";

class Panel {
  name;
  #element;
  #toggle;
  #room;
  #tell;
  #open = false;
  /** @type {Element | null} */
  #before = null;

  /**
   * @param {Name} name @param {string} id the panel's @param {string} room where it stands beside
   * @param {(panel: Panel) => void} tell
   */
  constructor(name, id, room, tell) {
    this.name = name;
    this.#element = /** @type {HTMLElement} */ (byId(id));
    this.#toggle = /** @type {HTMLElement} */ (byId(`toggle-${name}`));
    this.#room = matchMedia(room);
    this.#tell = tell;
    this.#toggle.addEventListener("click", () => this.set(!this.#open));
    byId(`close-${name}`).addEventListener("click", () => this.set(false));
    this.#room.addEventListener("change", () => this.settle());
  }

  /** As it was left, where it has room; else closed. */
  settle() {
    this.#before = null;
    this.#show(this.#room.matches && this.#remembered());
  }

  get open() {
    return this.#open;
  }

  /** True while it lies over the page. */
  get over() {
    return this.#open && !this.#room.matches;
  }

  get element() {
    return this.#element;
  }

  /** @param {boolean} open */
  set(open) {
    if (open === this.#open) return;
    const over = !this.#room.matches;
    if (open) this.#before = document.activeElement;
    const inside = this.#element.contains(document.activeElement);
    if (!over) remember(this.name, open ? "open" : "closed");
    this.#show(open);
    if (open && over) this.#element.querySelector("button")?.focus();
    else if (!open && (over || inside)) this.#giveBack();
  }

  #giveBack() {
    const before = this.#before;
    const back = before instanceof HTMLElement && before !== document.body && before.isConnected ? before : this.#toggle;
    back.focus();
  }

  #remembered() {
    const kept = remembered(this.name);
    return this.name === "sidebar" ? kept !== "closed" : kept === "open";
  }

  /** @param {boolean} open */
  #show(open) {
    this.#open = open;
    const data = document.documentElement.dataset;
    if (open) data[this.name] = "open";
    else delete data[this.name];
    this.#toggle.setAttribute("aria-expanded", String(open));
    this.#tell(this);
  }
}

/** Tells by the events `sidebar` and `engine` that a panel was opened or closed. */
export class Layout extends EventTarget {
  #panels;

  constructor() {
    super();
    /** @param {Panel} panel */
    const tell = (panel) => this.#changed(panel);
    this.#panels = {
      sidebar: new Panel("sidebar", "side", "(min-width: 60rem)", tell),
      engine: new Panel("engine", "engine-panel", "(min-width: 75rem)", tell),
    };
    for (const panel of Object.values(this.#panels)) panel.settle();
    byId("scrim").addEventListener("click", () => this.closeOverlays());
  }

  /** @param {Name} name */
  isOpen(name) {
    return this.#panels[name].open;
  }

  /** @param {Name} name @param {boolean} [open] without it: the other way round */
  toggle(name, open = !this.isOpen(name)) {
    if (open) this.closeOverlays();
    this.#panels[name].set(open);
  }

  /** True while a panel lies over the page. */
  get covered() {
    return Object.values(this.#panels ?? {}).some((panel) => panel.over);
  }

  closeOverlays() {
    for (const panel of Object.values(this.#panels)) if (panel.over) panel.set(false);
  }

  /** @param {Panel} panel */
  #changed(panel) {
    const over = Object.values(this.#panels ?? {}).find((each) => each.over);
    for (const part of document.querySelectorAll(BEHIND)) {
      /** @type {HTMLElement} */ (part).inert = over !== undefined && part !== over.element;
    }
    byId("scrim").hidden = over === undefined;
    this.dispatchEvent(new Event(panel.name));
  }
}
