/**
 * The addresses that may be run as a program beside the page: the workers of this page and nothing else. The
 * Content-Security-Policy names this policy and no other that makes addresses.
 */

const WORKERS = ["keep/search_worker.js", "../sw.js"].map((path) => new URL(path, new URL("../", import.meta.url)).href);

/** @type {{createScriptURL: (address: string) => any} | undefined} */
const policy = /** @type {any} */ (globalThis).trustedTypes?.createPolicy("fastpath#urls", { createScriptURL: known });

/**
 * The address, in the form in which `Worker` and `navigator.serviceWorker.register` take it.
 * @param {URL | string} address @returns {any} a TrustedScriptURL where there are such, else the text
 * @throws {TypeError} where it is none of the page's own workers
 */
export function workerAddress(address) {
  return policy ? policy.createScriptURL(String(address)) : known(String(address));
}

/** @param {string} address */
function known(address) {
  if (!WORKERS.includes(new URL(address, document.baseURI).href)) throw new TypeError(`${address} is no worker of this page.`);
  return address;
}
