/** One answer on its way from the server to the screen. */

import { streamChat } from "../server/api.js";
import { ApiError } from "../server/errors.js";
import { SpeedMeter } from "../seeing/speed.js";

/**
 * @typedef {import("../core/conversation.js").Message} Message
 * @typedef {import("./view.js").AnswerView} AnswerView
 */

const STATS_EVERY = 200; // milliseconds; faster cannot be read
const MAX_WRITTEN = 65536; // characters in one frame, so that a flood of text does not freeze the page
const FRAME_PATIENCE = 100; // milliseconds; a page that has just been hidden gets no frame

/**
 * Gathers text and puts it on the screen once per frame. A hidden page has no frames, so its text waits until
 * the page is seen again or the answer ends.
 */
class FrameWriter {
  #text = "";
  /** @type {number | null} */
  #frame = null;
  #write;

  /** @param {(text: string) => void} write */
  constructor(write) {
    this.#write = write;
  }

  /** @param {string} text */
  add(text) {
    this.#text += text;
    this.#frame ??= requestAnimationFrame(() => this.#writeSome());
  }

  /** Writes all that is left, in as many frames as it takes. */
  async finish() {
    while (this.#text.length > MAX_WRITTEN && !document.hidden) {
      await new Promise((done) => {
        requestAnimationFrame(done);
        setTimeout(done, FRAME_PATIENCE);
      });
      if (this.#frame === null) this.#writeSome();
    }
    if (this.#frame !== null) cancelAnimationFrame(this.#frame);
    this.#frame = null;
    this.#take(this.#text.length);
  }

  #writeSome() {
    this.#frame = null;
    this.#take(MAX_WRITTEN);
    if (this.#text !== "") this.#frame = requestAnimationFrame(() => this.#writeSome());
  }

  /** @param {number} length */
  #take(length) {
    const text = this.#text.slice(0, length);
    this.#text = this.#text.slice(length);
    if (text !== "") this.#write(text);
  }
}

/**
 * Streams one answer into a message and its view.
 * @param {{message: Message, view: AnswerView, request: Record<string, unknown>, signal: AbortSignal,
 *   grown: () => void}} job grown is called after the view has changed
 * @returns {Promise<unknown>} the error that ended it, null if it ended well or was stopped. The message's
 *   state says which of these it was; whatever text came stays.
 */
export async function runAnswer({ message, view, request, signal, grown }) {
  const meter = new SpeedMeter(performance.now());
  /** @type {number | null} */
  let due = null;
  const writer = new FrameWriter((text) => {
    view.append(text);
    due ??= setTimeout(() => {
      due = null;
      view.showStats(meter.line(""));
    }, STATS_EVERY);
    grown();
  });
  let ending = "";
  let error = null;
  try {
    for await (const piece of streamThatFits(request, signal)) {
      if (piece.type === "text") {
        meter.piece(performance.now());
        message.content += piece.text;
        writer.add(piece.text);
      } else if (piece.type === "finish") ending = piece.reason;
      else meter.count(piece.usage);
    }
    message.state = "done";
  } catch (problem) {
    message.state = signal.aborted ? "stopped" : "failed";
    error = signal.aborted ? null : problem;
    ending = signal.aborted ? "stopped" : "";
  }
  await writer.finish();
  if (due !== null) clearTimeout(due);
  view.showStats(meter.line(ending), meter.promptLine());
  view.settle();
  grown();
  return error;
}

/**
 * The length setting is a wish, not a condition: when the prompt leaves less room than that, the request goes
 * out once more without it, and the server takes what is left.
 * @param {Record<string, unknown>} request @param {AbortSignal} signal
 */
async function* streamThatFits(request, signal) {
  try {
    yield* streamChat(request, signal);
  } catch (error) {
    const tooLong = error instanceof ApiError && error.code === "context_length_exceeded";
    if (!tooLong || request.max_tokens === undefined || error.kind !== "refused") throw error;
    const { max_tokens: _, ...rest } = request;
    yield* streamChat(rest, signal);
  }
}
