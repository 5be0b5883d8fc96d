/** What can go wrong between the page and the server, and how the page says so. */

export class ApiError extends Error {
  /**
   * @param {string} message the server's own words, if it had any
   * @param {{kind: "refused" | "unreachable" | "stream" | "lost", status?: number, code?: string | null,
   *   retryAfter?: number | null}} facts `refused`: an HTTP error status; `unreachable`: no answer at all;
   *   `stream`: an error event inside the stream; `lost`: the stream ended without a finish.
   *   retryAfter is in seconds.
   */
  constructor(message, { kind, status = 0, code = null, retryAfter = null }) {
    super(message);
    this.name = "ApiError";
    this.kind = kind;
    this.status = status;
    this.code = code;
    this.retryAfter = retryAfter;
  }
}

/**
 * Reads an answer with an error status. Understands nested OpenAI errors, `{"detail": ...}` and plain text.
 * @param {Response} response
 */
export async function errorOfResponse(response) {
  const text = await response.text().catch(() => "");
  const { message, code } = errorOfBody(text);
  return new ApiError(message || response.statusText || `HTTP status ${response.status}`, {
    kind: "refused",
    status: response.status,
    code,
    retryAfter: secondsToWait(response.headers.get("retry-after")),
  });
}

/** @param {string} text @returns {{message: string, code: string | null}} */
function errorOfBody(text) {
  try {
    const body = JSON.parse(text);
    const error = body?.error ?? body?.detail ?? body?.message;
    if (typeof error === "string") return { message: error, code: null };
    if (typeof error?.message === "string") return { message: error.message, code: error.code ?? null };
  } catch {
    // Not JSON: a proxy's page, or a plain line.
  }
  return { message: text.length < 300 && !text.includes("<") ? text.trim() : "", code: null };
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

/**
 * The words of the error box: what happened, and what to do about it.
 * @param {unknown} error
 * @returns {{title: string, detail: string}}
 */
export function explain(error) {
  if (!(error instanceof ApiError)) return { title: "This page made an error", detail: String(error) };
  if (error.kind === "unreachable") {
    const detail = "Is it running? Your message is kept; try again.";
    return { title: "The server cannot be reached", detail };
  }
  if (error.kind === "lost") {
    const detail = "The answer is not complete. Try again to get all of it.";
    return { title: "The connection was lost", detail };
  }
  if (error.code === "context_length_exceeded") {
    return { title: "This conversation is too long for the model", detail: error.message };
  }
  return { title: titleOf(error), detail: error.message };
}

/** @param {ApiError} error */
function titleOf(error) {
  if (error.kind === "stream") return "The server broke off";
  if (error.status === 401 || error.status === 403) return "The server wants a valid API key";
  if (error.status === 413) return "The message is too large";
  if (error.status === 429) return "The server is busy";
  if (error.status === 503) return "The server is not ready";
  if (error.status >= 500) return "The server made an error";
  return "The server refused the request";
}
