/** Puts the composer together: its draft, files, commands, counts. */

import { byId } from "../shell/dom.js";
import { t } from "../words/words.js";
import { Composer } from "./composer.js";
import { Drafts } from "./drafts.js";
import { enterKey, showHint } from "./enter_key.js";
import { FileChips } from "./file_chips.js";
import { Attachments } from "./files.js";
import { Gauge } from "./gauge.js";
import { offerFiles } from "./long_paste.js";

/**
 * @typedef {object} Around what the composer needs of the page
 * @property {import("./composer.js").Actions} actions
 * @property {import("./commands.js").CommandPage} commands what slash commands act on
 * @property {(text: string, signal?: AbortSignal) => Promise<number>} count how many tokens a text has
 * @property {(text: string) => void} announce speaks to screen readers
 * @property {(text: string) => void} complain tells the reader what went wrong, such as by a toast
 * @property {Storage | null} storage
 * @property {Storage | null} session
 */

/** @param {Around} around @returns {{composer: Composer, drafts: Drafts}} */
export function mountComposer({ actions, commands, count, announce, complain, storage, session }) {
  const draft = byId("draft");
  const attachments = new Attachments({ count, complain, announce });
  const chips = new FileChips(attachments, {
    list: byId("chips"), button: byId("attach"), picker: byId("file-picker"), draft,
  });
  let told = false;
  const drafts = new Drafts(storage, session, () => {
    if (!told) complain(t("composer.unkept"));
    told = true;
  });
  const composer = new Composer({ draft, button: byId("send"), form: byId("composer") }, actions, {
    drafts,
    files: attachments,
    gauge: new Gauge(byId("gauge"), count, announce),
    commands: new LateCommandList(draft, async () => {
      const { CommandList } = await import("./command_list.js");
      return new CommandList(draft, byId("commands"), commands, announce);
    }),
  });
  chips.wire();
  offerFiles(draft, attachments);
  composer.enterKey = enterKey();
  if (composer.enterKey !== "send") showHint(composer.enterKey);
  return { composer, drafts };
}

/** The list of commands, which comes with the first slash. */
class LateCommandList {
  #draft;
  #make;
  /** @type {import("./command_list.js").CommandList | null} */
  #list = null;
  #coming = false;

  /** @param {HTMLTextAreaElement} draft @param {() => Promise<import("./command_list.js").CommandList>} make */
  constructor(draft, make) {
    this.#draft = draft;
    this.#make = make;
  }

  update() {
    if (this.#list !== null) return this.#list.update();
    if (!this.#draft.value.startsWith("/") || this.#coming) return;
    this.#coming = true;
    this.#make().then(
      (list) => {
        this.#list = list;
        if (this.#coming) list.update();
      },
      () => (this.#coming = false), // commands can be typed without their list
    );
  }

  /** @param {KeyboardEvent} event */
  key(event) {
    if (this.#list !== null) return this.#list.key(event);
    if (event.key !== "Escape" || !this.#coming) return false;
    event.stopPropagation(); // it means the list that is about to come, not the answer
    this.#coming = false;
    return true;
  }

  close() {
    this.#list?.close();
  }
}
