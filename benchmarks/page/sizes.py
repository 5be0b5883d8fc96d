"""What a first visit must load: every file of the page, as it would be with gzip."""

import gzip
from urllib.parse import urljoin, urlsplit

from playwright.sync_api import Browser, Request

QUIET_MS = 700  # without a new file the page is taken to be complete
API = ("/v1/", "/stats", "/tokenize", "/health")
LINKED = "[...document.querySelectorAll('link[rel~=icon], link[rel=manifest]')].map((link) => link.href)"


def measure(url: str, browser: Browser) -> dict[str, object]:
    """Opens the page with nothing stored; the files that it loads by itself until it rests.

    A file counts as gzip -9 makes it, or as it is where that is no smaller. What a service worker fetches
    afterwards, to have the page offline, is told apart.
    """
    context = browser.new_context(base_url=url)
    page = context.new_page()
    seen: dict[str, bool] = {}  # by path: whether a service worker asked

    def note(request: Request) -> None:
        path = urlsplit(request.url).path
        if not path.startswith(API) and request.url.startswith("http"):
            seen[path] = seen.get(path, True) and request.service_worker is not None

    context.on("request", note)
    page.goto(url)
    known = -1
    while known != len(seen):  # no wait for idleness: the page keeps a stream of statistics open
        known = len(seen)
        page.wait_for_timeout(QUIET_MS)
    for address in page.evaluate(LINKED):  # which a browser without a window does not ask for
        seen[urlsplit(address).path] = False
    files = []
    offline = 0
    for path, by_worker in sorted(seen.items()):
        response = context.request.get(urljoin(url, path))
        if not response.ok:
            raise RuntimeError(f"{path}: status {response.status}")
        body = response.body()
        packed = min(len(body), len(gzip.compress(body, 9, mtime=0)))
        if by_worker:
            offline += packed
        else:
            files.append({"path": path, "bytes": len(body), "gzipped": packed})
    context.close()
    files.sort(key=lambda file: -int(str(file["gzipped"])))
    return {
        "gzipped_kb": sum(int(str(file["gzipped"])) for file in files) / 1000,
        "raw_kb": sum(int(str(file["bytes"])) for file in files) / 1000,
        "files": len(files),
        "offline_only_gzipped_kb": offline / 1000,
        "list": files,
    }
