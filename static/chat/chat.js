/** What the reader can do with conversations: send, stop, regenerate, continue, edit, compare, delete, open. */

import { Conversation } from "../core/conversation.js";
import { ApiError, explain } from "../server/errors.js";
import { t } from "../words/words.js";
import { AnswerView } from "./answer_view.js";
import { runAnswers, streamOn, streamThatFits } from "./answer.js";
import { claim } from "./claims.js";
import { loadReading } from "./lazy_reading.js";
import { Retry } from "./retry.js";

/**
 * @typedef {import("../core/conversation.js").Message} Message
 * @typedef {import("../core/conversation.js").TextFile} TextFile
 * @typedef {import("../keep/library.js").Library} Library
 * @typedef {import("../settings/settings.js").Settings} Settings
 * @typedef {import("../reading/scroll.js").Follower} Follower
 * @typedef {import("../server/stream.js").Piece} Piece
 * @typedef {import("./view.js").LogView} LogView
 * @typedef {import("./autosave.js").Autosave} Autosave
 *
 * @typedef {object} Run a request on its way
 * @property {Conversation} conversation
 * @property {Message[]} messages
 * @property {Map<string, AnswerView>} views
 * @property {AbortController} controller
 */

/**
 * Tells by events: `busy` and `idle` (an answer of the conversation shown grows, or does not), `edit` (an
 * edit began or ended), `edit-cancelled` (it ended without being sent), `opened` (another conversation is
 * shown), `changed` (the conversation shown has other messages, or another path), `runs` (an answer of any
 * conversation began or ended).
 */
export class Chat extends EventTarget {
  conversation = new Conversation();
  /** The id of the model to ask for; empty until it is known (the server then takes its own). */
  model = "";
  /** @type {string | null} the message that is being edited */
  editing = null;
  /** @type {Map<string, Run>} by the conversation's id */
  #runs = new Map();
  #retry = new Retry();
  #log;
  #settings;
  #follower;
  #announce;
  #library;
  #autosave;

  /**
   * @param {{log: LogView, settings: Settings, follower: Follower, announce: (text: string) => void,
   *   library: Library, autosave: Autosave}} parts announce speaks to screen readers
   */
  constructor({ log, settings, follower, announce, library, autosave }) {
    super();
    this.#log = log;
    this.#settings = settings;
    this.#follower = follower;
    this.#announce = announce;
    this.#library = library;
    this.#autosave = autosave;
    settings.bind(this.conversation.head);
  }

  get busy() {
    return this.isBusy(this.conversation.head.id);
  }

  /** @param {string} id whether an answer of this conversation grows */
  isBusy(id) {
    return this.#runs.has(id);
  }

  /** How many answers of this page are on their way. */
  get rows() {
    return [...this.#runs.values()].reduce((sum, { messages }) => sum + messages.length, 0);
  }

  /**
   * Takes a new message, or the new words of an edited one.
   * @param {string} text @param {TextFile[]} [files]
   * @returns {boolean} whether it was taken; if not, it should stay in the composer
   */
  send(text, files = []) {
    if (this.busy) return false;
    this.#retry.forget();
    const edited = this.conversation.find(this.editing);
    this.#endEdit();
    this.#settings.settle();
    const parent = edited ? edited.parent : this.conversation.head.leaf;
    const message = this.conversation.add(parent, {
      role: "user", content: text.trim(), ...(files.length > 0 && { files }),
    });
    this.#autosave.message(this.conversation, message);
    this.#ask(message.id);
    const element = this.#log.find(message.id);
    if (element !== null) this.#follower.toMessage(element);
    return true;
  }

  /** Ends the answer that grows; what is there of it stays. @param {string} [id] of another conversation */
  stop(id = this.conversation.head.id) {
    this.#runs.get(id)?.controller.abort();
    this.#retry.cancel();
  }

  /** Answers the same message once more, beside the answer that is there. @param {string} [id] the last one if left out */
  regenerate(id = this.conversation.head.leaf ?? "") {
    const answer = this.conversation.find(id);
    if (this.busy || answer === undefined) return;
    this.cancelEdit();
    this.#retry.cancel();
    this.#log.pair = null;
    if (answer.role === "user") return this.#ask(answer.id);
    if (answer.content === "") this.#drop(answer.id); // nothing was said: it is no version of its own
    this.#ask(answer.parent);
  }

  /** Two answers side by side: this one and the next to it, or one more. @param {string} id */
  compare(id) {
    const answer = this.conversation.find(id);
    if (this.busy || answer === undefined) return;
    if (answer.role === "user") return this.#ask(answer.id, 2);
    const siblings = this.conversation.siblings(id);
    const at = siblings.indexOf(id);
    const other = siblings[at + 1] ?? siblings[at - 1];
    if (other === undefined) return this.#ask(answer.parent, 1, id);
    this.#log.pair = at + 1 < siblings.length ? [id, other] : [other, id];
    this.#show();
  }

  /** Ends the comparison with one of the two. @param {string} id */
  choose(id) {
    this.#log.pair = null;
    this.selectVariant(id);
  }

  /** Writes on where an answer ended. @param {string} id */
  continueAnswer(id) {
    const answer = this.conversation.find(id);
    if (this.busy || answer?.role !== "assistant" || answer.content === "") return;
    this.cancelEdit();
    this.#retry.cancel();
    answer.state = "streaming";
    this.#start([answer], answer.id, { continue_final_message: true, add_generation_prompt: false });
  }

  /** Shows another version of a message, and what followed it. @param {string} id */
  selectVariant(id) {
    if (this.conversation.find(id) === undefined) return;
    this.cancelEdit();
    this.conversation.select(id);
    this.#autosave.head(this.conversation);
    this.#show();
  }

  /** The version before or after this one. @param {string} id @param {-1 | 1} step @returns {string | null} its id */
  variantBeside(id, step) {
    const siblings = this.conversation.siblings(id);
    return siblings[siblings.indexOf(id) + step] ?? null;
  }

  /** Removes a message and what followed it. @param {string} id @returns {(() => void) | null} takes it back */
  remove(id) {
    if (this.busy || this.conversation.find(id) === undefined) return null;
    this.cancelEdit();
    const { conversation } = this;
    const before = conversation.records();
    const kept = { head: { ...before.head }, messages: [...before.messages] };
    this.#drop(id);
    this.#show();
    return () => {
      this.#library.write(kept);
      if (this.conversation === conversation) this.#take(new Conversation(kept));
    };
  }

  /** Shows a new, empty conversation. An answer that grows in another one goes on. */
  newChat() {
    this.#take(new Conversation());
    this.#announce(t("chat.new"));
  }

  /**
   * Shows a conversation from the library, at its end or at one of its messages.
   * @param {string} id @param {string | null} [messageId]
   * @returns {Promise<boolean>} false if there is no such conversation
   */
  async open(id, messageId = null) {
    const run = this.#runs.get(id);
    if (run === undefined) {
      const [records] = await Promise.all([this.#library.read(id), loadReading()]);
      if (records === undefined) return false;
      this.#take(new Conversation(records));
    } else this.#take(run.conversation);
    if (messageId !== null) this.goTo(messageId);
    for (const message of this.conversation.records().messages) {
      if (message.role === "assistant" && message.state === "streaming" && run === undefined) this.#rejoin(message);
    }
    return true;
  }

  /** Shows the path through a message and goes there. @param {string} id */
  goTo(id) {
    if (!this.conversation.path().some((message) => message.id === id)) this.selectVariant(id);
    const element = this.#log.dress(id);
    element?.scrollIntoView({ block: "start" });
    element?.focus({ preventScroll: true });
  }

  /** Takes in what another tab has saved of the conversation shown. @param {string} id */
  async refresh(id) {
    const { conversation } = this;
    if (id !== conversation.head.id || this.isBusy(id)) return;
    const records = await this.#library.read(id);
    if (records === undefined || this.conversation !== conversation || this.isBusy(id)) return;
    const changed = conversation.absorb(records);
    if (changed.length === 0) return;
    this.#show();
    for (const each of changed) this.#log.view(each)?.reread();
  }

  /** The reader has named or pinned the conversation in the list. @param {import("../core/conversation.js").Head | undefined} head */
  takeHead(head) {
    const own = this.conversation.head;
    if (head === undefined || head.id !== own.id) return;
    const { title, named, pinned } = head;
    if (title === own.title && named === own.named && pinned === own.pinned) return;
    Object.assign(own, { title, named, pinned });
    this.dispatchEvent(new Event("changed"));
  }

  /** Marks a message as being edited. @param {string} id @returns {Message | null} */
  beginEdit(id) {
    const message = this.conversation.find(id);
    if (this.busy || message?.role !== "user") return null;
    this.#retry.cancel();
    this.editing = id;
    this.#log.markReplaced(id);
    this.dispatchEvent(new Event("edit"));
    return message;
  }

  cancelEdit() {
    if (this.editing === null) return;
    this.#endEdit();
    this.dispatchEvent(new Event("edit-cancelled"));
  }

  #endEdit() {
    if (this.editing === null) return;
    this.editing = null;
    this.#log.markReplaced(null);
    this.dispatchEvent(new Event("edit"));
  }

  /** @param {Conversation} conversation */
  #take(conversation) {
    this.#endEdit(); // the composer keeps it, with the conversation that it belongs to
    this.#retry.forget();
    this.#log.pair = null;
    this.conversation = conversation;
    this.#settings.bind(conversation.head);
    this.#draw();
    this.#follower.toEnd();
    this.dispatchEvent(new Event("opened"));
    this.dispatchEvent(new Event(this.busy ? "busy" : "idle"));
  }

  #show() {
    this.#draw();
    this.dispatchEvent(new Event("changed"));
  }

  #draw() {
    this.#log.show(this.conversation, this.#runs.get(this.conversation.head.id)?.views ?? new Map());
  }

  /** @param {string} id */
  #drop(id) {
    this.#autosave.removed(this.conversation, this.conversation.remove(id));
  }

  /**
   * Asks for answers to a message.
   * @param {string | null} parent @param {number} [count] @param {string | null} [beside] an answer to compare with
   */
  #ask(parent, count = 1, beside = null) {
    const messages = Array.from({ length: count }, () =>
      this.conversation.add(parent, { role: "assistant", content: "", state: "streaming" }),
    );
    if (beside !== null) this.#log.pair = [beside, messages[0].id];
    if (count === 2) this.#log.pair = [messages[0].id, messages[1].id];
    this.#start(messages, parent, count > 1 ? { n: count } : {});
  }

  /** @param {Message[]} messages @param {string | null} end of the path that the model is given @param {Record<string, unknown>} extra */
  #start(messages, end, extra) {
    const body = {
      ...(this.model && { model: this.model }),
      messages: this.conversation.wire(end, this.#settings.system),
      ...this.#settings.request(),
      ...extra,
    };
    // A message notes where its stream can be resumed, and a stream of several choices feeds several messages.
    this.#run(messages, body, (signal) => streamThatFits(body, signal, messages.length === 1));
  }

  /**
   * @param {Message[]} messages @param {Record<string, unknown>} body
   * @param {(signal: AbortSignal) => AsyncGenerator<Piece>} ask @param {boolean} [resumed]
   */
  async #run(messages, body, ask, resumed = false) {
    const { conversation } = this;
    const { id } = conversation.head;
    const views = new Map(messages.map((message) => [message.id, this.#viewOf(message)]));
    /** @type {Run} */
    const run = { conversation, messages, views, controller: new AbortController() };
    this.#runs.set(id, run);
    const claims = messages.map((message) => claim(message.id));
    for (const message of messages) this.#autosave.message(conversation, message);
    this.#show();
    this.#tellRun(run, "busy");
    this.#announce(t("chat.generating"));
    const { messages: _, ...request } = body;
    const error = await runAnswers({
      messages,
      views: [...views.values()],
      pieces: ask(run.controller.signal),
      request,
      resumed,
      signal: run.controller.signal,
      grown: () => this.conversation === conversation && this.#follower.follow(),
      reconnecting: () => this.#announce(t("chat.reconnecting")),
      changed: () => messages.forEach((message) => this.#autosave.growing(conversation, message)),
    });
    this.#runs.delete(id);
    for (const held of claims) held.then((release) => release?.());
    for (const message of messages) if (conversation.find(message.id)) this.#autosave.message(conversation, message);
    this.#tellRun(run, "idle");
    this.#ended(run, error);
  }

  /** @param {Message} message the view on the screen goes on, if there is one */
  #viewOf(message) {
    const view = this.#log.view(message.id);
    if (view === undefined) return new AnswerView(message);
    view.restart();
    return view;
  }

  /** @param {Run} run @param {string} event */
  #tellRun(run, event) {
    if (this.conversation === run.conversation) this.dispatchEvent(new Event(event));
    this.dispatchEvent(new Event("runs"));
  }

  /** @param {Run} run @param {unknown} error */
  #ended(run, error) {
    const [message] = run.messages;
    if (this.conversation === run.conversation) {
      for (const { id } of this.conversation.path()) this.#log.refresh(id);
      this.dispatchEvent(new Event("changed"));
    }
    if (error !== null) return this.#fail(run, error);
    this.#retry.forget();
    const words = message.content.split(/\s+/).filter(Boolean).length;
    this.#announce(t(message.state === "stopped" ? "chat.stopped" : "chat.finished", { n: words }));
  }

  /** @param {Run} run @param {unknown} error */
  #fail(run, error) {
    const { title, detail } = explain(error);
    this.#announce(title);
    const shown = () => this.conversation === run.conversation;
    const [message] = run.messages;
    const again = () => shown() && this.regenerate(message.id);
    const retry = () => {
      this.#retry.forget();
      again();
    };
    const goOn = message.content !== "" && run.messages.length === 1 ? () => this.continueAnswer(message.id) : null;
    for (const view of run.views.values()) view.showProblem({ title, detail, retry, goOn });
    if (!shown()) return;
    if (error instanceof ApiError && error.retryAfter !== null) {
      const [view] = run.views.values();
      this.#retry.after(error.retryAfter, (left) => view.labelRetry(left), again);
    }
    this.#follower.follow();
  }

  /** An answer that was growing when it was last saved: goes on with it, if the server still has it. @param {Message} message */
  async #rejoin(message) {
    const { conversation } = this;
    const release = await claim(message.id);
    if (this.conversation !== conversation || message.state !== "streaming") return release?.();
    if (release === null) {
      const problem = { title: t("chat.elsewhere"), detail: t("chat.elsewhereDetail") };
      return this.#log.view(message.id)?.showProblem(problem);
    }
    release();
    const { stream } = message;
    if (stream === undefined || this.busy) return this.#interrupted(message);
    await this.#run([message], message.facts?.request ?? {}, (signal) => streamOn(stream, signal), true);
  }

  /** @param {Message} message */
  #interrupted(message) {
    message.state = "stopped";
    this.#autosave.message(this.conversation, message);
    const view = this.#log.view(message.id);
    view?.settle();
    view?.showProblem({
      title: t("chat.interrupted"),
      detail: t("chat.interruptedDetail"),
      retry: () => this.regenerate(message.id),
      goOn: message.content === "" ? null : () => this.continueAnswer(message.id),
    });
    this.#log.refresh(message.id);
  }
}
