/** The calls that the page makes. Paths are relative, so that the page also works below a proxy's prefix. */

import { ApiError, errorOfResponse } from "./errors.js";
import { readEvents } from "./sse.js";

/**
 * @typedef {{id: string, contextLength: number | null, samplingDefaults: Record<string, number>}} Model
 * @typedef {{prompt_tokens: number, completion_tokens: number,
 *   prompt_tokens_details?: {cached_tokens?: number} | null}} Usage
 * @typedef {{type: "text", text: string} | {type: "finish", reason: string}
 *   | {type: "usage", usage: Usage}} Piece
 */

/**
 * @param {string} path @param {RequestInit} init
 * @throws {ApiError} unless the answer has a 2xx status
 */
async function request(path, init = {}) {
  let response;
  try {
    response = await fetch(path, { cache: "no-store", ...init });
  } catch (error) {
    if (init.signal?.aborted) throw error;
    throw new ApiError(String(error), { kind: "unreachable" });
  }
  if (!response.ok) throw await errorOfResponse(response);
  return response;
}

/** The model that the server serves first. @returns {Promise<Model>} */
export async function fetchModel() {
  const body = await (await request("v1/models")).json();
  const card = body?.data?.[0];
  if (typeof card?.id !== "string") throw new ApiError("No model is listed.", { kind: "refused" });
  return {
    id: card.id,
    contextLength: typeof card.max_model_len === "number" ? card.max_model_len : null,
    samplingDefaults: card.meta?.sampling_defaults ?? {},
  };
}

/**
 * Rows in the batch and requests that wait for one.
 * @returns {Promise<{running: number, waiting: number}>} NaN where the server does not say
 */
export async function fetchLoad() {
  const body = await (await request("stats")).json();
  return { running: Number(body?.running), waiting: Number(body?.waiting) };
}

/**
 * One answer, as it is written. Aborting the signal closes the request, which frees the server's row.
 * @param {Record<string, unknown>} body fields of a chat completion, `stream` excepted
 * @param {AbortSignal} signal
 * @returns {AsyncGenerator<Piece>}
 * @throws {ApiError} refused, unreachable, an error event, or a stream that ends without a finish
 */
export async function* streamChat(body, signal) {
  const response = await request("v1/chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json", Accept: "text/event-stream" },
    // The calculator's marks are wanted, for a calculation is shown as one (tool_text.js).
    body: JSON.stringify({
      ...body,
      skip_special_tokens: false,
      stream: true,
      stream_options: { include_usage: true },
    }),
    signal,
  });
  if (response.body === null) throw new ApiError("The answer has no body.", { kind: "lost" });
  let finished = false;
  try {
    for await (const { data } of readEvents(response.body)) {
      if (data === "[DONE]") return;
      for (const piece of piecesOf(data)) {
        finished ||= piece.type === "finish";
        yield piece;
      }
    }
  } catch (error) {
    if (signal.aborted || error instanceof ApiError) throw error;
    if (finished) return; // the whole answer is here, only the end of the transfer is not
    throw new ApiError(String(error), { kind: "lost" });
  }
  if (!finished) throw new ApiError("The stream ended early.", { kind: "lost" });
}

/** @param {string} data one event's data @returns {Generator<Piece>} */
function* piecesOf(data) {
  let chunk;
  try {
    chunk = JSON.parse(data);
  } catch {
    throw new ApiError("The server sent an event that is not JSON.", { kind: "stream" });
  }
  if (chunk.error) {
    const { message, code } = chunk.error;
    throw new ApiError(typeof message === "string" ? message : String(chunk.error), { kind: "stream", code });
  }
  const choice = chunk.choices?.[0];
  if (choice?.delta?.content) yield { type: "text", text: choice.delta.content };
  if (choice?.finish_reason) yield { type: "finish", reason: choice.finish_reason };
  if (chunk.usage) yield { type: "usage", usage: chunk.usage };
}
