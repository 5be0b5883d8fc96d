/** What the page asks the server, answers excepted (stream.js). Paths are relative. */

import { ApiError } from "./errors.js";
import { keys } from "./keys.js";
import { request } from "./request.js";
import { resumption } from "./resumption.js";

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
