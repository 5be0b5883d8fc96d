/** Colours for code. The highlighter and each of its languages are loaded when code first needs them. */

/** Language by the names that people write behind a fence. */
const NAMES = /** @type {Map<string, string>} */ (new Map());
const LANGUAGES = {
  bash: "sh zsh fish",
  c: "h",
  cpp: "c++ cc cxx hpp hh h++ cuda cu",
  csharp: "cs c#",
  css: "",
  diff: "patch",
  dockerfile: "docker containerfile",
  go: "golang",
  graphql: "gql",
  haskell: "hs",
  ini: "toml cfg conf",
  java: "",
  javascript: "js jsx mjs cjs node",
  json: "jsonc json5 jsonl ndjson",
  kotlin: "kt kts",
  latex: "tex",
  lua: "",
  makefile: "make mk",
  markdown: "md mdx",
  nginx: "",
  php: "",
  powershell: "ps ps1 pwsh",
  protobuf: "proto",
  python: "py python3 py3 ipython pycon",
  r: "",
  ruby: "rb",
  rust: "rs",
  scss: "sass less",
  shell: "console shellsession terminal",
  sql: "sqlite mysql postgresql postgres plsql",
  swift: "",
  typescript: "ts tsx mts cts",
  xml: "html xhtml svg rss atom vue svelte",
  yaml: "yml",
};
for (const [language, others] of Object.entries(LANGUAGES)) {
  for (const name of [language, ...others.split(" ")]) if (name !== "") NAMES.set(name, language);
}
/** What a language is written in besides itself. @type {Record<string, string[]>} */
const PARTS = { xml: ["css", "javascript"], markdown: ["xml"], php: ["xml"], shell: ["bash"] };
const VENDOR = "../vendor/highlight/";
const MAX_TEXT = 60_000; // characters; colours for more would take too long

/** Builds elements from what the highlighter finds, instead of markup. */
class ElementEmitter {
  root = document.createDocumentFragment();
  /** @type {Node[]} */
  #open = [this.root];

  /** @param {string} text */
  addText(text) {
    if (text !== "") this.#top.appendChild(document.createTextNode(text));
  }

  /** @param {string} scope such as `title.function` */
  startScope(scope) {
    const span = document.createElement("span");
    const [first, ...rest] = scope.split(".");
    span.className = [`hljs-${first}`, ...rest.map((part, depth) => part + "_".repeat(depth + 1))].join(" ");
    this.#top.appendChild(span);
    this.#open.push(span);
  }

  endScope() {
    if (this.#open.length > 1) this.#open.pop();
  }

  /** @param {ElementEmitter} emitter */
  __addSublanguage(emitter) {
    this.#top.appendChild(emitter.root);
  }

  openNode = this.startScope;
  closeNode = this.endScope;
  finalize() {}
  toHTML() {
    return "";
  }

  get #top() {
    return /** @type {Node} */ (this.#open.at(-1));
  }
}

/** @type {any} */
let highlighter = null;
/** @type {Map<string, Promise<void>>} by language */
const loading = new Map();

/** The language of a fence, null for none that is known. @param {string} name @returns {string | null} */
export const languageOf = (name) => NAMES.get(name.toLowerCase()) ?? null;

/** Whether code of this language can be coloured at once. @param {string} language */
export const isLoaded = (language) => highlighter?.getLanguage(language) !== undefined && highlighter !== null;

/** @param {string} language @returns {Promise<void>} */
export function load(language) {
  let promise = loading.get(language);
  if (promise === undefined) {
    promise = loadNow(language);
    loading.set(language, promise);
    promise.catch(() => loading.delete(language)); // the network may be back the next time
  }
  return promise;
}

/** @param {string} language */
async function loadNow(language) {
  const wanted = [language, ...(PARTS[language] ?? [])];
  const [core, ...grammars] = await Promise.all([
    import(`${VENDOR}core.min.js`),
    ...wanted.map((name) => import(`${VENDOR}languages/${name}.min.js`)),
  ]);
  if (highlighter === null) {
    highlighter = core.default;
    highlighter.configure({ __emitter: ElementEmitter, throwUnescapedHTML: false });
  }
  grammars.forEach((grammar, place) => highlighter.registerLanguage(wanted[place], grammar.default));
}

/**
 * The text in colours, null if the language is not loaded or the text is too long.
 * @param {string} text @param {string} language @returns {DocumentFragment | null}
 */
export function highlight(text, language) {
  if (!isLoaded(language) || text.length > MAX_TEXT) return null;
  const result = highlighter.highlight(text, { language, ignoreIllegals: true });
  return result._emitter.root;
}
