/** Slash commands. Their replies are notes of the console, never part of the conversation. */

/** @typedef {import("../settings/settings.js").Settings} Settings */

export const HELP = [
  "/temperature [x]  show or set, 0 to 2",
  "/topk [n]         show or set, 0 is off",
  "/clear            start a new chat",
  "/help             this list",
].join("\n");

/** @type {Record<string, string>} */
const SETTERS = { "/temperature": "temperature", "/topk": "top_k" };

/** @param {string} text as typed @returns {boolean} whether it is a command and not a message */
export function isCommand(text) {
  return text.startsWith("/");
}

/**
 * @param {string} text
 * @param {{settings: Settings, clear: () => void}} page
 * @returns {{note: string, known: boolean}} an empty note says nothing
 */
export function runCommand(text, { settings, clear }) {
  const [name, ...values] = text.trim().split(/\s+/);
  const command = name.toLowerCase();
  if (command === "/clear") {
    clear();
    return { note: "", known: true };
  }
  if (command === "/help") return { note: HELP, known: true };
  if (Object.hasOwn(SETTERS, command)) {
    return { note: setOrShow(settings, SETTERS[command], values.join(" ")), known: true };
  }
  const hint = "/help lists the commands. To send a message that begins with a slash, put a space before it.";
  return { note: `There is no command ${name}. ${hint}`, known: false };
}

/** @param {Settings} settings @param {string} field @param {string} value */
function setOrShow(settings, field, value) {
  const problem = value === "" ? "" : settings.set(field, value);
  if (problem !== "") return problem;
  const now = settings.get(field);
  return `${field} is ${now ?? "the server's default"}`;
}
