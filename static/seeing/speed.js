/**
 * How fast one answer comes: time to first token, tokens per second, time between tokens. All times are in
 * milliseconds.
 *
 * What is seen here is when text arrives, not when a token was made. Pieces that arrive together (the server
 * put several tokens in one event, the network several events in one packet, or the page was busy) are one
 * arrival, and the time since the arrival before it is shared evenly among its tokens: n tokens after a gap of
 * g count as n gaps of g/n. The tokens that come along with the very first have no gap to be counted.
 *
 * A piece costs the same however long the answer is: gaps go to a histogram with buckets 4 % wide, from
 * which the quantiles are read.
 */

import { factsLine } from "./figures.js";

/**
 * @typedef {import("../server/api.js").Usage} Usage
 * @typedef {import("../core/conversation.js").Facts} Facts
 */

// Over a shorter time than these (milliseconds), a rate says more about the network than about the server.
const LIVE_SPAN = 250;
const FINAL_SPAN = 20;

const TOGETHER = 1; // milliseconds; what comes within this time came in one read
const FEWEST_GAPS = 4; // of fewer, no quantile is told

const SHORTEST = 0.01; // milliseconds: the first bucket ends here
const WIDTH = Math.log(1.04);
const BUCKETS = 420; // the last one begins at about two minutes

/** Weighted quantiles of positive values, in constant memory. */
class Histogram {
  #counts = new Float64Array(BUCKETS);
  #least = Infinity;
  #most = 0;
  total = 0;

  /** @param {number} value @param {number} weight */
  add(value, weight) {
    const at = value <= SHORTEST ? 0 : Math.ceil(Math.log(value / SHORTEST) / WIDTH);
    this.#counts[Math.min(at, BUCKETS - 1)] += weight;
    this.#least = Math.min(this.#least, value);
    this.#most = Math.max(this.#most, value);
    this.total += weight;
  }

  /** @param {number} share between 0 and 1 @returns {number} the middle of the bucket where the value lies */
  quantile(share) {
    let left = share * this.total;
    let at = 0;
    for (; at < BUCKETS - 1; at++) {
      left -= this.#counts[at];
      if (left <= 0) break;
    }
    const middle = SHORTEST * Math.exp(WIDTH * (at - 0.5));
    return Math.min(this.#most, Math.max(this.#least, middle));
  }
}

export class SpeedMeter {
  #sent;
  #first = 0;
  #last = 0;
  #seen = 0; // tokens, by the pieces
  #gaps = new Histogram();
  /** When the arrival before this one was, and this one with its tokens. */
  #before = 0;
  #arrival = 0;
  #together = 0;
  /** @type {number | null} the server's own count of this answer's tokens */
  #counted = null;
  /** @type {Usage | null} */
  #usage = null;
  /** @type {number | null} */
  #seed = null;
  /** @type {string | null} */
  #finish = null;
  #model = "";

  /**
   * @param {number | null} sentAt when the request was sent, on the clock of `piece`; null for an answer
   *   that is resumed, whose beginning this page did not see
   */
  constructor(sentAt) {
    this.#sent = sentAt;
  }

  /** The server took the request. @param {{seed: number | null, model: string}} begin */
  begin({ seed, model }) {
    this.#seed = seed;
    this.#model = model;
  }

  /** A piece of text came. @param {number} now @param {number} [tokens] how many it stands for */
  piece(now, tokens = 1) {
    if (this.#seen === 0) this.#first = this.#before = this.#arrival = now;
    else if (now - this.#arrival >= TOGETHER) this.#nextArrival(now);
    this.#last = now;
    this.#seen += tokens;
    this.#together += tokens;
  }

  /**
   * The server's own count, at the end.
   * @param {Usage} usage @param {number} [choices] answers that the usage is the sum of: of several, only
   *   the prompt's part says something about this one
   */
  count(usage, choices = 1) {
    this.#usage = usage;
    if (choices === 1) this.#counted = usage.completion_tokens;
  }

  /** The answer ended. @param {string} reason the finish reason, or "stopped" by the reader */
  finish(reason) {
    this.#finish = reason;
  }

  /** Tokens so far. Until the server has counted them, by the pieces. */
  get tokens() {
    return this.#counted ?? this.#seen;
  }

  /** Seconds from request to first text, or null. */
  get firstToken() {
    const ttft = this.#ttft;
    return ttft === null ? null : ttft / 1000;
  }

  /** Tokens per second after the first token, or null while there is too little to measure. */
  get rate() {
    const span = this.#last - this.#first;
    const over = this.#counted !== null || this.#finish !== null;
    return span >= (over ? FINAL_SPAN : LIVE_SPAN) && this.tokens > 1 ? ((this.tokens - 1) * 1000) / span : null;
  }

  /**
   * The line below an answer.
   * @param {string} [ending] finish reason; empty while the answer grows
   */
  line(ending = this.#finish ?? "") {
    return factsLine({ ttft: this.#ttft, rate: this.rate, tokens: this.tokens, finish: ending });
  }

  /**
   * Everything, to be kept with the answer.
   * @param {Partial<Facts>} [given] what only the sender knows: `request`, `started`, the model asked for
   * @returns {Facts}
   */
  facts(given = {}) {
    if (this.#before !== this.#arrival) this.#share(); // the last arrival is complete now
    const enough = this.#gaps.total >= FEWEST_GAPS;
    return {
      request: {},
      started: Date.now(),
      ...given,
      model: this.#model || given.model || "",
      seed: this.#seed ?? given.seed ?? null,
      finish: this.#finish,
      ttft: this.#ttft,
      rate: this.rate,
      itl50: enough ? this.#gaps.quantile(0.5) : null,
      itl95: enough ? this.#gaps.quantile(0.95) : null,
      promptTokens: this.#usage?.prompt_tokens ?? null,
      cachedTokens: this.#usage?.prompt_tokens_details?.cached_tokens ?? null,
      completionTokens: this.#counted ?? (this.#seen > 0 ? this.#seen : null),
    };
  }

  get #ttft() {
    return this.#seen === 0 || this.#sent === null ? null : this.#first - this.#sent;
  }

  /** @param {number} now */
  #nextArrival(now) {
    this.#share();
    this.#arrival = now;
    this.#together = 0;
  }

  /** Shares the time before the newest arrival among its tokens; the very first has none. */
  #share() {
    const gap = this.#arrival - this.#before;
    if (gap > 0 && this.#together > 0) this.#gaps.add(gap / this.#together, this.#together);
    this.#before = this.#arrival;
  }
}
