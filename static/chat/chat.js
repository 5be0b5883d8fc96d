/** What the reader can do with a conversation: send, stop, regenerate, edit, start anew. */

import { runAnswer } from "./answer.js";
import { isCommand, runCommand } from "./commands.js";
import { Conversation } from "../core/conversation.js";
import { ApiError, explain } from "../server/errors.js";

/**
 * @typedef {import("./view.js").LogView} LogView
 * @typedef {import("./view.js").AnswerView} AnswerView
 * @typedef {import("../settings/settings.js").Settings} Settings
 * @typedef {import("../reading/scroll.js").Follower} Follower
 */

const MOST_RETRIES = 3; // without the reader's hand, one after another

/**
 * Tells by events: `busy` (an answer grows), `idle`, `edit` (an edit began or ended), `edit-cancelled` (it
 * ended without being sent).
 */
export class Chat extends EventTarget {
  #conversation = new Conversation();
  #log;
  #settings;
  #follower;
  #announce;
  /** @type {AbortController | null} the answer that grows now */
  #running = null;
  /** @type {number | undefined} */
  #countdown;
  #retries = 0;
  /** The id of the model to ask for; empty until it is known (the server then takes its own). */
  model = "";
  /** @type {number | null} the message that is being edited */
  editing = null;

  /**
   * @param {{log: LogView, settings: Settings, follower: Follower, announce: (text: string) => void}} parts
   *   announce speaks to screen readers
   */
  constructor({ log, settings, follower, announce }) {
    super();
    this.#log = log;
    this.#settings = settings;
    this.#follower = follower;
    this.#announce = announce;
    log.onTool("regenerate", () => this.regenerate());
    log.onTool("copy", (id) => this.#copy(id));
  }

  get busy() {
    return this.#running !== null;
  }

  /**
   * Takes what was typed: a command, the new words of an edited message, or a new message.
   * @param {string} text @returns {boolean} whether it was taken; if not, it should stay in the composer
   */
  send(text) {
    if (isCommand(text) && this.editing === null) return this.#command(text);
    if (this.busy) return false;
    if (this.editing !== null) {
      this.#removeFrom(this.editing);
      this.editing = null;
      this.dispatchEvent(new Event("edit"));
    }
    this.#retries = 0;
    this.#log.addUser(this.#conversation.addUser(text.trim()));
    this.#answer();
    this.#follower.toEnd();
    return true;
  }

  /** Ends the answer that grows; what is there of it stays. */
  stop() {
    this.#running?.abort();
    clearInterval(this.#countdown);
  }

  /** Answers the last message again. */
  regenerate() {
    const last = this.#conversation.lastAnswer();
    if (this.busy || last === undefined) return;
    this.cancelEdit();
    this.#removeFrom(last.id);
    this.#answer();
    this.#follower.toEnd();
  }

  /** Stops, forgets everything, starts a new chat. */
  clear() {
    this.stop();
    this.cancelEdit();
    this.#conversation.clear();
    this.#log.clear();
    this.#announce("New chat");
  }

  /** Marks a message as being edited. @param {number} id @returns {string | null} its text */
  beginEdit(id) {
    const message = this.#conversation.find(id);
    if (this.busy || message?.role !== "user") return null;
    clearInterval(this.#countdown);
    this.editing = id;
    this.#log.markReplaced(id);
    this.dispatchEvent(new Event("edit"));
    return message.content;
  }

  cancelEdit() {
    if (this.editing === null) return;
    this.editing = null;
    this.#log.markReplaced(null);
    this.dispatchEvent(new Event("edit"));
    this.dispatchEvent(new Event("edit-cancelled"));
  }

  /** @param {string} text */
  #command(text) {
    const { note, known } = runCommand(text, { settings: this.#settings, clear: () => this.clear() });
    if (note !== "") {
      this.#log.addNote(note);
      this.#announce(note);
      this.#follower.toEnd();
    }
    return known;
  }

  async #answer() {
    clearInterval(this.#countdown);
    const running = new AbortController();
    this.#running = running;
    const turns = this.#conversation.wire(this.#settings.system);
    const message = this.#conversation.addAnswer();
    const view = this.#log.addAnswer(message);
    this.dispatchEvent(new Event("busy"));
    this.#announce("Generating the answer");
    const error = await runAnswer({
      message,
      view,
      request: { ...(this.model && { model: this.model }), messages: turns, ...this.#settings.request() },
      signal: running.signal,
      grown: () => this.#follower.follow(),
    });
    // A new chat may have begun, and its first answer too, while this one was being stopped.
    if (this.#running === running) {
      this.#running = null;
      this.dispatchEvent(new Event("idle"));
    }
    if (this.#conversation.find(message.id) !== message) return;
    if (error === null) this.#retries = 0;
    else this.#fail(view, error);
    this.#announce(error === null ? spoken(message.state, message.content) : explain(error).title);
  }

  /** @param {AnswerView} view @param {unknown} error */
  #fail(view, error) {
    const { title, detail } = explain(error);
    view.showProblem(title, detail, () => {
      this.#retries = 0;
      this.regenerate();
    });
    const wait = error instanceof ApiError ? error.retryAfter : null;
    if (wait !== null && this.#retries < MOST_RETRIES) this.#retryIn(Math.ceil(wait), view);
    this.#follower.follow();
  }

  /** Counts down on the retry button, then tries again. @param {number} seconds @param {AnswerView} view */
  #retryIn(seconds, view) {
    let left = Math.max(1, seconds);
    const label = () => view.labelRetry(left > 0 ? `Try again (by itself in ${left} s)` : "Try again");
    label();
    this.#countdown = setInterval(() => {
      left -= 1;
      label();
      if (left > 0) return;
      clearInterval(this.#countdown);
      this.#retries += 1;
      this.regenerate();
    }, 1000);
  }

  /** @param {number} id */
  async #copy(id) {
    try {
      await navigator.clipboard.writeText(this.#conversation.find(id)?.content ?? "");
      this.#announce("Copied");
    } catch {
      this.#announce("Copying is not allowed here");
    }
  }

  /** @param {number} id */
  #removeFrom(id) {
    this.#conversation.truncate(id);
    this.#log.removeFrom(id);
  }
}

/** @param {string} state @param {string} content */
function spoken(state, content) {
  const words = content.split(/\s+/).filter(Boolean).length;
  const ended = state === "stopped" ? "Answer stopped" : "Answer finished";
  return `${ended}, ${words} ${words === 1 ? "word" : "words"}`;
}
