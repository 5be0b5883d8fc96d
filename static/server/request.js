/** One call to the server, with its key and with its errors. Paths are relative: the page may live below a prefix. */

import { ApiError, errorOfResponse } from "./errors.js";
import { keys } from "./keys.js";

/**
 * @param {string} path
 * @param {RequestInit & {headers?: Record<string, string>, ask?: import("./keys.js").Asking}} init ask: what a
 *   401 may do, see KeyRing
 * @returns {Promise<Response>}
 * @throws {ApiError} unless the answer has a 2xx status
 */
export async function request(path, { ask = "never", ...init } = {}) {
  for (;;) {
    const used = keys.key;
    const response = await send(path, init);
    if (response.ok) return response;
    const error = await errorOfResponse(response);
    const again = response.status === 401 && (await unlessAborted(keys.another(used, error.message, ask), init.signal));
    if (!again) throw error;
  }
}

/** @param {string} path @param {RequestInit & {headers?: Record<string, string>}} init */
async function send(path, init) {
  try {
    return await fetch(path, { cache: "no-store", ...init, headers: { ...init.headers, ...keys.headers } });
  } catch (error) {
    if (init.signal?.aborted) throw error;
    throw new ApiError(String(error), { kind: "unreachable" });
  }
}

/**
 * @template T
 * @param {Promise<T>} promise @param {AbortSignal | null | undefined} signal
 * @returns {Promise<T>} rejected as soon as the signal is aborted
 */
export async function unlessAborted(promise, signal) {
  if (!signal) return promise;
  signal.throwIfAborted();
  /** @type {() => void} */
  let forget = () => {};
  const aborted = new Promise((_, reject) => {
    const stop = () => reject(signal.reason);
    signal.addEventListener("abort", stop, { once: true });
    forget = () => signal.removeEventListener("abort", stop);
  });
  try {
    return await Promise.race([promise, /** @type {Promise<never>} */ (aborted)]);
  } finally {
    forget();
  }
}

/**
 * Waits; less where the network or the page comes back meanwhile.
 * @param {number} ms @param {AbortSignal | null} [signal]
 * @throws the signal's reason
 */
export async function pause(ms, signal) {
  /** @type {() => void} */
  let wake = () => {};
  const waited = new Promise((/** @type {(value?: unknown) => void} */ done) => (wake = () => done()));
  const timer = setTimeout(wake, ms);
  addEventListener("online", wake);
  try {
    await unlessAborted(waited, signal);
  } finally {
    clearTimeout(timer);
    removeEventListener("online", wake);
  }
}
