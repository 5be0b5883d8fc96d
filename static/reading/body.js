/**
 * The text of an answer on the screen: markdown that is rendered while it grows. What is complete becomes
 * elements once and is left alone from then on (see blocks.js); only the rest is made anew as it grows.
 */

import { Splitter } from "./blocks.js";
import { dress, dressTable, growingCode, newPart } from "./dress.js";
import { Elements } from "./elements.js";
import { newLinks, tokens } from "./markdown.js";
import { el } from "../shell/dom.js";
import { addWords } from "./more_words.js";
import { Pace } from "./pace.js";
import { repair } from "./repair.js";
import { check, clean, learnEntities } from "./safety.js";
import { Source } from "./source.js";

/**
 * @typedef {import("./markdown.js").Token} Token
 * @typedef {{raw: string, element: HTMLElement, exact: boolean}} Shown exact: made from just this text
 */

const PART = 8; // blocks that are laid out together; a part that is out of sight costs nothing
const STEP = 16384; // characters that are shown in one task of the page, so that a flood of text does not freeze it
const LABEL = /\[((?:\\[^]|[^[\]\\])+)\]/g; // what may be a link by a definition

/** The body that last began in an element; one before may still be at work. @type {WeakMap<HTMLElement, AnswerBody>} */
const owners = new WeakMap();

export class AnswerBody {
  #element;
  /** What the parts are in: the element itself, or what takes its place when a text that has ended is whole. */
  #root;
  #growing;
  #part = newPart();
  #source = new Source();
  #elements = new Elements(this.#source.calculations);
  #links = newLinks();
  #splitter = new Splitter(this);
  /** @type {Shown[]} what is made of the splitter's rest */
  #tail = [];
  /** Blocks with brackets that may be links by definitions to come. @type {Map<string, Set<Shown>>} by the label */
  #unlinked = new Map();
  /** @type {import("./code.js").CodeView | null} */
  #code = null;
  #codeText = "";
  /** @type {{element: HTMLElement, raws: string[], loose: boolean} | null} */
  #list = null;
  /** @type {{element: HTMLElement, raw: string} | null} the open table's frame */
  #table = null;
  #waiting = ""; // what came since the page was changed
  #pace = new Pace();
  /** @type {number | null} */
  #due = null;
  #ended = false; // nothing more comes
  #held = false; // the splitter's rest is not shown as it is now

  /**
   * @param {HTMLElement} element holds the answer and nothing else
   * @param {{growing?: boolean}} [options] growing: false for a text that is only shown when it has ended
   */
  constructor(element, { growing = true } = {}) {
    this.#element = element;
    this.#growing = growing;
    this.#root = growing ? element : el("div");
    this.#root.classList.add("markdown");
    this.#root.classList.toggle("growing", growing);
    this.#root.replaceChildren(this.#part);
    owners.set(element, this);
  }

  /** Adds to the end. @param {string} text */
  append(text) {
    this.#waiting += text;
    const flood = this.#waiting.length >= STEP;
    if (this.#waiting === "" || (this.#due !== null && !flood)) return;
    const wait = this.#growing && !flood ? this.#pace.wait(this.#splitter.rest.length) : 0;
    if (wait <= 0) this.#change();
    else this.#due = setTimeout(() => this.#change(), wait);
  }

  /**
   * The answer has ended: whatever was held back is shown, what is open stays as it was written. What is left of a
   * long text comes with the page's next tasks.
   */
  finish() {
    this.#ended = true;
    this.#change();
  }

  /** Shows what has come. */
  #change() {
    if (this.#due !== null) clearTimeout(this.#due);
    this.#due = null;
    if (owners.get(this.#element) !== this) return;
    const length = document.hidden ? this.#waiting.length : STEP;
    const source = this.#source.push(this.#waiting.slice(0, length));
    this.#waiting = this.#waiting.slice(length);
    const more = this.#waiting !== "";
    if (source !== "") this.#take(source, this.#growing && !more && !this.#ended);
    else if (this.#held) this.#paint();
    if (more) this.#due = setTimeout(() => this.#change());
    else if (this.#ended) this.#end();
    else if (this.#held) this.#due = setTimeout(() => this.#change(), this.#pace.wait(this.#splitter.rest.length));
  }

  /** @param {string} source @param {boolean} painted whether what is not complete is shown too */
  #take(source, painted) {
    learnEntities(source);
    const last = this.#held ? undefined : this.#tail.at(-1);
    const before = this.#splitter.rest;
    const added = painted && last !== undefined && addWords(last.element, before, source);
    if (added) last.exact = false;
    this.#splitter.push(source);
    this.#resolve();
    // Where text flows by and whole blocks were shown, what is not whole can wait for the next change.
    const waits = this.#pace.flowing && this.#splitter.rest.length < before.length + source.length;
    this.#held = this.#growing && !added && (!painted || waits);
    if (painted && !added && !this.#held) this.#paint();
    this.#pace.note(source.length);
  }

  #end() {
    this.#splitter.push(this.#source.flush());
    this.#splitter.end();
    this.#resolve();
    this.#dropTail();
    if (this.#root !== this.#element) this.#element.replaceChildren(...this.#root.childNodes);
    this.#element.classList.add("markdown");
    this.#element.classList.remove("growing");
  }

  // What the splitter hands over

  /** @param {string} raw */
  block(raw) {
    const before = this.#tail.shift();
    const made = this.#make(tokens(raw, this.#links));
    for (const element of made) this.#place(element, made.length === 1 ? before?.element : undefined, this.#part);
    if (made.length !== 1 || before?.element.parentNode !== this.#part) before?.element.remove();
    if (made.length === 1) this.#keep(raw, /** @type {HTMLElement} */ (this.#placed));
    if (this.#part.childElementCount >= PART) this.#nextPart();
  }

  /** @param {string} name */
  openCode(name) {
    this.#dropTail();
    this.#code = growingCode(this.#elements.plain(name.split(/\s/, 1)[0]));
    this.#codeText = "";
    this.#part.append(this.#code.element);
  }

  /** @param {string} text */
  code(text) {
    const plain = this.#elements.plain(text);
    this.#codeText += plain;
    if (this.#growing) this.#code?.append(plain);
  }

  closeCode() {
    this.#code?.complete(this.#codeText);
    this.#code = null;
    if (this.#part.childElementCount >= PART) this.#nextPart();
  }

  /** @param {Token} list */
  openList(list) {
    this.#dropTail();
    const element = this.#elements.emptyList(list);
    this.#list = { element, raws: [], loose: false };
    this.#part.append(element);
  }

  /** @param {string[]} raws @param {boolean} loose */
  items(raws, loose) {
    const list = this.#list;
    if (list === null) return;
    if (loose && !list.loose) {
      list.loose = true;
      list.raws.forEach((raw, place) => list.element.children[place].replaceWith(this.#item(raw)));
    }
    const made = raws.length > 1 ? this.#items(raws) : [];
    for (const [at, raw] of raws.entries()) {
      const before = this.#tail.shift();
      const element = made[at] ?? this.#item(raw);
      this.#place(element, before?.element, list.element);
      list.raws.push(raw);
    }
  }

  closeList() {
    const list = this.#list;
    this.#list = null;
    this.#dropTail();
    if (list !== null) this.#keep(list.raws.join(""), list.element);
  }

  /** @param {string} head */
  openTable(head) {
    this.#dropTail();
    const [token] = tokens(head, this.#links);
    const element = this.#elements.emptyTable(token);
    clean(element);
    dressTable(element);
    this.#table = { element, raw: head };
    this.#part.append(element);
  }

  /** @param {string} head @param {string[]} rows */
  rows(head, rows) {
    if (this.#table === null) return;
    this.#table.raw += rows.map((row) => `${row}\n`).join("");
    const parent = /** @type {HTMLElement} */ (this.#table.element.querySelector("tbody"));
    const [table] = tokens(head + rows.join("\n"), this.#links);
    for (const row of this.#rowsOf(table?.rows ?? [], clean)) {
      this.#place(row, this.#tail.shift()?.element, parent);
    }
  }

  closeTable() {
    if (this.#table !== null) this.#keep(this.#table.raw, this.#table.element);
    this.#table = null;
    this.#dropTail();
  }

  // Elements

  /** @param {Token[]} found @param {(element: HTMLElement) => void} [tidy] @returns {HTMLElement[]} */
  #make(found, tidy = clean) {
    /** @type {HTMLElement[]} */
    const made = [];
    for (const token of found) {
      const element = this.#elements.block(token);
      if (!(element instanceof HTMLElement)) continue;
      tidy(element);
      made.push(dress(element));
    }
    return made;
  }

  /** @param {string} raw @returns {HTMLElement} */
  #item(raw) {
    const [list] = tokens(raw, this.#links);
    return this.#itemOf(list.items[0], clean);
  }

  /**
   * Made together, which is cheaper.
   * @param {string[]} raws of items @returns {HTMLElement[]} none if they are not each one item together
   */
  #items(raws) {
    const [list, ...others] = tokens(raws.join(""), this.#links);
    if (list?.type !== "list" || others.length > 0 || list.items.length !== raws.length) return [];
    const frame = this.#elements.emptyList(list);
    for (const item of list.items) frame.append(this.#elements.item({ ...item, loose: this.#list?.loose ?? false }));
    clean(frame);
    return [...frame.children].map((item) => dress(/** @type {HTMLElement} */ (item)));
  }

  /** @param {Token} item @param {(element: HTMLElement) => void} tidy */
  #itemOf(item, tidy) {
    const element = this.#elements.item({ ...item, loose: this.#list?.loose ?? false });
    tidy(element);
    return dress(element);
  }

  /** @param {Token[][]} rows @param {(element: HTMLElement) => void} tidy @returns {HTMLElement[]} */
  #rowsOf(rows, tidy) {
    const frame = document.createElement("tbody");
    for (const cells of rows) frame.append(this.#elements.row(cells));
    tidy(frame);
    return [...frame.children].map((row) => dress(/** @type {HTMLElement} */ (row)));
  }

  /** @type {HTMLElement | null} the element that the last #place left in the page */
  #placed = null;

  /**
   * Puts an element in front of the tail, in the place of what was shown so far; that stays if it is the same.
   * @param {HTMLElement} element @param {HTMLElement | undefined} before @param {HTMLElement} parent
   */
  #place(element, before, parent) {
    this.#placed = element;
    if (before?.parentNode === parent) {
      if (before === element || before.isEqualNode(element)) this.#placed = before;
      else before.replaceWith(element);
      return;
    }
    before?.remove();
    const next = this.#tail[0]?.element;
    parent.insertBefore(element, next?.parentNode === parent ? next : null);
  }

  #dropTail() {
    for (const { element } of this.#tail) element.remove();
    this.#tail = [];
  }

  #nextPart() {
    this.#part = newPart();
    this.#root.append(this.#part);
    for (const { element } of this.#tail) this.#part.append(element);
  }

  // Links that are defined further down

  /** @param {string} raw @param {HTMLElement} element */
  #keep(raw, element) {
    const shown = { raw, element, exact: true };
    for (const [, words] of raw.matchAll(LABEL)) {
      const label = words.trim().replace(/\s+/g, " ").toLowerCase().toUpperCase().toLowerCase(); // as marked does
      if (label in this.#links) continue;
      const others = this.#unlinked.get(label);
      if (others === undefined) this.#unlinked.set(label, new Set([shown]));
      else others.add(shown);
    }
  }

  /** Makes blocks anew that mention what has just been defined. */
  #resolve() {
    const labels = Object.keys(this.#links).filter((label) => this.#unlinked.has(label));
    const mentioned = new Set(labels.flatMap((label) => [...(this.#unlinked.get(label) ?? [])]));
    for (const label of labels) this.#unlinked.delete(label);
    for (const shown of mentioned) {
      if (shown.element.parentNode === null) continue;
      const made = this.#make(tokens(shown.raw, this.#links));
      if (made.length !== 1) continue;
      shown.element.replaceWith(made[0]);
      shown.element = made[0];
    }
  }

  // The rest, while it grows

  #paint() {
    this.#held = false;
    const rest = this.#splitter.rest;
    const inside = this.#splitter.inside;
    if (inside === "code") return;
    const links = newLinks(this.#links);
    const head = inside === null || inside === "list" ? "" : inside.head;
    const whole = repair(head + rest);
    const found = whole === "" ? [] : tokens(whole, links);
    const before = this.#tail;
    this.#tail = [];
    const exact = whole === head + rest;
    this.#paintInside(found, inside, before, exact);
    for (const token of found) {
      if (token.type === "space") continue;
      this.#show(token.raw, this.#part, before, exact || token !== found.at(-1), () => this.#make([token], check)[0]);
    }
    for (const { element } of before) element.remove();
  }

  /**
   * The beginning of the rest where that belongs into a list or table that is open. Takes it out of the tokens.
   * @param {Token[]} found @param {Splitter["inside"]} inside @param {Shown[]} before @param {boolean} exact
   */
  #paintInside(found, inside, before, exact) {
    if (inside === "list" && found[0]?.type === "list" && this.#list !== null) {
      const list = this.#list;
      const { items } = /** @type {Token} */ (found.shift());
      for (const item of items) {
        const sure = exact || item !== items.at(-1);
        this.#show(item.raw + list.loose, list.element, before, sure, () => this.#itemOf(item, check));
      }
    } else if (inside !== null && typeof inside === "object" && found[0]?.type === "table") {
      const parent = /** @type {HTMLElement} */ (this.#table?.element.querySelector("tbody"));
      const { rows } = /** @type {Token} */ (found.shift());
      for (const row of this.#rowsOf(rows, check)) this.#show("", parent, before, false, () => row);
    }
  }

  /**
   * Shows a block of the rest: as it is shown already, or made anew.
   * @param {string} raw @param {HTMLElement} parent @param {Shown[]} before @param {boolean} exact
   * @param {() => HTMLElement | undefined} make
   */
  #show(raw, parent, before, exact, make) {
    const old = before[0];
    if (old?.exact && exact && old.raw === raw && old.element.parentNode === parent) {
      before.shift();
      this.#tail.push(old);
      return;
    }
    const element = make();
    if (element === undefined) return;
    if (old?.element.parentNode === parent) {
      old.element.replaceWith(element);
      before.shift();
    } else parent.append(element);
    this.#tail.push({ raw, element, exact });
  }
}

/**
 * Shows a text that has ended, all at once.
 * @param {HTMLElement} element @param {string} text
 */
export function showText(element, text) {
  const body = new AnswerBody(element, { growing: false });
  body.append(text);
  body.finish();
}
