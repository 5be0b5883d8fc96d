/** Wires the parts to the document. */

import { fetchModel } from "./server/api.js";
import { Chat } from "./chat/chat.js";
import { Composer } from "./chat/composer.js";
import { LoadLine } from "./seeing/load.js";
import { Follower } from "./reading/scroll.js";
import { Settings } from "./settings/settings.js";
import { SettingsPanel } from "./settings/panel.js";
import { LogView } from "./chat/view.js";

/** @param {string} id @returns {any} the element, of whatever kind the page says it is */
const byId = (id) => document.getElementById(id);

const settings = new Settings(storage());
const panel = new SettingsPanel(byId("settings"), settings);
const chat = new Chat({
  log: new LogView(byId("log"), byId("welcome")),
  settings,
  follower: new Follower(byId("scroller"), byId("jump")),
  announce: (text) => (byId("status").textContent = text),
});
const composer = new Composer(
  { draft: byId("draft"), button: byId("send"), form: byId("composer") },
  { send: (text) => chat.send(text), stop: () => chat.stop() },
);
const load = new LoadLine(byId("load"));

wireChat();
wireKeys();
load.start();
learnModel();
composer.focus();

function wireChat() {
  chat.addEventListener("busy", () => composer.setBusy(true));
  for (const name of ["busy", "idle"]) chat.addEventListener(name, () => load.start());
  chat.addEventListener("idle", () => composer.setBusy(false));
  chat.addEventListener("edit-cancelled", () => composer.cancelEdit());
  chat.addEventListener("edit", () => (byId("editing").hidden = chat.editing === null));
  byId("new-chat").addEventListener("click", newChat);
  byId("open-settings").addEventListener("click", () => panel.open());
  byId("cancel-edit").addEventListener("click", () => chat.cancelEdit());
  byId("log").addEventListener("click", (event) => {
    const button = event.target.closest(".edit");
    if (button !== null) edit(Number(button.closest(".message").dataset.id));
  });
  byId("examples").addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (button !== null && chat.send(button.textContent)) composer.focus();
  });
}

function wireKeys() {
  document.addEventListener("keydown", (event) => {
    if (byId("settings").open || event.isComposing) return;
    const letter = event.key.toLowerCase();
    if (event.key === "Escape" && chat.busy) chat.stop();
    else if (event.key === "Escape" && chat.editing !== null) chat.cancelEdit();
    else if (event.ctrlKey && event.shiftKey && (letter === "o" || letter === "n")) newChat();
    else return;
    event.preventDefault();
  });
}

function newChat() {
  chat.clear();
  composer.focus();
}

/** @param {number} id */
function edit(id) {
  const text = chat.beginEdit(id);
  if (text !== null) composer.edit(text);
}

/** Asks until the server is there: it may still be loading its model. */
async function learnModel(wait = 500) {
  try {
    const model = await fetchModel();
    chat.model = model.id;
    settings.recommend(model.samplingDefaults);
    byId("model").textContent = model.id;
    byId("model").title = model.id;
    const room = model.contextLength?.toLocaleString("en");
    panel.describeModel(room === undefined ? model.id : `${model.id}, ${room} tokens of context`);
  } catch {
    byId("model").textContent = "waiting for the server";
    setTimeout(() => learnModel(Math.min(wait * 2, 5000)), wait);
  }
}

/** @returns {Storage | null} null where the browser forbids it */
function storage() {
  try {
    return localStorage;
  } catch {
    return null;
  }
}
