"""GET /version, and POST /v1/requests/{id}/cancel."""

import platform
from importlib.metadata import PackageNotFoundError, version

import msgspec
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from app.http.errors import ApiError
from app.http.fields import shown
from app.http.middleware import key_id
from app.routes.context import Context
from engine.messages import EngineUnavailable


class About:
    """What runs here."""

    def __init__(self, context: Context) -> None:
        self.context = context

    async def version(self, request: HttpRequest) -> Response:
        """The program and what it is built on; the model's facts are null while it loads."""
        try:
            info = self.context.client.info
        except EngineUnavailable:
            info = None
        facts = {
            "version": self.context.settings.version,
            "python": platform.python_version(),
            "torch": _installed("torch"),
            "model": info and info.name,
            "generation": info and info.generation,
            "device": info and info.device,
            "dtype": info and info.dtype,
        }
        return _json(facts)

    async def cancel(self, request: HttpRequest) -> Response:
        """Ends an open answer of the same client. Raises ApiError (404)."""
        id = str(request.path_params["id"])
        if not await self.context.cancel(id, key_id(request.scope)):
            message = f"There is no open answer '{shown(id)}'."
            raise ApiError(404, "request_not_found", message, type="not_found_error", param="id")
        return _json({"id": id, "cancelled": True})


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _json(value: object) -> Response:
    headers = {"cache-control": "no-store"}
    return Response(msgspec.json.encode(value), headers=headers, media_type="application/json")
