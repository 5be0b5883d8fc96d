/** Markdown to tokens: marked, with formulas, and with the noncharacters that stand for other things. */

import { Lexer, Marked } from "../vendor/marked/marked.esm.js";

/** @typedef {any} Token a token of marked's or one of our own: `formula`, `formulaBlock` */

/** Stands before and after the number of a calculation in the source. Never part of what a model says. */
export const MARK = "\ufdd0";
export const MARK_END = "\ufdd1";
/** At the end of a formula's source: it is still being written. */
export const UNFINISHED = "\ufdd2";

const DISPLAY = /^ {0,3}(?:\$\$((?:(?!\n[ \t]*\n|\$\$)[^])+)\$\$|\\\[((?:(?!\n[ \t]*\n|\\\])[^])+)\\\])[ \t]*(?:\n|$)/;
const INLINE_DISPLAY = /^(?:\$\$((?:(?!\n[ \t]*\n|\$\$)[^])+)\$\$|\\\[((?:(?!\n[ \t]*\n|\\\])[^])+)\\\])/;
const BRACKETS = /^\\\(((?:(?!\n[ \t]*\n|\\\))[^])+)\\\)/;
// Money is no formula: a dollar that opens one has something behind it, and the one that closes it something
// before it and no digit after it.
const DOLLARS = /^\$(?![\s$])((?:\\[^]|[^$\\\n]|\n(?![ \t]*\n))*?(?:\\[^\s]|[^\s$\\]))\$(?![\d$])/;
// A dollar that may open a formula, or a sign that marked ends its words at by itself: looking further for each of
// many words would take a time that grows with the text's square.
const NEXT = /(?<![\p{L}\p{N}$\\])\$|[\\<!\[`*~_\n]/u;

/** @param {string} raw @param {string} source @param {boolean} display @param {string} type */
function formula(raw, source, display, type) {
  const open = source.endsWith(UNFINISHED);
  return { type, raw, source: open ? source.slice(0, -1) : source, display, open };
}

/** Whether a formula between brackets has no end; the expressions find that out far more slowly. @param {string} source */
function isUnclosed(source) {
  const opening = /^ {0,3}(\\[[(])/.exec(source)?.[1];
  return opening !== undefined && !source.includes(opening === "\\[" ? "\\]" : "\\)");
}

const formulaBlock = {
  name: "formulaBlock",
  level: /** @type {const} */ ("block"),
  /** @param {string} source */
  start: (source) => {
    const found = /\n {0,3}(?:\$\$|\\\[)/.exec(source);
    return found === null ? undefined : found.index + 1;
  },
  /** @param {string} source */
  tokenizer: (source) => {
    const found = isUnclosed(source) ? null : DISPLAY.exec(source);
    return found === null ? undefined : formula(found[0], found[1] ?? found[2], true, "formulaBlock");
  },
};

const formulaInline = {
  name: "formula",
  level: /** @type {const} */ ("inline"),
  /** @param {string} source */
  start: (source) => {
    const from = /^[`~]*/.exec(source)?.[0].length ?? 0; // of these, marked takes a whole run for words
    const found = NEXT.exec(source.slice(from));
    return found?.[0] === "$" ? from + found.index : undefined;
  },
  /** @param {string} source */
  tokenizer: (source) => {
    if (isUnclosed(source)) return undefined;
    const display = INLINE_DISPLAY.exec(source);
    if (display !== null) return formula(display[0], display[1] ?? display[2], true, "formula");
    const found = BRACKETS.exec(source) ?? DOLLARS.exec(source);
    return found === null ? undefined : formula(found[0], found[1], false, "formula");
  },
};

const NESTING = /(?:(?:>|(?:[*+-]|\d+[.)])(?=[ \t]))[ \t]*){16}|^[ \t]{40}/m; // what can nest, many times
const TOO_DEEP = /(?:(?:>|(?:[*+-]|\d+[.)])(?=[ \t]))[ \t]*){65}/;
const DEEPEST = 64;
// A long text that is more marks than words takes the parser a time that grows with its square.
const LONG = 4000; // characters
const MARKS = /[[\]()*_`~<>]/g;

// The same goes for words of which many marks begin something that never ends, or each in the other, and for a
// word that could be an address of mail, which is looked through again behind each mark in it.
const LONG_WORDS = 2000; // characters
const EMPHASIS = /(?<![\p{L}\p{N}])_+|_+(?![\p{L}\p{N}])|\*+|~+/gu;
/** Marks that may be open at once. For the end of a tilde's words one look is enough. @type {Record<string, number>} */
const OPEN_MARKS = { "*": 64, _: 64, "~": 500 };
const LONG_WORD = /[a-zA-Z0-9.!#$%&'*+/=?^_`{|}~-]{2000,}/g;
const MARKS_IN_WORD = /[!*_`~]/g;

const marked = new Marked({ gfm: true, breaks: true });
marked.use({ extensions: [formulaBlock, formulaInline] });

/** marked's, but for words in which it would get lost: they are shown as they came. */
class Reader extends Lexer {
  /** @param {string} source @param {any[]} [found] @returns {any[]} */
  inlineTokens(source, found = []) {
    if (source.length < LONG_WORDS || !isTangled(source)) return super.inlineTokens(source, found);
    found.push(...words(source));
    return found;
  }
}

/** @param {string} source */
function isTangled(source) {
  /** @type {Record<string, number>} */
  const open = { "*": 0, _: 0, "~": 0 };
  for (const { 0: run, index } of source.matchAll(EMPHASIS)) {
    const mark = run[0];
    const closes = open[mark] > 0 && index > 0 && !/\s/.test(source[index - 1]);
    const next = source[index + run.length] ?? " ";
    if (closes) open[mark] -= 1;
    else if (!/\s/.test(next)) open[mark] += 1;
    if (open[mark] > OPEN_MARKS[mark]) return true;
  }
  return (source.match(LONG_WORD) ?? []).some((word) => (word.match(MARKS_IN_WORD)?.length ?? 0) > word.length / 8);
}

/** Lines without any marks. @param {string} source @returns {any[]} tokens */
function words(source) {
  const lines = source.split("\n").map((raw) => ({ type: "text", raw, text: raw, escaped: false }));
  return lines.flatMap((line, at) => (at === 0 ? [line] : [{ type: "br", raw: "\n" }, line]));
}

/**
 * The tokens of a source, down to the words.
 * @param {string} source @param {Record<string, any>} links definitions that are known; new ones are added
 * @returns {Token[]}
 */
export function tokens(source, links) {
  const lexer = new Reader({ ...marked.defaults });
  lexer.tokens.links = links;
  return unlessTooDeep(source, () => lexer.lex(source));
}

/**
 * Quotations in quotations without end would overflow the stack, here or in the browser's layout. Nobody means
 * them: such a text is shown as it came.
 * @param {string} source @param {() => Token[]} lex @returns {Token[]}
 */
function unlessTooDeep(source, lex) {
  if (source.length > LONG && (source.match(MARKS)?.length ?? 0) > source.length / 2) return asItCame(source);
  const nests = NESTING.test(source);
  try {
    const found = nests && TOO_DEEP.test(source) ? null : lex();
    if (found !== null && (!nests || depthOf(found) <= DEEPEST)) return found;
  } catch (error) {
    if (!(error instanceof RangeError)) throw error;
  }
  return asItCame(source);
}

/** @param {string} source @returns {Token[]} one paragraph without any marks */
function asItCame(source) {
  return [/** @type {any} */ ({ type: "paragraph", raw: source, text: source, tokens: words(source) })];
}

/** @param {any[]} found @returns {number} how many tokens stand in one another at the most */
function depthOf(found) {
  let depth = 0;
  for (let level = found; level.length > 0 && depth <= DEEPEST; depth += 1) {
    level = level.flatMap((token) => [...(token.tokens ?? []), ...(token.items ?? [])]);
  }
  return depth;
}

/**
 * From where on a source may be inside a formula that is not closed yet: what follows it decides what it is.
 * @param {string} source @returns {number} its length if it is not
 */
export function openFormula(source) {
  const blank = /\n[ \t]*\n(?![^]*\n[ \t]*\n)/.exec(source);
  const from = blank === null ? 0 : blank.index + 1;
  const opening = /(?<=^|\n) {0,3}(\$\$|\\\[)/g;
  opening.lastIndex = from;
  for (let found = opening.exec(source); found !== null; found = opening.exec(source)) {
    const rest = source.slice(found.index);
    const formula = DISPLAY.exec(rest);
    if (formula !== null) opening.lastIndex = found.index + formula[0].length;
    else if (!rest.includes(found[1] === "$$" ? "$$" : "\\]", found[0].length)) return found.index;
  }
  return source.length;
}

/** The blocks of a source, without looking into them. @param {string} source @returns {Token[]} */
export function blocks(source) {
  const lexer = new Reader({ ...marked.defaults });
  lexer.tokens.links = Object.create(null);
  return unlessTooDeep(source, () => lexer.blockTokens(source, []));
}

/** An empty set of link definitions. @param {Record<string, any> | null} [base] @returns {Record<string, any>} */
export const newLinks = (base = null) => Object.create(base);
