"""The chat page: static files under a strict content security policy.

The files are found through the installed `static` package, wherever the server was started.
"""

import asyncio
import gzip
import hashlib
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path, PurePosixPath

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from app.http.dialects import route_path

CSP = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data: blob:",
        "font-src 'self'",
        "connect-src 'self'",
        "worker-src 'self'",
        "manifest-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        # Markup comes from DOMPurify alone, addresses of workers from static/shell/trusted.js.
        "require-trusted-types-for 'script'",
        "trusted-types dompurify fastpath#urls",
    )
)
HEADERS = {
    "content-security-policy": CSP,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
    "cache-control": "no-cache",
}
# Beside the page itself: what browsers look for at the root, and what must lie there, for a service worker
# has power only over what is below it. By path, the files in the folder.
ROOT_FILES = {
    "favicon.svg": "favicon.svg",
    "favicon.ico": "favicon.ico",
    "logo.svg": "favicon.svg",
    "apple-touch-icon.png": "icons/icon-192.png",
    "sw.js": "sw.js",
    "manifest.webmanifest": "manifest.webmanifest",
}
TYPES = {  # where the machine's own table may know better, or nothing
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".ico": "image/x-icon",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".mjs": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".webmanifest": "application/manifest+json",
    ".woff2": "font/woff2",
}
TEXT = frozenset({".css", ".html", ".js", ".json", ".mjs", ".svg", ".txt", ".webmanifest"})


class PageFiles(StaticFiles):
    """A folder's files with the page's headers, an ETag and a fresh check on every load. Text goes out
    gzipped to who takes it; each file is packed once and kept.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(directory=folder)
        self._packed: dict[str, tuple[str, bytes]] = {}  # ETag and body, by path

    async def get_response(self, path: str, scope: Scope) -> Response:
        suffix = PurePosixPath(path).suffix
        if suffix in TEXT and scope["method"] in ("GET", "HEAD") and _takes_gzip(scope):
            response = await self._gzipped(path, scope)
        else:
            response = await super().get_response(path, scope)
        if suffix in TEXT:
            response.headers.add_vary_header("Accept-Encoding")
        if suffix in TYPES and response.status_code != 304:
            response.headers["content-type"] = TYPES[suffix]
        response.headers.update(HEADERS)
        return response

    async def _gzipped(self, path: str, scope: Scope) -> Response:
        try:
            full, stat = await asyncio.to_thread(self.lookup_path, path)
        except (OSError, ValueError):  # too long, a null byte: no file has such a name
            raise HTTPException(404) from None
        if stat is None or not Path(full).is_file():
            raise HTTPException(404)
        # Another representation than the plain one, so it has an ETag of its own.
        print = hashlib.blake2b(f"{stat.st_mtime_ns}-{stat.st_size}".encode(), digest_size=8).hexdigest()
        etag = f'"{print}-gzip"'
        if {etag, "*"} & set(_known(scope)):
            return Response(status_code=304, headers={"etag": etag})
        kept = self._packed.get(path)
        if kept is None or kept[0] != etag:
            packed = await asyncio.to_thread(lambda: gzip.compress(Path(full).read_bytes(), 9, mtime=0))
            kept = self._packed[path] = (etag, packed)
        return Response(kept[1], headers={"etag": etag, "content-encoding": "gzip"})


def _takes_gzip(scope: Scope) -> bool:
    for item in Headers(scope=scope).get("accept-encoding", "").split(","):
        coding, _, weight = item.partition(";")
        if coding.strip().lower() == "gzip":
            return weight.replace(" ", "").lower() not in ("q=0", "q=0.0", "q=0.00", "q=0.000")
    return False


def _known(scope: Scope) -> list[str]:
    """The ETags that the client has."""
    tags = Headers(scope=scope).get("if-none-match", "").split(",")
    return [tag.strip().removeprefix("W/") for tag in tags]


def static_folder() -> Path | None:
    """The folder beside this package if that is the `static` package, else wherever that one is installed."""
    spec = find_spec("static")
    places = [Path(place) for place in (spec.submodule_search_locations or [])] if spec else []
    beside = Path(__file__).resolve().parents[2] / "static"
    places.sort(key=lambda place: place.resolve() != beside)
    return next((place for place in places if (place / "index.html").is_file()), None)


def docs_routes(folder: Path | None) -> Sequence[BaseRoute]:
    """`/docs`, the page that shows /openapi.json, and its two files; nothing without a folder."""
    if folder is None:
        return []
    files = PageFiles(folder)

    async def show(request: HttpRequest) -> Response:
        return await files.get_response(request.url.path.rsplit("/", 1)[1], request.scope)

    async def page(request: HttpRequest) -> Response:
        return await files.get_response("docs.html", request.scope)

    return [Route("/docs", page), Route("/docs/docs.js", show), Route("/docs/docs.css", show)]


def page_routes(folder: Path | None) -> Sequence[BaseRoute]:
    """`/`, the files that must lie beside it, and `/static/...`; nothing without a folder."""
    if folder is None:
        return []
    files = PageFiles(folder)

    async def show(request: HttpRequest) -> Response:
        name = route_path(request.scope).lstrip("/")
        return await files.get_response(ROOT_FILES[name] if name else "index.html", request.scope)

    routes: list[BaseRoute] = [Route(path, show) for path in ("/", *(f"/{name}" for name in ROOT_FILES))]
    return [*routes, Mount("/static", app=files)]
