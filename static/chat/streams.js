/** The streams that answers come from. What it takes to read them is loaded with the first one. */

import { ApiError } from "../server/errors.js";

/** @typedef {import("../server/stream.js").Piece} Piece */

/**
 * The length setting is a wish, not a condition: when the prompt leaves less room than that, the request goes
 * out once more without it, and the server takes what is left.
 * @param {Record<string, unknown>} body @param {AbortSignal} signal @param {boolean} resumable
 * @returns {AsyncGenerator<Piece>}
 */
export async function* streamThatFits(body, signal, resumable) {
  const { streamAnswer } = await streams();
  try {
    yield* streamAnswer(body, { signal, resumable });
  } catch (error) {
    const tooLong = error instanceof ApiError && error.code === "context_length_exceeded";
    if (!tooLong || body.max_tokens === undefined || error.kind !== "refused") throw error;
    const { max_tokens: _, ...rest } = body;
    yield* streamAnswer(rest, { signal, resumable });
  }
}

/**
 * Goes on with an answer whose beginning is here.
 * @param {{id: string, number: number}} stream @param {AbortSignal} signal @returns {AsyncGenerator<Piece>}
 */
export async function* streamOn(stream, signal) {
  const { resumeAnswer } = await streams();
  yield* resumeAnswer(stream, { signal });
}

/** Not needed before there is something to say. @throws {ApiError} where it cannot be had */
async function streams() {
  try {
    return await import("../server/stream.js");
  } catch (error) {
    throw new ApiError(String(error), { kind: "unreachable" });
  }
}
