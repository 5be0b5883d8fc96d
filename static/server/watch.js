/** The stream of statistics. */

import { keys } from "./keys.js";
import { request, unlessAborted } from "./request.js";
import { readEvents } from "./sse.js";

/** @typedef {import("./api.js").Stats} Stats */

const RECONNECT = [500, 1000, 2000, 5000, 10_000]; // milliseconds before each attempt; the last one stays

/**
 * Tells how the server is, about twice a second, until the signal is aborted. While the page is hidden nothing
 * is asked. A connection that is lost is made again.
 * @param {(stats: Stats | null) => void} tell null: nothing is known now
 * @param {AbortSignal} signal
 */
export async function watchStats(tell, signal) {
  let failed = 0;
  while (!signal.aborted) {
    try {
      await shown(signal);
      const used = keys.key;
      const told = await watchOnce(tell, signal);
      failed = told ? 0 : failed + 1;
      if (used !== keys.key) failed = 0;
      if (!document.hidden) tell(null);
      if (failed > 0 && !document.hidden) await calm(RECONNECT[Math.min(failed, RECONNECT.length) - 1], signal);
    } catch (error) {
      if (!signal.aborted) throw error;
    }
  }
}

/**
 * @param {(stats: Stats) => void} tell @param {AbortSignal} signal
 * @returns {Promise<boolean>} whether anything was told before the connection ended or the page was hidden
 */
async function watchOnce(tell, signal) {
  const hidden = new AbortController();
  const look = () => document.hidden && hidden.abort();
  document.addEventListener("visibilitychange", look);
  let told = false;
  try {
    const either = AbortSignal.any([signal, hidden.signal]);
    const response = await request("stats/stream", { headers: { Accept: "text/event-stream" }, signal: either });
    if (response.body === null) return false;
    for await (const { comment, data } of readEvents(response.body)) {
      if (comment !== null) continue;
      tell(JSON.parse(data));
      told = true;
    }
  } catch {
    // Lost, refused, or no JSON: it is asked again, later.
  } finally {
    document.removeEventListener("visibilitychange", look);
  }
  return told || hidden.signal.aborted;
}

/** @param {AbortSignal} signal */
async function shown(signal) {
  while (document.hidden) {
    await unlessAborted(new Promise((done) => document.addEventListener("visibilitychange", done, { once: true })), signal);
  }
}

/** Waits; less where the page is looked at again, the network is back, or there is another key. @param {number} ms @param {AbortSignal} signal */
async function calm(ms, signal) {
  const end = new AbortController();
  const { signal: over } = end;
  try {
    await unlessAborted(
      new Promise((done) => {
        const timer = setTimeout(done, ms);
        over.addEventListener("abort", () => clearTimeout(timer));
        addEventListener("online", done, { signal: over });
        document.addEventListener("visibilitychange", done, { signal: over });
        keys.addEventListener("change", done, { signal: over });
      }),
      signal,
    );
  } finally {
    end.abort();
  }
}
