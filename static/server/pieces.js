/** What a stream says, as the page uses it. */

import { ApiError } from "./errors.js";

/**
 * @typedef {import("../core/conversation.js").TokenScore} TokenScore
 * @typedef {{prompt_tokens: number, completion_tokens: number,
 *   prompt_tokens_details?: {cached_tokens?: number} | null}} Usage
 * @typedef {{type: "queue", position: number, eta: number | null}
 *   | {type: "begin", seed: number | null, model: string}
 *   | {type: "text", choice: number, text: string, tokens: number}
 *   | {type: "scores", choice: number, scores: TokenScore[]}
 *   | {type: "finish", choice: number, reason: string}
 *   | {type: "usage", usage: Usage}
 *   | {type: "event", id: string, number: number}
 *   | {type: "reconnect", attempt: number}} Piece
 *   queue: while the request waits, `position` others before it, `eta` in seconds. text: `tokens` is how many
 *   it stands for. event: after the pieces of a resumable stream's event: the stream's name and how far it is.
 *   reconnect: the connection was lost and is sought again.
 */

/** Puts the chunks of one stream into pieces. */
export class PieceReader {
  /** @type {number | null | undefined} undefined: nothing has begun */
  #seed;
  #resumed;
  /** @type {Map<number, TextDecoder>} by choice: a character may be split over tokens */
  #decoders = new Map();
  /** @type {Set<number>} choices that have begun and not finished */
  #open = new Set();
  #any = false;

  /** @param {boolean} [resumed] what comes is not the stream's beginning */
  constructor(resumed = false) {
    this.#resumed = resumed;
  }

  /** Whether every choice that was seen has been finished. */
  get finished() {
    return this.#any && this.#open.size === 0;
  }

  /** @param {string} comment @returns {Generator<Piece>} */
  *ofComment(comment) {
    if (!comment.startsWith("{")) return; // a keep-alive
    let said;
    try {
      said = JSON.parse(comment)?.queue;
    } catch {
      return; // somebody else's comment
    }
    if (typeof said?.position !== "number") return;
    const eta = typeof said.eta_ms === "number" ? said.eta_ms / 1000 : null;
    yield { type: "queue", position: said.position, eta };
  }

  /**
   * @param {string} data one event's data
   * @returns {Generator<Piece>}
   * @throws {ApiError} the event is an error, or nothing that a server should say
   */
  *ofData(data) {
    let chunk;
    try {
      chunk = JSON.parse(data);
    } catch {
      throw new ApiError("The server sent an event that is not JSON.", { kind: "stream" });
    }
    if (chunk?.error) throw errorOfEvent(chunk.error);
    /** @type {Piece[]} */
    const pieces = [];
    let problem = null;
    try {
      for (const piece of this.#piecesOf(chunk)) pieces.push(piece);
    } catch (error) {
      problem = error;
    }
    yield* pieces;
    // Another connection would bring the same once more.
    if (problem !== null) throw new ApiError(`The server sent an event that cannot be read (${problem}).`, { kind: "stream" });
  }

  /** @param {any} chunk @returns {Generator<Piece>} */
  *#piecesOf(chunk) {
    yield* this.#beginning(chunk);
    for (const choice of chunk?.choices ?? []) yield* this.#choice(choice);
    if (chunk?.usage) yield { type: "usage", usage: chunk.usage };
  }

  /** @param {any} chunk @returns {Generator<Piece>} once, and again when the seed becomes known later */
  *#beginning(chunk) {
    const seed = typeof chunk?.seed === "number" ? chunk.seed : null;
    const first = this.#seed === undefined && !this.#resumed;
    if (!first && (seed === null || seed === this.#seed)) return;
    this.#seed = seed;
    yield { type: "begin", seed, model: String(chunk?.model ?? "") };
  }

  /** @param {any} choice @returns {Generator<Piece>} */
  *#choice(choice) {
    const index = choice.index ?? 0;
    this.#any = true;
    this.#open.add(index);
    const scored = choice.logprobs?.content;
    const text = choice.delta?.content;
    if (text) {
      yield { type: "text", choice: index, text, tokens: Array.isArray(scored) ? scored.length || 1 : 1 };
    }
    if (Array.isArray(scored) && scored.length > 0) {
      yield { type: "scores", choice: index, scores: scored.map((entry) => this.#score(index, entry)) };
    }
    if (choice.finish_reason) {
      this.#open.delete(index);
      yield { type: "finish", choice: index, reason: choice.finish_reason };
    }
  }

  /** @param {number} index @param {any} entry @returns {TokenScore} texts of a choice's tokens join to its text */
  #score(index, entry) {
    const alternatives = (entry.top_logprobs ?? []).map((/** @type {any} */ { token, logprob }) => ({ text: token, logprob }));
    return { text: this.#spelling(index, entry), logprob: entry.logprob, alternatives };
  }

  /** @param {number} index @param {any} entry @returns {string} */
  #spelling(index, { token, bytes }) {
    if (!Array.isArray(bytes)) return token;
    let decoder = this.#decoders.get(index);
    if (decoder === undefined) this.#decoders.set(index, (decoder = new TextDecoder()));
    return decoder.decode(new Uint8Array(bytes), { stream: true });
  }
}

/** @param {any} error */
function errorOfEvent(error) {
  const message = typeof error?.message === "string" ? error.message : String(error);
  const code = typeof error?.code === "string" ? error.code : null;
  return new ApiError(message, { kind: code === "stream_gap" ? "gone" : "stream", code });
}
