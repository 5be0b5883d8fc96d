/** Answers on their way from the server into their messages and onto the screen. */

import { SpeedMeter } from "../seeing/speed.js";
import { FrameWriter } from "./frame_writer.js";

/**
 * @typedef {import("../core/conversation.js").Message} Message
 * @typedef {import("../core/conversation.js").Facts} Facts
 * @typedef {import("../server/stream.js").Piece} Piece
 * @typedef {import("./answer_view.js").AnswerView} AnswerView
 */

const FACTS_EVERY = 200; // milliseconds; faster cannot be read

/** One choice of the request: its message, its view, its speed. */
class Growth {
  meter;
  /** @type {number | null} */
  #due = null;
  /** Whether any text came. */
  came = false;

  /** @param {Message} message @param {AnswerView} view @param {number | null} sent */
  constructor(message, view, sent) {
    this.message = message;
    this.view = view;
    this.meter = new SpeedMeter(sent);
    this.writer = new FrameWriter((text) => {
      view.append(text);
      this.#due ??= setTimeout(() => this.#showFacts(), FACTS_EVERY);
    });
  }

  /** @param {string} text @param {number} tokens */
  add(text, tokens) {
    this.meter.piece(performance.now(), tokens);
    this.message.content += text;
    this.came = true;
    this.writer.add(text);
  }

  async finish() {
    await this.writer.finish();
    if (this.#due !== null) clearTimeout(this.#due);
    this.#due = null;
  }

  #showFacts() {
    this.#due = null;
    this.view.facts.live(this.meter);
  }
}

/**
 * Streams one request's answers into their messages and views, one message for each choice.
 * @param {object} job
 * @param {Message[]} job.messages
 * @param {AnswerView[]} job.views
 * @param {AsyncGenerator<Piece>} job.pieces
 * @param {Record<string, unknown>} job.request what was asked, but for the messages
 * @param {boolean} [job.resumed] the beginning was not seen by this page
 * @param {AbortSignal} job.signal
 * @param {() => void} job.reconnecting called when the connection was lost and is sought again
 * @param {() => void} job.changed called after a message has changed
 * @returns {Promise<unknown>} the error that ended it, null if it ended well or was stopped. The messages'
 *   state says which of these it was; whatever text came stays.
 */
export async function runAnswers({ messages, views, pieces, request, resumed = false, signal, changed, reconnecting }) {
  const sent = resumed ? null : performance.now();
  const started = Date.now();
  const growths = messages.map((message, at) => new Growth(message, views[at], sent));
  for (const { message, meter } of growths) if (message.stream?.begin) meter.begin(message.stream.begin);
  let error = null;
  try {
    for await (const piece of pieces) {
      if (piece.type === "reconnect") reconnecting();
      take(piece, growths, request);
      if (piece.type === "text" || piece.type === "event") changed();
    }
    for (const { message } of growths) message.state = "done";
  } catch (problem) {
    error = signal.aborted ? null : problem;
    for (const { message, meter } of growths) {
      message.state = signal.aborted ? "stopped" : "failed";
      if (signal.aborted) meter.finish("stopped");
    }
  }
  for (const growth of growths) {
    await growth.finish();
    const { message, view, meter } = growth;
    delete message.stream;
    // A part that never was says nothing of the answer that it was to continue.
    const told = growth.came || message.state === "done" || (message.state === "stopped" && message.facts === undefined);
    if (told) note(message, meter.facts({ request, started, model: String(request.model ?? "") }));
    view.settle();
  }
  return error;
}

/** @param {Piece} piece @param {Growth[]} growths @param {Record<string, unknown>} request */
function take(piece, growths, request) {
  switch (piece.type) {
    case "text":
      growths[piece.choice]?.add(piece.text, piece.tokens);
      break;
    case "scores": {
      const message = growths[piece.choice]?.message;
      if (message) (message.scores ??= []).push(...piece.scores);
      break;
    }
    case "finish":
      growths[piece.choice]?.meter.finish(piece.reason);
      break;
    case "queue":
      for (const { view } of growths) view.facts.queued(piece.position, piece.eta);
      break;
    case "begin":
      for (const { meter, message } of growths) {
        meter.begin(piece);
        if (message.stream) message.stream.begin = { seed: piece.seed, model: piece.model };
      }
      break;
    case "usage":
      for (const { meter } of growths) meter.count(piece.usage, growths.length);
      break;
    case "event":
      for (const { message } of growths) {
        message.stream = { ...message.stream, id: piece.id, number: piece.number, request };
      }
  }
}

/** A continued answer has the facts of each of its parts. @param {Message} message @param {Facts} facts */
function note(message, facts) {
  if (message.facts) (message.earlier ??= []).push(message.facts);
  message.facts = facts;
}
