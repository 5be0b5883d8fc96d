/** What can go wrong between the page and the server, and how the page says so. */

import { t } from "../words/words.js";

export class ApiError extends Error {
  /**
   * @param {string} message the server's own words, if it had any
   * @param {{kind: "refused" | "unreachable" | "stream" | "lost" | "gone", status?: number,
   *   code?: string | null, param?: string | null, retryAfter?: number | null}} facts `refused`: an HTTP error
   *   status; `unreachable`: no answer at all; `stream`: an error event inside the stream; `lost`: the stream
   *   ended without a finish; `gone`: it cannot be resumed (any more). param: what the server objects to.
   *   retryAfter is in seconds.
   */
  constructor(message, { kind, status = 0, code = null, param = null, retryAfter = null }) {
    super(message);
    this.name = "ApiError";
    this.kind = kind;
    this.status = status;
    this.code = code;
    this.param = param;
    this.retryAfter = retryAfter;
  }
}

/**
 * Reads an answer with an error status. Understands nested OpenAI errors, `{"detail": ...}` and plain text.
 * @param {Response} response
 */
export async function errorOfResponse(response) {
  const text = await response.text().catch(() => "");
  const { message, code, param } = errorOfBody(text);
  return new ApiError(message || response.statusText || `HTTP status ${response.status}`, {
    kind: "refused",
    status: response.status,
    code,
    param,
    retryAfter: secondsToWait(response.headers.get("retry-after")),
  });
}

/** @param {string} text @returns {{message: string, code: string | null, param: string | null}} */
function errorOfBody(text) {
  try {
    const body = JSON.parse(text);
    const error = body?.error ?? body?.detail ?? body?.message;
    if (typeof error === "string") return { message: error, code: null, param: null };
    if (typeof error?.message === "string") {
      return { message: error.message, code: error.code ?? null, param: error.param ?? null };
    }
  } catch {
    // Not JSON: a proxy's page, or a plain line.
  }
  return { message: text.length < 300 && !text.includes("<") ? text.trim() : "", code: null, param: null };
}

/**
 * The Retry-After header, in seconds or as a date.
 * @param {string | null} header @returns {number | null}
 */
function secondsToWait(header) {
  if (header === null || header.trim() === "") return null;
  const seconds = Number(header);
  if (Number.isFinite(seconds)) return Math.max(0, seconds);
  const at = Date.parse(header);
  return Number.isNaN(at) ? null : Math.max(0, (at - Date.now()) / 1000);
}

/** What may help: the same once more, going on behind what is there, or only something else. */
/** @typedef {"retry" | "continue" | "change"} Remedy */

/** @type {Record<string, [words: string, remedy: Remedy]>} */
const BY_CODE = {
  context_length_exceeded: ["tooLong", "change"],
  request_too_large: ["tooLarge", "change"],
  queue_full: ["busy", "retry"],
  overloaded: ["busy", "retry"],
  queue_timeout: ["waitedInVain", "retry"],
  out_of_memory: ["memory", "retry"],
  engine_unavailable: ["engine", "retry"],
  draining: ["shutdown", "retry"],
  server_shutdown: ["shutdown", "continue"],
  deadline_exceeded: ["deadline", "continue"],
  poison_request: ["poison", "change"],
  request_cancelled: ["cancelled", "continue"],
  stream_cancelled: ["stopped", "continue"],
};

/** @type {Record<number, [words: string, remedy: Remedy]>} */
const BY_STATUS = {
  401: ["key", "retry"],
  403: ["forbidden", "change"],
  404: ["missing", "change"],
  413: ["tooLarge", "change"],
  429: ["busy", "retry"],
  503: ["notReady", "retry"],
  504: ["deadline", "retry"],
};

/**
 * The words of the error box: what happened, and what to do about it.
 * @param {unknown} error
 * @returns {{title: string, detail: string, remedy: Remedy}}
 */
export function explain(error) {
  const [words, remedy] = error instanceof ApiError ? kindOf(error) : (/** @type {[string, Remedy]} */ (["page", "retry"]));
  const said = sentence(error instanceof ApiError ? error.message : String(error));
  return { title: t(`server.${words}`), detail: t(`server.${words}.help`, { said }).trim(), remedy };
}

/** @param {ApiError} error @returns {[words: string, remedy: Remedy]} */
function kindOf({ kind, code, status }) {
  if (kind === "unreachable") return [navigator.onLine ? "unreachable" : "offline", "retry"];
  if (kind === "lost" || kind === "gone") return [kind, "continue"];
  if (code !== null && Object.hasOwn(BY_CODE, code)) return BY_CODE[code];
  if (kind === "stream") return ["broke", "continue"];
  return BY_STATUS[status] ?? (status >= 500 ? ["failed", "retry"] : ["refused", "change"]);
}

/** A server's words may end without a full stop, and more words follow. @param {string} text */
function sentence(text) {
  return /[.!?…:]$/.test(text.trim()) || text.trim() === "" ? text.trim() : `${text.trim()}.`;
}
