/** Puts the parts of the page together. */

import { wireAddress } from "./chat/address.js";
import { Autosave } from "./chat/autosave.js";
import { Chat } from "./chat/chat.js";
import { lastQuestion, wireChatKeys } from "./chat/chat_keys.js";
import { isCommand, runCommand } from "./chat/commands.js";
import { prepare } from "./chat/lazy_reading.js";
import { learnModel } from "./chat/learn_model.js";
import { tellMishaps } from "./chat/mishaps.js";
import { mountComposer } from "./chat/mount_composer.js";
import { LogView } from "./chat/view.js";
import { Library } from "./keep/library.js";
import { Sidebar } from "./keep/sidebar.js";
import { Follower } from "./reading/scroll.js";
import { LoadLine } from "./seeing/load.js";
import { countTokens } from "./server/api.js";
import { followOtherTabs } from "./settings/follow.js";
import { Presets } from "./settings/presets.js";
import { Settings } from "./settings/settings.js";
import { byId } from "./shell/dom.js";
import { mountFrame } from "./shell/frame.js";
import { install } from "./shell/install.js";
import { loadStyle } from "./shell/style.js";
import { announce, toast } from "./shell/toast.js";
import { chooseLanguage, t } from "./words/words.js";

tellMishaps();
await chooseLanguage(navigator.languages);

const layout = mountFrame();
const local = storage(() => localStorage);
const library = await Library.open();
const settings = new Settings(local);
const presets = new Presets(settings, local);
const log = new LogView(byId("log"), byId("welcome"), byId("scroller"));
const autosave = new Autosave(library);
const load = new LoadLine(byId("load"));
const chat = new Chat({
  log,
  settings,
  follower: new Follower(byId("scroller"), byId("jump")),
  announce,
  library,
  autosave,
});
/** @type {import("./settings/panel.js").SettingsPanel | null} */
let panel = null;
let about = "";
let contextLength = /** @type {number | null} */ (null);

const commands = {
  settings,
  presets,
  clear: () => chat.newChat(),
  regenerate: () => chat.regenerate(),
  continueAnswer: () => chat.continueAnswer(chat.conversation.head.leaf ?? ""),
  exportAs,
  showStats: () => layout.toggle("engine", true),
};
const { composer, drafts } = mountComposer({
  actions: { send, stop: () => chat.stop(), editLast: () => edit(lastQuestion(chat)?.id ?? "") },
  commands,
  count: (prompt, signal) => countTokens({ prompt }, { signal }),
  announce,
  complain: (text) => toast(text, { kind: "problem" }),
  storage: local,
  session: storage(() => sessionStorage),
});

const sidebar = new Sidebar(byId("sidebar"), {
  library,
  open: async (id, messageId) => {
    if (!(await chat.open(id, messageId))) toast(t("chat.notThere"), { kind: "problem" });
    layout.closeOverlays();
    if (messageId === null) composer.focus();
  },
  newChat,
  currentId: () => (chat.conversation.empty ? null : chat.conversation.head.id),
  isBusy: (id) => chat.isBusy(id),
  stop: (id) => chat.stop(id),
});

wireChat();
wireLibrary();
wireSettings();
wireEngine();
wireChatKeys(chat, { newChat, edit, remove: removeChat, find: findChat });
load.start();
await wireAddress(chat);
learnModel((model) => {
  chat.model = model.id;
  contextLength = model.contextLength;
  settings.recommend(model.samplingDefaults);
  const tokens = model.contextLength;
  about = tokens === null ? model.id : t("chat.about", { model: model.id, n: tokens });
  panel?.describeModel(about);
  showContext();
});
composer.focus();
byId("draft").addEventListener("input", prepare, { once: true });
install();

/** @param {string} text @param {import("./core/conversation.js").TextFile[]} files */
function send(text, files) {
  if (!isCommand(text) || chat.editing !== null) return chat.send(text, files);
  const { note, known } = runCommand(text, commands);
  if (note !== "") {
    log.addNote(note);
    announce(note);
  }
  return known;
}

function wireChat() {
  for (const name of ["busy", "idle"]) {
    chat.addEventListener(name, () => {
      composer.setBusy(chat.busy);
      load.start();
    });
  }
  chat.addEventListener("edit-cancelled", dropEdit);
  chat.addEventListener("edit", () => (byId("editing").hidden = chat.editing === null));
  const followConversation = () => {
    sidebar.mark();
    const { head, empty } = chat.conversation;
    composer.setConversation(empty ? null : head.id);
    document.title = head.title === "" ? t("chat.page") : t("chat.pageOf", { title: head.title });
    showContext();
  };
  chat.addEventListener("opened", () => {
    followConversation();
    goOnEditing();
  });
  chat.addEventListener("changed", followConversation);
  for (const name of ["opened", "changed"]) chat.addEventListener(name, needTools);
  chat.addEventListener("runs", () => sidebar.mark());
  byId("new-chat").addEventListener("click", newChat);
  byId("model").addEventListener("click", async () => (await import("./chat/model_dialog.js")).openModelDialog());
  byId("cancel-edit").addEventListener("click", () => chat.cancelEdit());
  byId("examples").addEventListener("click", (/** @type {Event} */ event) => {
    const button = /** @type {HTMLElement} */ (event.target).closest("button");
    if (button !== null && chat.send(button.textContent ?? "")) composer.focus();
  });
}

/** An edit ends without being sent: what was typed can be had back. */
function dropEdit() {
  const left = composer.cancelEdit();
  const message = chat.conversation.find(left?.message ?? null);
  if (left === null || left.text === message?.content || left.text.trim() === "") return;
  const undo = () => {
    if (chat.beginEdit(left.message) !== null) composer.edit(left.text, { message: left.message, files: message?.files });
    else composer.fill([composer.text, left.text].filter(Boolean).join("\n"));
  };
  toast(t("chat.editDropped"), { action: { label: t("chat.undo"), run: undo } });
}

/** The buttons at messages work as soon as there is a message. */
function needTools() {
  if (chat.conversation.empty) return;
  for (const name of ["opened", "changed"]) chat.removeEventListener(name, needTools);
  import("./chat/tools.js").then(({ wireTools }) => wireTools(chat, log, { announce, edit }));
}

/** A reload, or a look at another conversation, does not end an edit. */
function goOnEditing() {
  const kept = composer.keptEdit;
  if (kept === null) return;
  if (chat.beginEdit(kept.message) === null) {
    const gone = chat.conversation.find(kept.message) === undefined; // its words are kept all the same
    if (gone) composer.fill([composer.text, kept.text].filter(Boolean).join("\n"));
    return;
  }
  composer.edit(kept.text, { message: kept.message, files: chat.conversation.find(kept.message)?.files });
}

function wireLibrary() {
  library.addEventListener("change", async (event) => {
    const { id, elsewhere, removed } = /** @type {CustomEvent} */ (event).detail;
    if (removed) drafts.setAside(id);
    else drafts.bringBack(id);
    if (removed && elsewhere) chat.stop(id);
    if (id !== chat.conversation.head.id) return;
    if (removed && elsewhere) {
      toast(t("chat.deletedElsewhere"));
      const typed = composer.text;
      chat.newChat();
      if (composer.text === "" && typed !== "") composer.fill(typed);
    } else if (elsewhere) await chat.refresh(id);
    else if (!removed) chat.takeHead(await library.head(id));
  });
  library.addEventListener("problem", (event) => {
    const { message } = /** @type {CustomEvent} */ (event).detail;
    toast(message, { kind: "problem", action: { label: t("chat.export"), run: () => exportAs("json") } });
  });
}

function wireSettings() {
  followOtherTabs(settings, presets);
  settings.addEventListener("kept", () => autosave.head(chat.conversation));
  settings.addEventListener("unkept", () => toast(t("chat.settingsUnkept"), { kind: "problem" }));
  byId("open-settings").addEventListener("click", async () => {
    panel ??= await makePanel();
    panel.open();
  });
}

async function makePanel() {
  const [{ SettingsPanel }, { pageSection }, { enterKeySection }] = await Promise.all([
    import("./settings/panel.js"),
    import("./shell/theme.js"),
    import("./chat/enter_key.js"),
    loadStyle(new URL("styles/settings.css", import.meta.url)),
  ]);
  const made = new SettingsPanel(byId("settings"), settings, { presets, announce });
  made.addSection(pageSection());
  made.addSection(enterKeySection(composer));
  made.describeModel(about);
  return made;
}

/** The live panel comes with its first opening. */
function wireEngine() {
  /** @type {import("./seeing/panel.js").LivePanel | null} */
  let live = null;
  const follow = async () => {
    const open = layout.isOpen("engine");
    if (open && live === null) {
      const [{ LivePanel }, { watchStats }] = await Promise.all([import("./seeing/panel.js"), import("./server/watch.js")]);
      live ??= new LivePanel(byId("engine"), {
        watch: watchStats,
        mine: () => chat.rows,
        told: (stats) => load.tell(stats),
      });
    }
    if (layout.isOpen("engine")) live?.open();
    else live?.close();
  };
  layout.addEventListener("engine", follow);
  follow();
}

function newChat() {
  chat.newChat();
  composer.focus();
}

/** @param {string} id */
function edit(id) {
  const message = chat.beginEdit(id);
  if (message !== null) composer.edit(message.content, { message: id, files: message.files });
}

async function removeChat() {
  const { id } = chat.conversation.head;
  await chat.stop();
  const records = await library.remove(id);
  newChat();
  if (records === undefined) return;
  const undo = async () => {
    await library.write(records);
    await chat.open(id);
  };
  toast(t("chat.chatDeleted"), { action: { label: t("chat.undo"), run: undo } });
}

function findChat() {
  layout.toggle("sidebar", true);
  sidebar.focusSearch();
}

/** @param {"md" | "json"} format */
async function exportAs(format) {
  const { toJson, toMarkdown } = await import("./keep/formats.js");
  const { download } = await import("./keep/download.js");
  const records = chat.conversation.records();
  if (format === "json") download(`${records.head.title}.json`, "application/json", toJson([records]));
  else download(`${records.head.title}.md`, "text/markdown", toMarkdown(records));
}

/** How much of the model's context the conversation takes: what its last answer was told of it. */
function showContext() {
  const last = chat.conversation.path().findLast(({ facts }) => facts?.promptTokens != null)?.facts;
  const used = last ? (last.promptTokens ?? 0) + (last.completionTokens ?? 0) : null;
  composer.setContext({ used: chat.conversation.empty ? 0 : used, limit: contextLength });
}

/** @param {() => Storage} find @returns {Storage | null} null where the browser forbids it */
function storage(find) {
  try {
    return find();
  } catch {
    return null;
  }
}
