/** Asks for answers: the requests of the conversation shown, how they end, and what can be done if they fail. */

import { ApiError, explain } from "../server/errors.js";
import { t } from "../words/words.js";
import { AnswerView } from "./answer_view.js";
import { claim } from "./claims.js";
import { Retry } from "./retry.js";
import { Run, Runs } from "./runs.js";
import { streamOn, streamThatFits } from "./streams.js";

/**
 * @typedef {import("../core/conversation.js").Message} Message
 *
 * @typedef {object} Page
 * @property {import("./view.js").LogView} log
 * @property {import("../settings/settings.js").Settings} settings
 * @property {(text: string) => void} announce
 * @property {import("./autosave.js").Autosave} autosave
 */

export class Asking {
  retry = new Retry();
  runs;
  #chat;
  #log;
  #settings;
  #announce;
  #autosave;
  #show;

  /** @param {import("./chat.js").Chat} chat @param {Page} page @param {() => void} show the chat has other messages */
  constructor(chat, { log, settings, announce, autosave }, show) {
    this.#chat = chat;
    this.#log = log;
    this.#settings = settings;
    this.#announce = announce;
    this.#autosave = autosave;
    this.#show = show;
    this.runs = new Runs(autosave);
  }

  /**
   * Asks for answers to a message.
   * @param {string | null} parent @param {number} [count] @param {string | null} [beside] an answer to compare with
   */
  ask(parent, count = 1, beside = null) {
    const messages = Array.from({ length: count }, () =>
      this.#chat.conversation.add(parent, { role: "assistant", content: "", state: "streaming" }),
    );
    this.#log.pair = null;
    if (beside !== null && this.#chat.conversation.find(beside)) this.#log.pair = [beside, messages[0].id];
    if (count === 2) this.#log.pair = [messages[0].id, messages[1].id];
    const again = () => {
      this.dropUnsaid(messages);
      this.ask(parent, count, beside);
    };
    this.#start(messages, parent, count > 1 ? { n: count } : {}, again);
  }

  /** Writes on where an answer ended. @param {Message} answer */
  goOn(answer) {
    answer.state = "streaming";
    const again = () => this.#chat.regenerate(answer.id);
    this.#start([answer], answer.id, { continue_final_message: true, add_generation_prompt: false }, again);
  }

  /** Answers in which nothing was said, and to which nothing was said, are no versions of their own. @param {Message[]} answers */
  dropUnsaid(answers) {
    for (const { id, content } of answers) {
      if (content === "" && this.#chat.conversation.children(id).length === 0) this.#autosave.remove(this.#chat.conversation, id);
    }
  }

  /**
   * @param {Message[]} messages @param {string | null} end of the path that the model is given
   * @param {Record<string, unknown>} extra @param {() => void} again asks once more
   */
  #start(messages, end, extra, again) {
    const request = { ...(this.#chat.model && { model: this.#chat.model }), ...this.#settings.request(), ...extra };
    const body = { ...request, messages: this.#chat.conversation.wire(end, this.#settings.system) };
    // A message notes where its stream can be resumed, and a stream of several choices feeds several messages.
    const ask = (/** @type {AbortSignal} */ signal) => streamThatFits(body, signal, messages.length === 1);
    this.#run({ messages, request, ask, again });
  }

  /** @param {import("./runs.js").Job} job */
  async #run(job) {
    const { conversation } = this.#chat;
    this.retry.cancel();
    const run = new Run(conversation, job, new Map(job.messages.map((message) => [message.id, this.#viewOf(message)])));
    this.runs.begin(run);
    this.#show();
    this.#tellRun(run, "busy");
    this.#announce(t("chat.generating"));
    const error = await this.runs.follow(run, {
      reconnecting: () => this.#announce(t("chat.reconnecting")),
    });
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
    if (this.#chat.conversation === run.conversation) this.#chat.dispatchEvent(new Event(event));
    this.#chat.dispatchEvent(new Event("runs"));
  }

  /** @param {Run} run @param {unknown} error */
  #ended(run, error) {
    const [message] = run.messages;
    if (this.#chat.conversation === run.conversation) {
      for (const { id } of this.#chat.conversation.path()) this.#log.refresh(id);
      this.#chat.dispatchEvent(new Event("changed"));
    }
    if (run.missed) this.#chat.refresh(run.conversation.head.id);
    if (error !== null) return this.#fail(run, error);
    if (this.#chat.conversation === run.conversation) this.retry.forget();
    const words = message.content.split(/\s+/).filter(Boolean).length;
    this.#announce(t(message.state === "stopped" ? "chat.stopped" : "chat.finished", { n: words }));
  }

  /** @param {Run} run @param {unknown} error */
  #fail(run, error) {
    const { title, detail } = explain(error);
    this.#announce(title);
    const shown = () => this.#chat.conversation === run.conversation;
    const [message] = run.messages;
    const again = () => {
      if (!shown() || this.#chat.busy) return;
      this.#chat.cancelEdit();
      if (run.inVain) this.#chat.continueAnswer(message.id);
      else run.job.again();
    };
    const retry = () => {
      this.retry.forget();
      again();
    };
    const whole = message.content === "" || run.messages.length > 1 || run.inVain;
    const goOn = whole ? null : () => this.#chat.continueAnswer(message.id);
    for (const view of run.views.values()) view.showProblem({ title, detail, retry, goOn });
    if (!shown()) return;
    this.#retryLater(run, error, again);
  }

  /** @param {Run} run @param {unknown} error @param {() => void} again */
  #retryLater(run, error, again) {
    const [view] = run.views.values();
    if (!(error instanceof ApiError)) return;
    const tell = (/** @type {number} */ left) => view.labelRetry(left);
    if (error.retryAfter !== null) this.retry.after(error.retryAfter, tell, again);
    else if (error.kind === "unreachable" && !navigator.onLine) this.retry.whenOnline(again);
    else if (error.kind === "unreachable" && this.retry.made > 0) this.retry.after(1, tell, again); // hardly back yet
  }

  /** An answer that failed in an earlier life of the page. @param {Message} message */
  tellFailed(message) {
    const view = this.#log.view(message.id);
    if (view === undefined || view.troubled) return;
    view.showProblem({ title: t("chat.failed"), detail: t("chat.failedDetail"), ...this.#remedies(message) });
  }

  /** @param {Message} message */
  #remedies({ id, content }) {
    return { retry: () => this.#chat.regenerate(id), goOn: content === "" ? null : () => this.#chat.continueAnswer(id) };
  }

  /** An answer that was growing when it was last saved: goes on with it, if the server still has it. @param {Message} message */
  async rejoin(message) {
    const { conversation } = this.#chat;
    const over = () => this.#chat.conversation !== conversation || message.state !== "streaming";
    let held = await claim(message.id);
    if (held === null) {
      if (over()) return;
      const problem = { title: t("chat.elsewhere"), detail: t("chat.elsewhereDetail") };
      this.#log.view(message.id)?.showProblem(problem);
      held = await claim(message.id, true);
    }
    // The tab that wrote it may have come to the end since it was read here.
    await this.#chat.refresh(conversation.head.id);
    const { stream } = message;
    if (!over() && stream !== undefined && !this.#chat.busy) {
      const again = () => this.#chat.regenerate(message.id);
      const request = stream.request ?? message.facts?.request ?? {};
      const ask = (/** @type {AbortSignal} */ signal) => streamOn(stream, signal);
      return this.#run({ messages: [message], request, ask, again, resumed: true, held });
    }
    held?.();
    if (!over()) this.#interrupted(message);
  }

  /** @param {Message} message */
  #interrupted(message) {
    message.state = "stopped";
    this.#autosave.message(this.#chat.conversation, message);
    const view = this.#log.view(message.id);
    view?.settle();
    view?.showProblem({ title: t("chat.interrupted"), detail: t("chat.interruptedDetail"), ...this.#remedies(message) });
    this.#log.refresh(message.id);
  }
}
