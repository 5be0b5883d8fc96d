/** Files that go with a message: read as text here, never uploaded as such. */

import { t } from "../words/words.js";

/** @typedef {import("../core/conversation.js").TextFile} TextFile */

const MOST_BYTES = 512 * 1024; // of one file
export const MOST_FILES = 20;

/** What the file picker offers first; anything else that turns out to be text is taken, too. */
export const ACCEPT = [
  "text/*", "application/json", "application/xml",
  ...("md markdown csv tsv log json jsonl ndjson yaml yml toml ini cfg conf env xml svg html css js mjs ts tsx jsx py "
    + "rb rs go java kt swift c h cpp hpp cc cs sh bash zsh ps1 sql tex rst txt diff patch ipynb proto lua r pl php")
    .split(" ").map((ending) => `.${ending}`),
].join(",");

/** Begins files that are no text, however they are named. */
const BINARY_BEGINNINGS = ["%PDF-", "PK\u0003\u0004", "\u0089PNG", "GIF8", "\u00ff\u00d8\u00ff", "\u007fELF", "\u001f\u008b"];

const CONTROL = /[\u0001-\u0008\u000b\u000e-\u001a\u001c-\u001f]/g; // tab, line ends, form feed and escape aside
const MOST_CONTROL = 0.01; // of all characters

/** Why a file cannot be taken; its message is for the reader and names the file. */
export class FileProblem extends Error {}

/** The files of one draft. Tells by `change`. */
export class Attachments extends EventTarget {
  /** @type {TextFile[]} */
  #files = [];
  #reading = 0;
  #count;
  #complain;
  #announce;

  /**
   * @param {{count?: (text: string) => Promise<number>, complain: (text: string) => void,
   *   announce?: (text: string) => void}} parts count tells how many tokens a text has
   */
  constructor({ count, complain, announce = () => {} }) {
    super();
    this.#count = count;
    this.#complain = complain;
    this.#announce = announce;
  }

  get files() {
    return [...this.#files];
  }

  /** Whether a file is being read; a message without it should not go out. */
  get reading() {
    return this.#reading > 0;
  }

  /** Another draft's files. @param {TextFile[]} files */
  set(files) {
    this.#files = [...files];
    this.#tell();
    for (const file of files) if (file.tokens === null) this.#countTokens(file);
  }

  /** Reads and adds files; those that cannot be taken are told, and the others stay. @param {File[]} given */
  async add(given) {
    /** @type {string[]} */
    const problems = [];
    let over = 0;
    this.#reading += 1;
    this.#tell();
    for (const file of given) {
      if (this.#files.length >= MOST_FILES) over += 1;
      else {
        const problem = await this.#read(file);
        if (problem !== "") problems.push(problem);
      }
    }
    this.#reading -= 1;
    this.#tell();
    if (over > 0) problems.unshift(t("files.many", { most: MOST_FILES, n: over }));
    if (problems.length > 0) this.#complain(problems.join("\n"));
  }

  /** @param {File} file @returns {Promise<string>} what is wrong with it */
  async #read(file) {
    try {
      this.#take(await readTextFile(file));
      return "";
    } catch (error) {
      return error instanceof FileProblem ? error.message : t("files.unreadable", { name: file.name });
    }
  }

  /** Adds a text as a file. @param {string} name @param {string} text */
  addText(name, text) {
    this.#take({ name, text, tokens: null });
  }

  /** @param {TextFile} file */
  remove(file) {
    this.#files = this.#files.filter((other) => other !== file);
    this.#announce(t("files.removed", { name: file.name }));
    this.#tell();
  }

  /** @param {TextFile} file */
  #take(file) {
    if (this.#files.some(({ name, text }) => name === file.name && text === file.text)) return;
    this.#files.push(file);
    this.#announce(t("files.added", { name: file.name }));
    this.#tell();
    this.#countTokens(file);
  }

  /** @param {TextFile} file */
  async #countTokens(file) {
    if (this.#count === undefined) return;
    try {
      file.tokens = await this.#count(file.text);
    } catch {
      return; // it goes without its number
    }
    if (this.#files.includes(file)) this.#tell();
  }

  #tell() {
    this.dispatchEvent(new Event("change"));
  }
}

/** @param {File} file @returns {Promise<TextFile>} @throws {FileProblem} */
export async function readTextFile(file) {
  const { name } = file;
  if (file.size > MOST_BYTES) throw new FileProblem(t("files.large", { name, most: MOST_BYTES / 1024 }));
  const bytes = new Uint8Array(await file.arrayBuffer());
  const text = decode(bytes, name);
  if (text.trim() === "") throw new FileProblem(t("files.empty", { name }));
  return { name, text: text.replace(/\r\n?/g, "\n"), tokens: null };
}

/** @param {Uint8Array<ArrayBuffer>} bytes @param {string} name @returns {string} @throws {FileProblem} */
export function decode(bytes, name) {
  const beginning = String.fromCharCode(...bytes.subarray(0, 8));
  if (BINARY_BEGINNINGS.some((known) => beginning.startsWith(known))) throw binary(name);
  const encoding = { "\u00ff\u00fe": "utf-16le", "\u00fe\u00ff": "utf-16be" }[beginning.slice(0, 2)] ?? "utf-8";
  if (encoding === "utf-8" && bytes.includes(0)) throw binary(name);
  let text;
  try {
    text = new TextDecoder(encoding, { fatal: true }).decode(bytes);
  } catch {
    throw new FileProblem(t("files.encoding", { name }));
  }
  const strange = text.match(CONTROL)?.length ?? 0;
  if (text.includes("\0") || strange > text.length * MOST_CONTROL) throw binary(name);
  return text;
}

/** @param {string} name */
function binary(name) {
  return new FileProblem(t("files.binary", { name }));
}
