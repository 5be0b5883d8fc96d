/** Figures in the reader's words: durations, rates, counts, and the line that sums an answer up. */

import { spokenLanguage, t } from "../words/words.js";

/** Finish reasons that are said in other words than the server's. */
const ENDINGS = new Set(["stop", "length", "abort", "stopped", "error", "content_filter", "tool_calls"]);

/** A duration that a reader waits. @param {number} milliseconds */
export function duration(milliseconds) {
  if (milliseconds < 1000) return t("seeing.milliseconds", { value: Math.round(milliseconds) });
  return t("seeing.seconds", { value: decimals(milliseconds / 1000, milliseconds < 60_000 ? 2 : 0) });
}

/** A duration between two tokens, where tenths count. @param {number} milliseconds */
export function shortTime(milliseconds) {
  if (milliseconds >= 1000) return duration(milliseconds);
  return t("seeing.milliseconds", { value: decimals(milliseconds, milliseconds < 100 ? 1 : 0) });
}

/** @param {number} rate tokens per second */
export function perSecond(rate) {
  return t("seeing.rate", { value: decimals(rate, rate < 100 ? 1 : 0) });
}

/** @param {number} value between 0 and 1 */
export function percent(value) {
  const digits = value > 0 && value < 0.01 ? 2 : value < 0.1 ? 1 : 0;
  return value.toLocaleString(spokenLanguage(), {
    style: "percent", minimumFractionDigits: 0, maximumFractionDigits: digits,
  });
}

/** @param {number} value */
export function whole(value) {
  return Math.round(value).toLocaleString(spokenLanguage());
}

/** @param {number} value @param {number} digits after the point, always as many */
export function decimals(value, digits) {
  return value.toLocaleString(spokenLanguage(), { minimumFractionDigits: digits, maximumFractionDigits: digits });
}

/** @param {number} bytes */
export function size(bytes) {
  const units = ["byte", "kilobyte", "megabyte", "gigabyte", "terabyte"];
  const step = Math.min(units.length - 1, Math.floor(Math.log10(Math.max(1, bytes)) / 3));
  const value = bytes / 1000 ** step;
  return value.toLocaleString(spokenLanguage(), {
    style: "unit", unit: units[step], unitDisplay: "short", maximumFractionDigits: value < 10 && step > 0 ? 1 : 0,
  });
}

/** @param {number} tokens @param {number | null} cached */
export function promptWords(tokens, cached) {
  const all = t("seeing.tokens", { n: tokens });
  return cached === null || cached === 0 ? all : t("seeing.some_cached", { all, n: cached });
}

/** "1st", "2nd". @param {number} n */
export function ordinal(n) {
  const category = new Intl.PluralRules(spokenLanguage(), { type: "ordinal" }).select(n);
  return t(`seeing.ordinal.${category}`, { n });
}

/** How an answer ended, in a word or two. @param {string} reason */
export function ending(reason) {
  return ENDINGS.has(reason) ? t(`seeing.ending.${reason}`) : reason;
}

/** The same in a sentence. @param {string} reason */
export function endingExplained(reason) {
  return ENDINGS.has(reason) ? t(`seeing.explained.${reason}`) : t("seeing.explained.other", { reason });
}

/**
 * The line below an answer.
 * @param {{ttft: number | null, rate: number | null, tokens: number | null, finish: string | null}} facts
 */
export function factsLine({ ttft, rate, tokens, finish }) {
  const parts = [];
  if (ttft !== null) parts.push(t("seeing.to_first", { time: duration(ttft) }));
  if (rate !== null) parts.push(perSecond(rate));
  if (tokens !== null && tokens > 0) parts.push(t("seeing.tokens", { n: tokens }));
  if (finish !== null && finish !== "") parts.push(ending(finish));
  return parts.join(" · ");
}
