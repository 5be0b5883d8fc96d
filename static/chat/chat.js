/** What the reader can do with conversations: send, stop, regenerate, continue, edit, compare, delete, open. */

import { Conversation } from "../core/conversation.js";
import { t } from "../words/words.js";
import { Asking } from "./asking.js";
import { loadReading } from "./lazy_reading.js";

/**
 * @typedef {import("../core/conversation.js").Message} Message
 * @typedef {import("../core/conversation.js").TextFile} TextFile
 * @typedef {import("../keep/library.js").Library} Library
 * @typedef {import("../settings/settings.js").Settings} Settings
 * @typedef {import("../reading/scroll.js").Follower} Follower
 * @typedef {import("./view.js").LogView} LogView
 * @typedef {import("./autosave.js").Autosave} Autosave
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
  /** What is being read from the library, to be shown then. @type {object | null} */
  #opening = null;
  #asking;
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
    this.#asking = new Asking(this, { log, settings, announce, autosave }, () => this.#show());
    settings.bind(this.conversation.head);
  }

  get busy() {
    return this.isBusy(this.conversation.head.id);
  }

  /** @param {string} id whether an answer of this conversation grows */
  isBusy(id) {
    return this.#asking.runs.get(id) !== undefined;
  }

  /** How many answers of this page are on their way. */
  get rows() {
    return this.#asking.runs.rows;
  }

  /**
   * Takes a new message, or the new words of an edited one.
   * @param {string} text @param {TextFile[]} [files]
   * @returns {boolean} whether it was taken; if not, it should stay in the composer
   */
  send(text, files = []) {
    if (this.busy) return false;
    this.#asking.retry.forget();
    const edited = this.conversation.find(this.editing);
    this.#endEdit();
    this.#settings.settle();
    const parent = edited ? edited.parent : this.conversation.head.leaf;
    const message = this.conversation.add(parent, {
      role: "user", content: text.trim(), ...(files.length > 0 && { files }),
    });
    this.#autosave.message(this.conversation, message);
    this.#asking.ask(message.id);
    const element = this.#log.find(message.id);
    if (element !== null) this.#follower.toMessage(element);
    return true;
  }

  /**
   * Ends the answer that grows; what is there of it stays.
   * @param {string} [id] of another conversation @returns {Promise<void>} when it is kept
   */
  stop(id = this.conversation.head.id) {
    if (id === this.conversation.head.id) this.#asking.retry.cancel();
    return this.#asking.runs.stop(id);
  }

  /** Answers the same message once more, beside the answer that is there. @param {string} [id] the last one if left out */
  regenerate(id = this.conversation.head.leaf ?? "") {
    const answer = this.conversation.find(id);
    if (this.busy || answer === undefined) return;
    this.cancelEdit();
    if (answer.role === "user") return this.#asking.ask(answer.id);
    this.#asking.dropUnsaid([answer]);
    this.#asking.ask(answer.parent);
  }

  /** Two answers side by side: this one and the next to it, or one more. @param {string} id */
  compare(id) {
    const answer = this.conversation.find(id);
    if (this.busy || answer === undefined) return;
    if (answer.role === "user") return this.#asking.ask(answer.id, 2);
    const siblings = this.conversation.siblings(id);
    const at = siblings.indexOf(id);
    const other = siblings[at + 1] ?? siblings[at - 1];
    if (other === undefined) return this.#asking.ask(answer.parent, 1, id);
    this.#log.pair = at + 1 < siblings.length ? [id, other] : [other, id];
    this.#show();
  }

  /** Ends the comparison with one of the two. @param {string} id */
  choose(id) {
    this.selectVariant(id);
  }

  /** Writes on where an answer ended. @param {string} id */
  continueAnswer(id) {
    const answer = this.conversation.find(id);
    if (this.busy || answer?.role !== "assistant" || answer.content === "") return;
    this.cancelEdit();
    this.#asking.goOn(answer);
  }

  /** Shows another version of a message, and what followed it. @param {string} id */
  selectVariant(id) {
    if (this.conversation.find(id) === undefined) return;
    this.cancelEdit();
    this.#asking.retry.cancel();
    this.#log.pair = null;
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
    this.#asking.retry.cancel();
    this.#log.pair = null;
    const { conversation } = this;
    const { head: { id: of, leaf } } = conversation;
    const { messages } = conversation.records();
    const gone = this.#autosave.remove(conversation, id);
    this.#show();
    const undo = { messages: messages.filter((message) => gone.includes(message.id)), order: messages.map((message) => message.id), leaf };
    return () => this.#putBack(of, undo);
  }

  /**
   * Takes a removal back; what has been said since stays.
   * @param {string} of the conversation's id
   * @param {{messages: Message[], order: string[], leaf: string | null}} undo
   */
  #putBack(of, { messages, order, leaf }) {
    for (const message of messages) this.#library.writeMessage(of, message);
    const run = this.#asking.runs.get(of);
    const conversation = run?.conversation ?? this.conversation;
    if (conversation.head.id !== of) return;
    conversation.putBack(messages, order);
    if (run === undefined) conversation.head.leaf = leaf;
    this.#autosave.head(conversation);
    if (conversation === this.conversation) this.#show();
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
    this.stay();
    if (id !== this.conversation.head.id && !(await this.#load(id))) return false;
    if (messageId !== null && id === this.conversation.head.id) this.goTo(messageId);
    return true;
  }

  /** What was about to be opened is not wanted any more. */
  stay() {
    this.#opening = null;
  }

  /** @param {string} id @returns {Promise<boolean>} false if there is no such conversation */
  async #load(id) {
    const opening = (this.#opening = {});
    const [records] = await Promise.all([this.isBusy(id) ? undefined : this.#library.read(id), loadReading()]);
    if (this.#opening !== opening) return true; // the reader has gone elsewhere meanwhile
    const run = this.#asking.runs.get(id);
    if (run === undefined && records === undefined) return false;
    this.#take(run?.conversation ?? new Conversation(records));
    if (run !== undefined) return true;
    for (const message of this.conversation.records().messages) {
      if (message.role === "assistant" && message.state === "streaming") this.#asking.rejoin(message);
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
    if (id !== conversation.head.id || this.#missed(id)) return;
    const records = await this.#library.read(id);
    if (records === undefined || this.conversation !== conversation || this.#missed(id)) return;
    const before = JSON.stringify(conversation.head);
    const changed = conversation.absorb(records);
    const head = JSON.stringify(conversation.head) !== before;
    if (head) this.#settings.bind(conversation.head);
    if (changed.length > 0) this.#show();
    else if (head) this.dispatchEvent(new Event("changed"));
    for (const each of changed) this.#log.view(each)?.reread();
  }

  /** Notes that a busy conversation was changed elsewhere: it is looked at later. @param {string} id */
  #missed(id) {
    const run = this.#asking.runs.get(id);
    if (run !== undefined) run.missed = true;
    return run !== undefined;
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
    this.#asking.retry.cancel();
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
    this.stay();
    this.#endEdit(); // the composer keeps it, with the conversation that it belongs to
    this.#asking.retry.forget();
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
    this.#log.show(this.conversation, this.#asking.runs.get(this.conversation.head.id)?.views ?? new Map());
    const last = this.conversation.find(this.conversation.head.leaf);
    if (last?.role === "assistant" && last.state === "failed") this.#asking.tellFailed(last);
  }
}
