/** The live engine: who is in the batch now, how full the cache is, how fast all of it goes. */

import { el } from "../shell/dom.js";
import { loadStyle } from "../shell/style.js";
import { t } from "../words/words.js";
import { duration, percent, perSecond, whole } from "./figures.js";
import { History } from "./history.js";
import { Plot, roundUp } from "./plot.js";

await loadStyle(new URL("../styles/engine.css", import.meta.url));

/**
 * @typedef {Record<string, any>} Snapshot what `/stats` answers
 * @typedef {(tell: (snapshot: Snapshot | null) => void, signal: AbortSignal) => unknown} Watch null: nothing is
 *   known now, as the connection is lost
 */

const SILENCE = 4000; // milliseconds without a snapshot: the connection counts as lost
const AGAIN = 2000; // milliseconds until a stream that ended is opened again
const FIGURES = ["rows", "waiting", "kv", "speed", "ttft", "ttft95", "restarts", "model"];
const BARS = new Set(["rows", "kv"]);
const STATES = new Set(["ready", "loading", "dead", "draining", "lost"]);

export class LivePanel {
  #element;
  #watch;
  #mine;
  #told;
  #history = new History();
  #title = el("p", { class: "engine-batch" });
  #state = el("p", { class: "engine-state", role: "status" });
  /** @type {Map<string, HTMLElement>} */
  #values = new Map();
  /** @type {Map<string, HTMLMeterElement>} */
  #bars = new Map();
  /** @type {Plot | null} */
  #plot = null;
  /** @type {AbortController | null} */
  #stream = null;
  /** @type {number | undefined} */
  #silence;
  #open = false;
  #lost = false;

  /**
   * @param {HTMLElement} element where the figures go
   * @param {{watch: Watch, mine?: () => number, told?: (snapshot: Snapshot | null) => void}} parts
   *   watch is `watchStats` of server/watch.js; mine says how many rows are this page's own; told passes every
   *   snapshot on, and null when no more will come
   */
  constructor(element, { watch, mine = () => 0, told = () => {} }) {
    this.#element = element;
    this.#watch = watch;
    this.#mine = mine;
    this.#told = told;
    document.addEventListener("visibilitychange", () => this.#follow());
  }

  get opened() {
    return this.#open;
  }

  open() {
    if (this.#open) return;
    this.#open = true;
    if (this.#plot === null) this.#build();
    this.#element.hidden = false;
    this.#follow();
  }

  close() {
    if (!this.#open) return;
    this.#open = false;
    this.#element.hidden = true;
    this.#follow();
  }

  #build() {
    const list = el("dl", { class: "engine-figures" });
    for (const name of FIGURES) {
      const label = t(`seeing.engine.${name}`);
      const value = el("dd", { text: t("seeing.unknown"), translate: name === "model" && "no" });
      this.#values.set(name, value);
      const row = el("div", { class: `engine-${name}` }, el("dt", { text: label }), value);
      if (BARS.has(name)) {
        const bar = el("meter", { min: 0, max: 1, value: 0, "aria-label": label });
        this.#bars.set(name, bar);
        row.append(el("dd", { class: "engine-bar" }, bar));
      }
      list.append(row);
    }
    const plot = el("section", { "aria-label": t("seeing.plot.title") });
    this.#element.classList.add("engine-content");
    this.#element.replaceChildren(this.#title, this.#state, list, plot);
    this.#plot = new Plot(plot, this.#history, [
      { label: t("seeing.plot.speed"), shown: (value) => perSecond(value), top: (most) => roundUp(most, 10) },
      { label: t("seeing.plot.rows"), shown: whole, top: (most) => roundUp(most, 2) },
      { label: t("seeing.plot.kv"), shown: percent, top: () => 1 },
    ]);
    this.#plot.draw(Date.now());
  }

  /** The stream runs while the panel is open and the page is seen. */
  #follow() {
    const wanted = this.#open && !document.hidden;
    if (wanted === (this.#stream !== null)) return;
    clearTimeout(this.#silence);
    if (wanted) {
      this.#stream = new AbortController();
      this.#run(this.#stream.signal);
    } else {
      this.#stream?.abort();
      this.#stream = null;
      this.#told(null);
    }
  }

  /** @param {AbortSignal} signal */
  async #run(signal) {
    this.#listen(signal);
    while (!signal.aborted) {
      try {
        await this.#watch((snapshot) => {
          if (signal.aborted) return;
          if (snapshot === null) this.#lose();
          else this.#tell(snapshot, signal);
        }, signal);
      } catch {
        // The silence shows it: the plot has a gap, and the panel says that it has lost the server.
      }
      await new Promise((done) => setTimeout(done, AGAIN));
    }
  }

  /** Says so when nothing comes for a while. @param {AbortSignal} signal */
  #listen(signal) {
    clearTimeout(this.#silence);
    this.#silence = setTimeout(() => {
      if (signal.aborted) return;
      this.#lose();
      this.#listen(signal);
    }, SILENCE);
  }

  #lose() {
    this.#say("lost");
    this.#plot?.draw(Date.now());
    if (!this.#lost) this.#told(null);
    this.#lost = true;
  }

  /** @param {Snapshot} snapshot @param {AbortSignal} signal */
  #tell(snapshot, signal) {
    this.#listen(signal);
    this.#lost = false;
    const now = Date.now();
    const running = known(snapshot.running);
    const kv = share(snapshot.blocks_used, snapshot.blocks_total);
    this.#history.add(now, [known(snapshot.tokens_per_second), running, kv]);
    this.#plot?.draw(now);
    this.#say(String(snapshot.state ?? "ready"));
    write(this.#title, running === null ? "" : batchWords(running, this.#mine()));
    this.#show(snapshot, running);
    this.#told(snapshot);
  }

  /** @param {Snapshot} snapshot @param {number | null} running */
  #show(snapshot, running) {
    const rows = known(snapshot.max_rows);
    const used = known(snapshot.blocks_used);
    const blocks = known(snapshot.blocks_total);
    const kv = share(used, blocks);
    const speed = known(snapshot.tokens_per_second);
    /** @type {Record<string, string | null>} */
    const words = {
      rows: running === null ? null : rows ? t("seeing.engine.of", { used: running, total: rows }) : whole(running),
      waiting: count(snapshot.waiting),
      kv: kv === null ? null : t("seeing.engine.blocks", { used: used ?? 0, total: blocks ?? 0 }),
      speed: speed === null ? null : perSecond(speed),
      ttft: wait(snapshot.ttft_p50_seconds),
      ttft95: wait(snapshot.ttft_p95_seconds),
      restarts: count(snapshot.engine_restarts),
      model: snapshot.model ?? null,
    };
    for (const [name, element] of this.#values) write(element, words[name] ?? t("seeing.unknown"));
    const restarts = this.#values.get("restarts")?.parentElement;
    if (restarts) restarts.hidden = words.restarts === null; // an engine in the server's own process has none
    for (const [name, value] of /** @type {const} */ ([["rows", share(running, rows)], ["kv", kv]])) {
      const bar = this.#bars.get(name);
      if (!bar) continue;
      bar.value = value ?? 0;
      bar.title = value === null ? "" : percent(value);
    }
  }

  /** @param {string} state */
  #say(state) {
    write(this.#state, STATES.has(state) ? t(`seeing.state.${state}`) : state);
    this.#state.dataset.state = state;
  }
}

/** @param {number} running @param {number} mine rows of this page, which may not be in the batch yet */
function batchWords(running, mine) {
  const own = Math.min(running, mine);
  if (own === 0) return running === 0 ? t("seeing.batch.empty") : t("seeing.batch.others", { n: running });
  const others = running - own;
  return others === 0 ? t("seeing.batch.alone") : t("seeing.batch.with", { n: others });
}

/** @param {unknown} seconds */
function wait(seconds) {
  const value = known(seconds);
  return value === null ? null : duration(value * 1000);
}

/** @param {unknown} value @returns {number | null} */
function known(value) {
  return typeof value === "number" && Number.isFinite(value) ? value : null;
}

/** @param {unknown} value */
function count(value) {
  const number = known(value);
  return number === null ? null : whole(number);
}

/** @param {unknown} used @param {unknown} total */
function share(used, total) {
  const [part, whole] = [known(used), known(total)];
  return part === null || whole === null || whole === 0 ? null : part / whole;
}

/** Touches the page only where something changed. @param {HTMLElement} element @param {string} text */
function write(element, text) {
  if (element.textContent !== text) element.textContent = text;
}
