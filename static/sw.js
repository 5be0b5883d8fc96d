/**
 * The page without its server: its files are kept, so that it opens and old chats can be read. The network
 * comes first, always; what is kept is for when there is none. Answers of the API are never kept.
 */

const KEPT = "fastpath-page-1"; // another name forgets what was kept before
const BESIDE = ["", "index.html", "favicon.svg", "favicon.ico", "manifest.webmanifest"];

/** @param {string} address @returns {boolean} whether it is one of the page's own files */
function isOfPage(address) {
  const scope = self.registration.scope;
  if (!address.startsWith(scope)) return false;
  const path = address.slice(scope.length).split(/[?#]/)[0];
  return BESIDE.includes(path) || path.startsWith("static/");
}

/** @param {Request} request */
async function answer(request) {
  const kept = await caches.open(KEPT).catch(() => null); // forbidden: the page works as without a worker
  const before = () => kept?.match(request, { ignoreVary: true });
  /** @type {Response} */
  let response;
  try {
    response = await fetch(request);
  } catch (error) {
    const found = await before();
    if (found) return found;
    throw error;
  }
  if (response.status >= 500) return (await before()) ?? response; // a proxy without its server
  // What was led elsewhere is another page, such as a proxy's login.
  if (response.status === 200 && !response.redirected) {
    await kept?.put(request, response.clone()).catch(() => {}); // no room: the page is shown all the same
  }
  return response;
}

/** @param {string[]} addresses files that came before this worker was there, or that are wanted later */
async function keep(addresses) {
  const kept = await caches.open(KEPT);
  for (const address of new Set([self.registration.scope, ...addresses].filter(isOfPage))) {
    if (await kept.match(address, { ignoreVary: true })) continue;
    await kept.add(address).catch(() => {}); // the next load brings it
  }
}

async function forgetOlder() {
  const names = await caches.keys();
  await Promise.all(names.filter((name) => name.startsWith("fastpath-page-") && name !== KEPT).map((name) => caches.delete(name)));
  await self.clients.claim();
}

self.addEventListener("install", (event) => event.waitUntil(self.skipWaiting()));
self.addEventListener("activate", (event) => event.waitUntil(forgetOlder()));
self.addEventListener("fetch", (event) => {
  const { request } = event;
  if (request.method === "GET" && isOfPage(request.url)) event.respondWith(answer(request));
});
self.addEventListener("message", (event) => {
  const told = event.data?.keep;
  if (Array.isArray(told)) event.waitUntil(keep(told).then(() => event.source?.postMessage({ kept: told.length })));
});
