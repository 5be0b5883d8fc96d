"""The chat page: static files under a strict content security policy.

The files are found through the installed `static` package, wherever the server was started.
"""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

from app.http.dialects import route_path
from app.http.middleware import WithHeaders

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
    )
)
HEADERS = {
    "content-security-policy": CSP,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-cache",
}
ICONS = ("favicon.svg", "favicon.ico", "logo.svg")


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
    files = StaticFiles(directory=folder)

    async def show(request: HttpRequest) -> Response:
        response = await files.get_response(request.url.path.rsplit("/", 1)[1], request.scope)
        response.headers.update(HEADERS)
        return response

    async def page(request: HttpRequest) -> Response:
        response = await files.get_response("docs.html", request.scope)
        response.headers.update(HEADERS)
        return response

    return [Route("/docs", page), Route("/docs/docs.js", show), Route("/docs/docs.css", show)]


def page_routes(folder: Path | None) -> Sequence[BaseRoute]:
    """`/` and `/static/...`, with an ETag and a fresh check on every load; nothing without a folder."""
    if folder is None:
        return []
    files = StaticFiles(directory=folder)

    async def show(request: HttpRequest) -> Response:
        name = route_path(request.scope).lstrip("/") or "index.html"
        if not (folder / name).is_file():
            raise HTTPException(404)
        response = await files.get_response(name, request.scope)
        response.headers.update(HEADERS)
        return response

    routes: list[BaseRoute] = [Route(path, show) for path in ("/", *(f"/{name}" for name in ICONS))]
    return [*routes, Mount("/static", app=WithHeaders(files, HEADERS))]
