/**
 * A small plot of the last minutes: one strip for each figure, all above one axis of time. A cursor, moved by
 * pointer or arrow keys, reads the figures of a moment; the same is there as a table.
 */

import { el } from "../shell/dom.js";
import { spokenLanguage, t } from "../words/words.js";
import { SPAN } from "./history.js";

/**
 * @typedef {import("./history.js").History} History
 * @typedef {{label: string, shown: (value: number) => string, top: (most: number) => number}} Figure
 *   top: the upper end of the strip's axis, where the greatest value is this
 */

// In units of the drawing, which is scaled to the panel's width.
const WIDTH = 320;
const STRIP = 62;
const HEAD = 22; // for a strip's label, above it
const FOOT = 16; // for the axis of time
const JUMP = 15; // seconds that Page Up and Page Down move the cursor
const ROWS = 20; // of the table

let plots = 0;

export class Plot {
  #history;
  #figures;
  #now = 0;
  /** How many seconds ago the cursor stands; null where nobody asked. @type {number | null} */
  #ago = null;
  #lines;
  #tops;
  #summary = shape("title", { id: `plot-${(plots += 1)}` });
  #mark = shape("line", { class: "plot-mark", y1: 0, visibility: "hidden" });
  #svg;
  #cursor = el("div", {
    class: "plot-cursor", role: "slider", tabindex: 0, "aria-label": t("seeing.plot.moment"),
    "aria-valuemin": -SPAN / 1000, "aria-valuemax": 0, "aria-valuenow": 0,
  });
  #readout = el("p", { class: "plot-readout" });
  #table = el("div", {
    class: "plot-table", hidden: true, tabindex: 0, role: "region", "aria-label": t("seeing.plot.title"),
  });
  #asTable = el("button", {
    type: "button", class: "quiet plot-as-table", "aria-expanded": "false", text: t("seeing.plot.as_table"),
  });

  /** @param {HTMLElement} element @param {History} history @param {Figure[]} figures */
  constructor(element, history, figures) {
    this.#history = history;
    this.#figures = figures;
    const height = figures.length * (HEAD + STRIP) + FOOT;
    this.#svg = shape("svg", { viewBox: `0 0 ${WIDTH} ${height}`, role: "img", "aria-labelledby": this.#summary.id });
    this.#mark.setAttribute("y2", String(height - FOOT));
    this.#svg.append(this.#summary);
    this.#lines = figures.map((_, k) => shape("path", { class: `plot-line plot-line-${k + 1}` }));
    this.#tops = figures.map((_, k) =>
      shape("text", { class: "plot-text", x: WIDTH, y: base(k) - STRIP - 4, "text-anchor": "end" }),
    );
    figures.forEach(({ label }, k) => this.#drawStrip(label, k));
    this.#drawTime(height);
    this.#svg.append(this.#mark);
    const area = el("div", { class: "plot-area" });
    area.append(this.#svg, this.#cursor);
    element.classList.add("plot");
    element.replaceChildren(area, this.#readout, this.#asTable, this.#table);
    this.#listen();
  }

  /** Draws what the history holds. @param {number} now */
  draw(now) {
    this.#now = now;
    this.#figures.forEach(({ top, shown }, k) => {
      const stretches = this.#history.stretches(k);
      const most = stretches.flat().reduce((high, { value }) => Math.max(high, value), 0);
      const end = top(most);
      this.#tops[k].textContent = shown(end);
      this.#lines[k].setAttribute("d", stretches.map((points) => this.#path(points, k, end)).join(""));
    });
    const last = this.#history.samples.at(-1);
    const words = last === undefined ? t("seeing.plot.nothing") : this.#words(last.values);
    this.#summary.textContent = t("seeing.plot.summary", { now: words });
    this.#read();
  }

  /** @param {string} label @param {number} k */
  #drawStrip(label, k) {
    const name = shape("text", { class: "plot-text", x: 0, y: base(k) - STRIP - 4 });
    name.textContent = label;
    const ground = shape("line", { class: "plot-axis", x1: 0, x2: WIDTH, y1: base(k), y2: base(k) });
    const top = shape("line", { class: "plot-grid", x1: 0, x2: WIDTH, y1: base(k) - STRIP, y2: base(k) - STRIP });
    this.#svg.append(top, ground, name, this.#tops[k], this.#lines[k]);
  }

  /** @param {number} height */
  #drawTime(height) {
    for (const [minutes, anchor] of /** @type {[number, string][]} */ ([[5, "start"], [2.5, "middle"], [0, "end"]])) {
      const x = WIDTH * (1 - (minutes * 60_000) / SPAN);
      const text = shape("text", { class: "plot-text", x, y: height - 3, "text-anchor": anchor });
      text.textContent = minutes === 0 ? t("seeing.plot.now") : t("seeing.plot.minutes_ago", { n: minutes });
      this.#svg.append(text);
    }
  }

  /** @param {{at: number, value: number}[]} points @param {number} k @param {number} end */
  #path(points, k, end) {
    const steps = points.map(({ at, value }) => {
      const x = Math.max(0, WIDTH * (1 - (this.#now - at) / SPAN));
      return `${x.toFixed(1)} ${(base(k) - STRIP * Math.min(1, value / end)).toFixed(1)}`;
    });
    // A lone point is a line of no length, which round ends make visible.
    return `M${steps.join("L")}${steps.length === 1 ? "h0" : ""}`;
  }

  #listen() {
    this.#cursor.addEventListener("pointermove", (event) => {
      const { left, width } = this.#cursor.getBoundingClientRect();
      this.#point(Math.round(((1 - (event.clientX - left) / width) * SPAN) / 1000));
    });
    this.#cursor.addEventListener("pointerleave", () => this.#point(null));
    this.#cursor.addEventListener("focus", () => this.#point(this.#ago ?? 0));
    this.#cursor.addEventListener("blur", () => this.#point(null));
    this.#cursor.addEventListener("keydown", (event) => this.#key(event));
    this.#asTable.addEventListener("click", () => this.#toggleTable());
  }

  /** @param {KeyboardEvent} event */
  #key(event) {
    const ago = this.#ago ?? 0;
    /** @type {Record<string, number>} */
    const to = {
      ArrowLeft: ago + 1, ArrowDown: ago + 1, ArrowRight: ago - 1, ArrowUp: ago - 1,
      PageDown: ago + JUMP, PageUp: ago - JUMP, Home: SPAN / 1000, End: 0,
    };
    if (!(event.key in to)) return;
    event.preventDefault();
    this.#point(to[event.key]);
  }

  /** @param {number | null} ago */
  #point(ago) {
    this.#ago = ago === null ? null : Math.min(SPAN / 1000, Math.max(0, ago));
    this.#read();
  }

  /** Writes what the cursor stands on. */
  #read() {
    this.#mark.setAttribute("visibility", this.#ago === null ? "hidden" : "visible");
    const ago = this.#ago ?? 0;
    const sample = this.#history.nearest(this.#now - ago * 1000);
    const values = sample === null ? t("seeing.plot.nothing") : this.#words(sample.values);
    const words = t("seeing.plot.at", { n: ago, values });
    this.#cursor.setAttribute("aria-valuenow", String(-ago));
    this.#cursor.setAttribute("aria-valuetext", words);
    this.#readout.textContent = this.#ago === null ? t("seeing.plot.hint") : words;
    const x = String(WIDTH * (1 - (ago * 1000) / SPAN));
    this.#mark.setAttribute("x1", x);
    this.#mark.setAttribute("x2", x);
  }

  /** @param {(number | null)[]} values */
  #words(values) {
    return this.#figures
      .map(({ label, shown }, k) => `${label} ${this.#cell(values[k], shown)}`)
      .join(", ");
  }

  /** @param {number | null} value @param {(value: number) => string} shown */
  #cell(value, shown) {
    return value === null ? t("seeing.unknown") : shown(value);
  }

  #toggleTable() {
    const open = this.#table.hidden === true;
    if (open) this.#table.replaceChildren(this.#makeTable());
    this.#table.hidden = !open;
    this.#asTable.setAttribute("aria-expanded", String(open));
  }

  /** The table does not change while it is read. */
  #makeTable() {
    const heads = [t("seeing.plot.time"), ...this.#figures.map(({ label }) => label)];
    const body = el("tbody");
    for (let k = 0; k < ROWS; k++) {
      const sample = this.#history.nearest(this.#now - (k * SPAN) / ROWS);
      if (sample === null) continue;
      const time = new Date(sample.at).toLocaleTimeString(spokenLanguage());
      const cells = this.#figures.map(({ shown }, figure) => this.#cell(sample.values[figure], shown));
      const row = el("tr", {}, el("th", { scope: "row", text: time }));
      row.append(...cells.map((text) => el("td", { text })));
      body.append(row);
    }
    const head = el("tr", {}, ...heads.map((text) => el("th", { scope: "col", text })));
    return el("table", {}, el("caption", { text: t("seeing.plot.title") }), el("thead", {}, head), body);
  }
}

/** Where a strip's axis lies. @param {number} k */
function base(k) {
  return (k + 1) * (HEAD + STRIP);
}

/** The next round number, at most half above. @param {number} value @param {number} least */
export function roundUp(value, least) {
  const wanted = Math.max(value, least);
  const power = 10 ** Math.floor(Math.log10(wanted));
  return power * (/** @type {number} */ ([1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10].find((step) => step * power >= wanted)));
}

/**
 * @template {keyof SVGElementTagNameMap} T
 * @param {T} tag @param {Record<string, string | number>} attributes
 * @returns {SVGElementTagNameMap[T]}
 */
function shape(tag, attributes) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, String(value));
  return made;
}
