/** What the page asks the server, answers excepted (stream.js). Paths are relative. */

import { ApiError } from "./errors.js";
import { keys } from "./keys.js";
import { request, unlessAborted } from "./request.js";
import { readEvents } from "./sse.js";
import { resumption } from "./stream.js";

/**
 * @typedef {import("./pieces.js").Usage} Usage
 * @typedef {import("./pieces.js").Piece} Piece
 *
 * @typedef {object} Model
 * @property {string} id
 * @property {number | null} contextLength tokens
 * @property {Record<string, number>} samplingDefaults what its card recommends
 * @property {boolean} resumable whether the server's streams can be resumed
 * @property {Record<string, any>} facts the card's `meta`: n_params, n_vocab, size (bytes), generation, device,
 *   dtype, max_rows, block_size, num_blocks, max_num_blocks, features; what the server does not say is absent
 *
 * @typedef {Record<string, any> & {running?: number, waiting?: number, max_rows?: number, blocks_used?: number,
 *   blocks_total?: number, tokens_per_second?: number, prompt_tokens?: number, cached_tokens?: number,
 *   generated_tokens?: number, ttft_p50_seconds?: number | null, ttft_p95_seconds?: number | null,
 *   engine_restarts?: number, state?: string}} Stats as GET /stats says it, see docs/api.md
 */

const RECONNECT = [500, 1000, 2000, 5000, 10_000]; // milliseconds before each attempt; the last one stays

/** The model that the server serves first. @returns {Promise<Model>} */
export async function fetchModel() {
  const body = await (await request("v1/models", { ask: "once" })).json();
  const card = body?.data?.[0];
  if (typeof card?.id !== "string") throw new ApiError("No model is listed.", { kind: "refused" });
  const facts = card.meta ?? {};
  if (typeof facts.resumable_streams === "boolean") resumption.offered = facts.resumable_streams;
  return {
    id: card.id,
    contextLength: typeof card.max_model_len === "number" ? card.max_model_len : null,
    samplingDefaults: facts.sampling_defaults ?? {},
    resumable: resumption.offered === true,
    facts,
  };
}

/** One look at the server. @returns {Promise<Stats>} */
export async function fetchStats() {
  return (await request("stats")).json();
}

/**
 * How many tokens a conversation is to the model, or a text without anything around it.
 * @param {{messages: {role: string, content: string}[]} | {prompt: string}} what
 * @param {{signal?: AbortSignal}} [how]
 * @returns {Promise<number>}
 */
export async function countTokens(what, { signal } = {}) {
  const body = "prompt" in what ? { ...what, add_special_tokens: false } : what;
  const response = await request("tokenize", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
    signal,
  });
  const { count } = await response.json();
  return Number(count);
}

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
