/**
 * Slash commands: one table, from which the help and the list above the composer are made. Their replies are
 * notes of the console, never part of the conversation.
 */

import { t } from "../words/words.js";
import { write } from "../settings/fields.js";

/**
 * @typedef {import("../settings/settings.js").Settings} Settings
 * @typedef {import("../settings/presets.js").Presets} Presets
 *
 * @typedef {object} CommandPage what commands act on; one whose action is missing does not exist
 * @property {Settings} settings
 * @property {Presets} [presets]
 * @property {() => void} clear starts a new conversation
 * @property {() => void} [regenerate]
 * @property {() => void} [continueAnswer]
 * @property {(format: "md" | "json") => void} [exportAs]
 * @property {() => void} [showStats] opens the live panel
 *
 * @typedef {object} Command
 * @property {string} name with its slash; its description is `command.NAME`
 * @property {string} [argument] key of how its argument is called
 * @property {(page: CommandPage) => string[]} [options] what its argument can be
 * @property {keyof CommandPage} [needs]
 * @property {(page: CommandPage, argument: string) => string} run gives back what to say
 */

const UNSET = ["default", "off"]; // take a setting back

/** @type {Command[]} */
const COMMANDS = [
  ...[["temperature", "temperature"], ["topk", "top_k"], ["topp", "top_p"], ["max", "max_tokens"], ["seed", "seed"]].map(
    ([name, field]) => ({
      name: `/${name}`,
      argument: "command.number",
      run: (/** @type {CommandPage} */ { settings }, /** @type {string} */ value) => setOrShow(settings, field, value),
    }),
  ),
  { name: "/system", argument: "command.text", run: ({ settings }, text) => setSystem(settings, text) },
  {
    name: "/preset", argument: "command.name", needs: "presets", run: usePreset,
    options: ({ presets }) => presets?.list().map(({ name }) => name) ?? [],
  },
  { name: "/regenerate", needs: "regenerate", run: (page) => act(page.regenerate) },
  { name: "/continue", needs: "continueAnswer", run: (page) => act(page.continueAnswer) },
  { name: "/new", run: (page) => act(page.clear) },
  { name: "/clear", run: (page) => act(page.clear) },
  {
    name: "/export", argument: "command.format", needs: "exportAs", run: exportChat,
    options: () => ["md", "json"],
  },
  { name: "/stats", needs: "showStats", run: (page) => act(page.showStats) },
  { name: "/help", run: (page) => helpText(page) },
];

/** The commands that this page has. @param {CommandPage} page */
export function commandsOf(page) {
  return COMMANDS.filter(({ needs }) => needs === undefined || page[needs] !== undefined);
}

/** @param {Command} command @returns {string} as it is written, with its argument */
export function usage({ name, argument }) {
  return argument === undefined ? name : `${name} [${t(argument)}]`;
}

/** @param {Command} command */
export function describe({ name }) {
  return t(`command.${name.slice(1)}`);
}

/** @param {string} text as typed @returns {boolean} whether it is a command and not a message */
export function isCommand(text) {
  return text.startsWith("/");
}

/**
 * @param {string} text
 * @param {CommandPage} page
 * @returns {{note: string, known: boolean}} an empty note says nothing
 */
export function runCommand(text, page) {
  const [, typed, argument] = /** @type {RegExpMatchArray} */ (text.trim().match(/^(\S*)\s*([^]*)$/));
  const command = commandsOf(page).find(({ name }) => name === typed.toLowerCase());
  if (command === undefined) return { note: t("command.unknown", { name: typed }), known: false };
  return { note: command.run(page, argument), known: true };
}

/** @param {CommandPage} page */
function helpText(page) {
  const commands = commandsOf(page);
  const width = Math.max(...commands.map((command) => usage(command).length));
  const lines = commands.map((command) => `${usage(command).padEnd(width)}  ${describe(command)}`);
  return [...lines, "", t("command.slash")].join("\n");
}

/** @param {(() => void) | undefined} action */
function act(action) {
  action?.();
  return "";
}

/** @param {Settings} settings @param {string} field @param {string} value */
function setOrShow(settings, field, value) {
  const scope = settings.bound ? "chat" : "all";
  const text = UNSET.includes(value.toLowerCase()) ? "" : value;
  const problem = value === "" ? "" : settings.set(field, text, scope);
  if (problem !== "") return problem;
  const now = settings.get(field);
  return now === undefined
    ? t("command.default", { field })
    : t("command.is", { field, value: write(field, now) });
}

/** @param {Settings} settings @param {string} text */
function setSystem(settings, text) {
  const off = UNSET.includes(text.trim().toLowerCase());
  if (text.trim() !== "") settings.setSystem(off ? "" : text, settings.bound ? "chat" : "all");
  return settings.system === "" ? t("command.no_system") : t("command.system_is", { text: settings.system });
}

/** @type {Command["run"]} */
function usePreset({ settings, presets }, name) {
  const names = presets?.list().map((preset) => preset.name).join(", ") ?? "";
  if (name.trim() === "") return t("command.presets", { names });
  const preset = presets?.named(name);
  if (preset === undefined) return t("command.no_preset", { name: name.trim(), names });
  presets?.apply(preset.id, settings.bound ? "chat" : "all");
  return t("command.preset_is", { name: preset.name });
}

/** @type {Command["run"]} */
function exportChat({ exportAs }, argument) {
  const format = argument.trim().toLowerCase() || "md";
  if (format !== "md" && format !== "json") return t("command.no_format", { format });
  exportAs?.(format);
  return "";
}
