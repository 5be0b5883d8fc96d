/** The page as something that is installed: its worker (sw.js), which keeps the page's files for days offline. */

import { workerAddress } from "./trusted.js";

// Files that a first visit may not have needed, and that reading an old chat does.
const WANTED = [
  "keep/search_worker.js", "keep/chat_actions.js", "reading/formulas.js", "reading/highlight.js", "shell/key_sheet.js",
  "vendor/highlight/core.min.js", "vendor/katex/katex.min.css", "vendor/katex/katex.min.js",
];

/**
 * Has the page's files kept, where the browser allows it (HTTPS, or this very machine). A new version of the
 * page is taken with its next load, as without a worker.
 * @param {string[]} [wanted] more files that reading needs, relative to `static/`
 */
export async function install(wanted = WANTED) {
  if (!isSecureContext || !("serviceWorker" in navigator)) return;
  await idle();
  const { serviceWorker } = navigator;
  try {
    await serviceWorker.register(workerAddress(new URL("sw.js", document.baseURI).href), { updateViaCache: "none" });
    const { active } = await serviceWorker.ready;
    const came = performance.getEntriesByType("resource").map(({ name }) => name);
    const later = wanted.map((path) => new URL(`../${path}`, import.meta.url).href);
    active?.postMessage({ keep: [...came, ...later] });
  } catch {
    // Forbidden, or no disk: then the page needs its server, as every page does.
  }
}

/** After the page has been loaded and shown. */
async function idle() {
  if (document.readyState !== "complete") await new Promise((done) => addEventListener("load", done, { once: true }));
  await new Promise((done) => ("requestIdleCallback" in window ? requestIdleCallback(done, { timeout: 3000 }) : setTimeout(done, 500)));
}
