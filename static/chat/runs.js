/** The requests on their way, at most one for each conversation. They go on whichever conversation is shown. */

import { ApiError } from "../server/errors.js";
import { claim } from "./claims.js";

/**
 * @typedef {import("../core/conversation.js").Conversation} Conversation
 * @typedef {import("../core/conversation.js").Message} Message
 * @typedef {import("../server/stream.js").Piece} Piece
 * @typedef {import("./answer_view.js").AnswerView} AnswerView
 *
 * @typedef {object} Job
 * @property {Message[]} messages
 * @property {Record<string, unknown>} request what is asked, but for the messages
 * @property {(signal: AbortSignal) => AsyncGenerator<Piece>} ask
 * @property {() => void} again asks once more
 * @property {boolean} [resumed] the beginning was not seen by this page
 * @property {(() => void) | null} [held] the claim on the answer, if there is one already
 */

/** A request on its way. */
export class Run {
  controller = new AbortController();
  /** Another tab has changed the conversation meanwhile. */
  missed = false;
  /** Resolved when the answers have ended and what there is of them is kept. */
  ended;
  /** @type {() => void} */
  end = () => {};
  #lengths;

  /** @param {Conversation} conversation @param {Job} job @param {Map<string, AnswerView>} views */
  constructor(conversation, job, views) {
    this.conversation = conversation;
    this.job = job;
    this.messages = job.messages;
    this.views = views;
    this.#lengths = job.messages.map(({ content }) => content.length);
    this.ended = new Promise((/** @type {(value?: undefined) => void} */ end) => (this.end = () => end()));
  }

  /** Whether it was to continue an answer, and nothing came of that. */
  get inVain() {
    const [message] = this.messages;
    return this.#lengths[0] > 0 && message.content.length === this.#lengths[0] && !this.job.resumed;
  }
}

export class Runs {
  /** @type {Map<string, Run>} by the conversation's id */
  #runs = new Map();
  #autosave;

  /** @param {import("./autosave.js").Autosave} autosave */
  constructor(autosave) {
    this.#autosave = autosave;
  }

  /** @param {string} id the conversation's */
  get(id) {
    return this.#runs.get(id);
  }

  /** How many answers are on their way. */
  get rows() {
    return [...this.#runs.values()].reduce((sum, { messages }) => sum + messages.length, 0);
  }

  /** @param {Run} run */
  begin(run) {
    this.#runs.set(run.conversation.head.id, run);
    for (const message of run.messages) this.#autosave.message(run.conversation, message);
  }

  /**
   * @param {Run} run @param {{reconnecting: () => void}} tell
   * @returns {Promise<unknown>} the error that ended it, null if it ended well or was stopped
   */
  async follow(run, { reconnecting }) {
    const { conversation, messages, views, job } = run;
    const { signal } = run.controller;
    const claims = job.held ? [Promise.resolve(job.held)] : messages.map(({ id }) => claim(id));
    const changed = () => messages.forEach((message) => this.#autosave.growing(conversation, message));
    const pieces = job.ask(signal);
    const { request, resumed } = job;
    let error;
    try {
      const { runAnswers } = await answering();
      error = await runAnswers({ messages, views: [...views.values()], pieces, request, resumed, signal, reconnecting, changed });
    } catch (problem) {
      error = problem; // of the page: the conversation must not stay busy for that
      for (const message of messages) if (message.state === "streaming") message.state = "failed";
      for (const view of views.values()) view.settle();
    }
    this.#runs.delete(conversation.head.id);
    const there = messages.filter(({ id }) => conversation.find(id));
    const kept = Promise.all(there.map((message) => this.#autosave.message(conversation, message)));
    // Another tab takes an answer without a claim for one that was broken off: first it is kept, then given up.
    kept.finally(() => {
      for (const held of claims) held.then((release) => release?.());
      run.end();
    });
    return error;
  }

  /** Ends what grows in a conversation; what is there of it stays. @param {string} id @returns {Promise<void>} when it is kept */
  async stop(id) {
    const run = this.#runs.get(id);
    run?.controller.abort();
    await run?.ended;
  }
}

/** Not needed before there is an answer. @throws {ApiError} where it cannot be had */
async function answering() {
  try {
    return await import("./answer.js");
  } catch (error) {
    throw new ApiError(String(error), { kind: "unreachable" });
  }
}
