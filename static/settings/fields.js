/**
 * The fields of a request that a reader can set: their ranges, and how each is written as a text. A field's
 * words are in the catalogue, as `settings.NAME` and `settings.NAME.hint`.
 */

import { t } from "../words/words.js";

/**
 * @typedef {"number" | "whole" | "flag" | "lines" | "ids" | "bias" | "json" | "text" | "choice"} Kind
 * @typedef {"answer" | "sampling" | "penalties" | "stopping" | "advanced"} Group
 *
 * @typedef {object} Field
 * @property {Kind} kind
 * @property {Group} group where it stands in the sheet
 * @property {number} min of a number, or of what a list holds
 * @property {number} max
 * @property {number} step of its slider
 * @property {number} [most] entries of a list, characters of a text
 * @property {boolean} [slides] whether a slider is of use
 * @property {string} [unset] key of what an empty box means, where the model card says nothing
 * @property {string[]} [choices]
 * @property {string} [needs] `NAME` or `NAME=VALUE`: shown only where that field is set
 */

const LARGE = 1_000_000;
const TOKEN_ID = 2 ** 31 - 1;

/** @type {Record<string, Field>} */
export const FIELDS = {
  max_tokens: { kind: "whole", group: "answer", min: 1, max: LARGE, step: 1, unset: "settings.unset.room" },
  seed: { kind: "whole", group: "answer", min: 0, max: Number.MAX_SAFE_INTEGER, step: 1, unset: "settings.unset.random" },
  logprobs: { kind: "flag", group: "answer", min: 0, max: 1, step: 1 },
  top_logprobs: { kind: "whole", group: "answer", min: 0, max: 20, step: 1, slides: true, unset: "5", needs: "logprobs" },

  temperature: { kind: "number", group: "sampling", min: 0, max: 2, step: 0.05, slides: true, unset: "1" },
  top_p: { kind: "number", group: "sampling", min: 0.01, max: 1, step: 0.01, slides: true, unset: "1" },
  top_k: { kind: "whole", group: "sampling", min: 0, max: LARGE, step: 1, unset: "settings.unset.off" },
  min_p: { kind: "number", group: "sampling", min: 0, max: 1, step: 0.01, slides: true, unset: "0" },

  repetition_penalty: { kind: "number", group: "penalties", min: 0.01, max: 10, step: 0.01, unset: "1" },
  presence_penalty: { kind: "number", group: "penalties", min: -2, max: 2, step: 0.1, slides: true, unset: "0" },
  frequency_penalty: { kind: "number", group: "penalties", min: -2, max: 2, step: 0.1, slides: true, unset: "0" },

  stop: { kind: "lines", group: "stopping", min: 1, max: 256, step: 1, most: 16 },
  min_tokens: { kind: "whole", group: "stopping", min: 0, max: LARGE, step: 1, unset: "0" },
  ignore_eos: { kind: "flag", group: "stopping", min: 0, max: 1, step: 1 },

  shape: {
    kind: "choice", group: "advanced", min: 0, max: 0, step: 1,
    choices: ["json_object", "json_schema", "regex", "one_of"],
  },
  json_schema: { kind: "json", group: "advanced", min: 1, max: 65536, step: 1, needs: "shape=json_schema" },
  regex: { kind: "text", group: "advanced", min: 1, max: 4096, step: 1, needs: "shape=regex" },
  one_of: { kind: "lines", group: "advanced", min: 1, max: 1024, step: 1, most: 10_000, needs: "shape=one_of" },
  bad_words: { kind: "lines", group: "advanced", min: 1, max: 64, step: 1, most: 128 },
  stop_token_ids: { kind: "ids", group: "advanced", min: 0, max: TOKEN_ID, step: 1, most: 64 },
  logit_bias: { kind: "bias", group: "advanced", min: -100, max: 100, step: 1, most: 1024 },
  truncate_prompt_tokens: { kind: "flag", group: "advanced", min: 0, max: 1, step: 1 },
};

/** Alternatives to each token, where token probabilities are recorded and nobody said how many. */
const ALTERNATIVES = 5;

/** @param {string} name */
export function labelOf(name) {
  return t(`settings.${name}`);
}

/** @param {string} name @returns {boolean} */
export function isField(name) {
  return Object.hasOwn(FIELDS, name);
}

/**
 * What a text means for a field. An empty text means no value.
 * @param {string} name @param {string} text
 * @returns {{value: unknown, problem: string}} a problem is empty if there is none
 */
export function parse(name, text) {
  const given = FIELDS[name].kind === "lines" ? text : text.trim();
  if (given.trim() === "") return { value: undefined, problem: "" };
  const problems = /** @type {string[]} */ ([]);
  const value = READERS[FIELDS[name].kind](given, name, (key, values = {}) => {
    problems.push(t(`settings.problem.${key}`, { field: labelOf(name), ...values }));
  });
  const problem = problems[0] ?? "";
  return { value: problem === "" ? value : undefined, problem };
}

/** A value as the text that it is read from. @param {string} name @param {unknown} value @returns {string} */
export function write(name, value) {
  if (value === undefined || value === null) return "";
  if (Array.isArray(value)) {
    const lines = FIELDS[name].kind === "lines";
    return lines ? value.map((line) => escaped(String(line))).join("\n") : value.join(", ");
  }
  if (typeof value === "object") return Object.entries(value).map(([id, bias]) => `${id}: ${bias}`).join("\n");
  return String(value);
}

/** A stored or imported value, undefined unless it can stand. @param {string} name @param {unknown} value */
export function checked(name, value) {
  return isField(name) ? parse(name, write(name, value)).value : undefined;
}

/**
 * The fields of a request that these values stand for.
 * @param {Record<string, unknown>} values @returns {Record<string, unknown>}
 */
export function toRequest({ shape, json_schema, regex, one_of, logprobs, top_logprobs, ...rest }) {
  const { ignore_eos, truncate_prompt_tokens, ...fields } = rest;
  const form = shapeOf({ shape, json_schema, regex, one_of });
  return {
    ...fields,
    ...form,
    // The server refuses both together: an answer of a given shape ends where the shape does.
    ...(ignore_eos === true && form === null && { ignore_eos }),
    ...(truncate_prompt_tokens === true && { truncate_prompt_tokens: -1 }),
    ...(logprobs === true && { logprobs, top_logprobs: top_logprobs ?? ALTERNATIVES }),
  };
}

/** @param {Record<string, unknown>} values @returns {Record<string, unknown> | null} */
function shapeOf({ shape, json_schema, regex, one_of }) {
  if (shape === "json_object") return { response_format: { type: "json_object" } };
  if (shape === "json_schema" && typeof json_schema === "string") {
    const schema = JSON.parse(json_schema);
    return { response_format: { type: "json_schema", json_schema: { name: "answer", schema } } };
  }
  if (shape === "regex" && regex !== undefined) return { regex };
  if (shape === "one_of" && one_of !== undefined) return { guided_choice: one_of };
  return null;
}

/**
 * @typedef {(key: string, values?: Record<string, string | number>) => void} Complain
 * @type {Record<Kind, (text: string, name: string, complain: Complain) => unknown>}
 */
const READERS = {
  number: (text, name, complain) => readNumber(text, FIELDS[name], complain),
  whole: (text, name, complain) => {
    const value = readNumber(text, FIELDS[name], complain);
    if (Number.isFinite(value) && !Number.isSafeInteger(value)) complain("whole");
    return value;
  },
  flag: (text, _, complain) => {
    if (!["true", "false"].includes(text)) complain("flag");
    return text === "true" ? true : undefined;
  },
  lines: (text, name, complain) => {
    const lines = text.split(/\r?\n/).filter((line) => line !== "").map(unescaped);
    checkList(lines, FIELDS[name], complain);
    return lines;
  },
  ids: (text, name, complain) => {
    const ids = text.split(/[\s,;]+/).filter(Boolean).map((word) => readId(word, complain));
    checkCount(ids, FIELDS[name], complain);
    return ids;
  },
  bias: (text, name, complain) => {
    const pairs = text.split(/\r?\n/).filter((line) => line.trim() !== "").map((line) => {
      const [id, bias, ...more] = line.split(/[:=]/);
      if (bias === undefined || more.length > 0) complain("bias", { line: line.trim() });
      return [readId(id.trim(), complain), readNumber((bias ?? "0").trim(), FIELDS[name], complain)];
    });
    checkCount(pairs, FIELDS[name], complain);
    return Object.fromEntries(pairs);
  },
  json: (text, name, complain) => {
    checkList([text], FIELDS[name], complain);
    try {
      const schema = JSON.parse(text);
      if (typeof schema !== "object" || schema === null || Array.isArray(schema)) complain("object");
    } catch (error) {
      complain("json", { reason: error instanceof Error ? error.message : "" });
    }
    return text;
  },
  text: (text, name, complain) => {
    checkList([text], FIELDS[name], complain);
    return text;
  },
  choice: (text, name, complain) => {
    if (!FIELDS[name].choices?.includes(text)) complain("choice");
    return text;
  },
};

/** Each entry of a list is a line, so a line break in one is written `\\n`. @param {string} text */
function escaped(text) {
  return text.replaceAll("\\", "\\\\").replaceAll("\n", "\\n").replaceAll("\t", "\\t");
}

/** @param {string} line */
function unescaped(line) {
  return line.replace(/\\([nt\\])/g, (_, letter) => (letter === "n" ? "\n" : letter === "t" ? "\t" : letter));
}

/** @param {string} text @param {Field} field @param {Complain} complain */
function readNumber(text, { min, max }, complain) {
  const value = text === "" ? NaN : Number(text);
  if (!Number.isFinite(value)) complain("number");
  else if (value < min || value > max) complain("between", { min, max });
  return value;
}

/** @param {string} word @param {Complain} complain */
function readId(word, complain) {
  const id = /^\d+$/.test(word) ? Number(word) : NaN;
  if (!(id <= TOKEN_ID)) complain("id", { word });
  return id;
}

/** @param {unknown[]} list @param {Field} field @param {Complain} complain */
function checkCount(list, { most = Infinity }, complain) {
  if (list.length > most) complain("many", { most });
}

/** @param {string[]} list @param {Field} field @param {Complain} complain */
function checkList(list, field, complain) {
  checkCount(list, field, complain);
  if (list.some((entry) => entry.length > field.max)) complain("long", { most: field.max });
}
