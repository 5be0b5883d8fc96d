/** Answers as they are written, also over a connection that breaks. */

import { ApiError } from "./errors.js";
import { PieceReader } from "./pieces.js";
import { pause, request } from "./request.js";
import { resumption } from "./resumption.js";
import { readEvents } from "./sse.js";

/**
 * @typedef {import("./pieces.js").Piece} Piece
 * @typedef {import("./pieces.js").Usage} Usage
 */

const NAME_BYTES = 16;
const SECOND_DELETE = 1000; // milliseconds; the server may not have seen yet what is to be deleted

/**
 * One answer. Aborting the signal ends it, which frees the server's rows.
 * @param {Record<string, unknown>} body fields of a chat completion, `stream` excepted
 * @param {{signal: AbortSignal, resumable?: boolean}} how resumable: where the server can, the stream survives
 *   the connection and, with `resumeAnswer`, the page
 * @returns {AsyncGenerator<Piece>}
 * @throws {ApiError} refused, unreachable, an error event, or a stream that ends without a finish
 */
export async function* streamAnswer(body, { signal, resumable = false }) {
  if (resumable && resumption.offered) {
    const id = newName();
    const response = await begin(body, id, signal);
    if (response?.headers.has("x-stream-id")) {
      yield* follow({ id, number: 0, response, signal });
      return;
    }
    if (response !== null) {
      yield* readWhole(response, signal);
      return;
    }
  }
  yield* readWhole(await post(body, {}, signal), signal);
}

/**
 * Goes on with an answer whose beginning is here: the events after `number`, then what comes.
 * @param {{id: string, number: number}} stream @param {{signal: AbortSignal}} how
 * @returns {AsyncGenerator<Piece>}
 * @throws {ApiError} with the kind "gone" where the server does not have it (any more)
 */
export async function* resumeAnswer({ id, number }, { signal }) {
  yield* follow({ id, number, response: null, signal });
}

/** The body of the request that is really sent. @param {Record<string, unknown>} body */
export function wireBody(body) {
  // The calculator's marks are wanted, for a calculation is shown as one (reading/tool_text.js).
  return { ...body, skip_special_tokens: false, stream: true, stream_options: { include_usage: true } };
}

/** @param {Record<string, unknown>} body @param {Record<string, string>} extra @param {AbortSignal} signal */
function post(body, extra, signal) {
  return request("v1/chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json", Accept: "text/event-stream", ...extra },
    body: JSON.stringify(wireBody(body)),
    signal,
    ask: "always",
  });
}

/**
 * @param {Record<string, unknown>} body @param {string} id @param {AbortSignal} signal
 * @returns {Promise<Response | null>} null where the stream can be had, but not one to be resumed
 */
async function begin(body, id, signal) {
  try {
    const response = await post(body, { "X-Stream-Id": id }, signal);
    if (!response.headers.has("x-stream-id")) resumption.offered = false; // it has never heard of such streams
    return response;
  } catch (error) {
    if (signal.aborted) forget(id, true);
    if (!(error instanceof ApiError) || !refusedOnlyResumption(error)) throw error;
    if (error.status === 400 || error.status === 501) resumption.offered = false;
    return null;
  }
}

/** @param {ApiError} error */
function refusedOnlyResumption({ kind, status, param }) {
  return kind === "refused" && (status === 409 || status === 501 || param?.toLowerCase() === "x-stream-id");
}

/**
 * A stream that cannot be resumed.
 * @param {Response} response @param {AbortSignal} signal @returns {AsyncGenerator<Piece>}
 */
async function* readWhole(response, signal) {
  const reader = new PieceReader();
  try {
    for await (const { comment, data } of readEvents(bodyOf(response))) {
      if (comment !== null) yield* reader.ofComment(comment);
      else if (data === "[DONE]") return;
      else yield* reader.ofData(data);
    }
  } catch (error) {
    if (signal.aborted || error instanceof ApiError) throw error;
    if (reader.finished) return; // the whole answer is here, only the end of the transfer is not
    throw new ApiError(String(error), { kind: "lost" });
  }
  if (!reader.finished) throw new ApiError("The stream ended early.", { kind: "lost" });
}

/**
 * A stream that can be resumed: when its connection is lost, another one is made, which goes on behind the
 * last event.
 * @param {{id: string, number: number, response: Response | null, signal: AbortSignal}} stream response: a
 *   connection that there is already
 * @returns {AsyncGenerator<Piece>}
 */
async function* follow({ id, number, response, signal }) {
  const reader = new PieceReader(number > 0);
  let lost = 0; // times in a row
  let over = false; // nothing is left to be stopped
  try {
    if (number === 0) yield { type: "event", id, number }; // it can be resumed while it still waits
    for (;;) {
      try {
        response ??= await reopen(id, number, signal);
        for await (const { comment, data, id: said } of readEvents(bodyOf(response))) {
          lost = 0;
          if (comment !== null) {
            yield* reader.ofComment(comment);
            continue;
          }
          over = data === "[DONE]";
          if (over) return;
          yield* reader.ofData(data);
          if (said === null) continue;
          number = Number(said);
          yield { type: "event", id, number };
        }
      } catch (error) {
        if (signal.aborted) throw error;
        if (error instanceof ApiError && !canBeTriedAgain(error)) {
          over = true;
          throw error;
        }
      }
      over = reader.finished;
      if (over) return;
      response = null;
      lost += 1;
      over = lost > resumption.waits.length;
      if (over) throw new ApiError("The stream ended early.", { kind: "lost" });
      yield { type: "reconnect", attempt: lost };
      await pause(navigator.onLine ? resumption.waits[lost - 1] : resumption.patience, signal);
    }
  } finally {
    // Aborting the request alone would let it run on for a while. (A page that is closed does not come here.)
    if (!over) forget(id, number === 0);
  }
}

/** @param {string} id @param {number} number @param {AbortSignal} signal */
async function reopen(id, number, signal) {
  const headers = { Accept: "text/event-stream", "Last-Event-ID": String(number) };
  try {
    return await request(`v1/streams/${id}`, { headers, signal, ask: "always" });
  } catch (error) {
    if (!(error instanceof ApiError) || (error.status !== 404 && error.status !== 410)) throw error;
    throw new ApiError(error.message, { kind: "gone", status: error.status, code: error.code });
  }
}

/** @param {ApiError} error */
function canBeTriedAgain({ kind, status }) {
  return kind === "unreachable" || kind === "lost" || (kind === "refused" && [429, 502, 503, 504].includes(status));
}

/**
 * Ends a stream on the server.
 * @param {string} id @param {boolean} early its beginning may still be on the way
 */
async function forget(id, early) {
  const remove = () => request(`v1/streams/${id}`, { method: "DELETE", keepalive: true });
  try {
    await remove();
  } catch (error) {
    if (!early || !(error instanceof ApiError) || error.status !== 404) return; // it ends by itself
    await pause(SECOND_DELETE);
    await remove().catch(() => {});
  }
}

/** @param {Response} response */
function bodyOf(response) {
  if (response.body === null) throw new ApiError("The answer has no body.", { kind: "lost" });
  return response.body;
}

function newName() {
  const bytes = crypto.getRandomValues(new Uint8Array(NAME_BYTES));
  return [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}
