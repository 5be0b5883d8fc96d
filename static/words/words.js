/**
 * Every word that the page says, by key. English is in `en/`, one file for each folder of the page; another
 * language is another folder with the same files. What a translation lacks is said in English.
 *
 * A message is a text with `{names}` for values, or an object of such texts by plural category (`one`,
 * `other`, ...), chosen by the value `n`.
 */

import { messages as english } from "./en/all.js";

/** @typedef {string | Record<string, string>} Word */

/** The languages that have a folder. */
export const LANGUAGES = ["en"];

const RIGHT_TO_LEFT = /^(ar|arc|ckb|dv|fa|he|ks|ku|ps|sd|ug|ur|yi)\b/;

/** @type {Record<string, Word>} */
let words = english;
let language = "en";
let plurals = new Intl.PluralRules("en");

/**
 * @param {string} key @param {Record<string, string | number>} [values]
 * @returns {string} the key itself if there is no such message
 */
export function t(key, values = {}) {
  const word = words[key] ?? english[key];
  if (word === undefined) return key;
  const text = typeof word === "string" ? word : (word[plurals.select(Number(values.n))] ?? word.other);
  return text.replace(/\{(\w+)\}/g, (_, name) => {
    const value = values[name];
    return typeof value === "number" ? value.toLocaleString(language) : String(value ?? `{${name}}`);
  });
}

/** The language that is spoken now, for dates and numbers. */
export function spokenLanguage() {
  return language;
}

/** Takes another language's messages. @param {string} name @param {Record<string, Word>} messages */
export function speak(name, messages) {
  words = messages;
  language = name;
  plurals = new Intl.PluralRules(name);
  document.documentElement.lang = name;
  document.documentElement.dir = RIGHT_TO_LEFT.test(name) ? "rtl" : "ltr";
}

/**
 * Loads the first of the reader's languages that there is, and writes it into the page. Call it before
 * anything asks for a word.
 * @param {readonly string[]} wanted
 */
export async function chooseLanguage(wanted) {
  const names = wanted.flatMap((name) => [name, name.split("-")[0]]);
  const found = names.find((name) => LANGUAGES.includes(name)) ?? "en";
  if (found === "en") return; // as the page is written
  speak(found, (await import(`./${found}/all.js`)).messages);
  translate(document);
}

/** Writes the messages into the page: `data-t` into the text, `data-t-NAME` into the attribute NAME. @param {ParentNode} root */
export function translate(root) {
  for (const element of root.querySelectorAll("*")) {
    for (const { name, value } of [...element.attributes]) {
      if (name === "data-t") element.textContent = t(value);
      else if (name.startsWith("data-t-")) element.setAttribute(name.slice("data-t-".length), t(value));
    }
    if (element instanceof HTMLTemplateElement) translate(element.content);
  }
}
