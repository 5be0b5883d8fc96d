/** How fast one answer comes: time to first token, tokens per second. Times are in milliseconds. */

/** @typedef {import("../server/api.js").Usage} Usage */

// Over a shorter time than these (milliseconds), a rate says more about the network than about the server.
const LIVE_SPAN = 250;
const FINAL_SPAN = 20;

const REASONS = new Map([["length", "length limit"], ["abort", "stopped by the server"]]);

export class SpeedMeter {
  #sent;
  #first = 0;
  #last = 0;
  #pieces = 0;
  /** @type {Usage | null} */
  #usage = null;

  /** @param {number} now when the request was sent */
  constructor(now) {
    this.#sent = now;
  }

  /** A piece of text came. @param {number} now */
  piece(now) {
    if (this.#pieces === 0) this.#first = now;
    this.#last = now;
    this.#pieces += 1;
  }

  /** The server's own count, at the end. @param {Usage} usage */
  count(usage) {
    this.#usage = usage;
  }

  /** Tokens so far. Until the server has counted them, one piece stands for one token. */
  get tokens() {
    return this.#usage?.completion_tokens ?? this.#pieces;
  }

  /** Seconds from request to first text, or null. */
  get firstToken() {
    return this.#pieces === 0 ? null : (this.#first - this.#sent) / 1000;
  }

  /** Tokens per second after the first token, or null while there is too little to measure. */
  get rate() {
    const span = this.#last - this.#first;
    const enough = span >= (this.#usage === null ? LIVE_SPAN : FINAL_SPAN) && this.tokens > 1;
    return enough ? ((this.tokens - 1) * 1000) / span : null;
  }

  /**
   * The line below an answer.
   * @param {string} ending finish reason; empty while the answer grows
   */
  line(ending) {
    const parts = [];
    if (this.firstToken !== null) parts.push(`${seconds(this.firstToken)} to first token`);
    const rate = this.rate;
    if (rate !== null) parts.push(`${rate.toFixed(rate < 100 ? 1 : 0)} tok/s`);
    if (this.tokens > 0) parts.push(this.tokens === 1 ? "1 token" : `${this.tokens} tokens`);
    if (ending !== "") parts.push(REASONS.get(ending) ?? ending);
    return parts.join(" · ");
  }

  /** What the prompt cost, for the tooltip; empty when the server did not say. */
  promptLine() {
    if (this.#usage === null) return "";
    const cached = this.#usage.prompt_tokens_details?.cached_tokens ?? 0;
    return `Prompt: ${this.#usage.prompt_tokens} tokens` + (cached > 0 ? `, ${cached} of them cached` : "");
  }
}

/** @param {number} value */
function seconds(value) {
  return value < 1 ? `${Math.round(value * 1000)} ms` : `${value.toFixed(2)} s`;
}
