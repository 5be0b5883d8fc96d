"""API keys: who has none that is known gets 401, but for a few paths that everybody may see.

A key comes as `Authorization: Bearer KEY` or as `X-Api-Key: KEY`, never in the URL. What is compared are
sha256 digests, each with each, so that the time tells nothing about the keys.
"""

import hashlib
import hmac
from collections.abc import Sequence

from starlette.types import ASGIApp, Receive, Scope, Send

from app.http.dialects import error_answer, route_path
from app.http.errors import ApiError
from app.http.page import ROOT_FILES
from app.settings.http import Key

OPEN_PATHS = frozenset(
    {
        *("/", *(f"/{name}" for name in ROOT_FILES)),
        *("/docs", "/docs/docs.js", "/docs/docs.css"),
        *("/health", "/ready", "/ping"),
    }
)
OPEN_FOLDER = "/static/"


class Keys:
    """A pure ASGI wrapper; puts `key_id` into the scope. Without keys everybody is let in."""

    def __init__(self, app: ASGIApp, keys: Sequence[Key]) -> None:
        self.app = app
        self.keys = [(key.id, key.digest) for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["key_id"] = ""
        if scope["type"] == "http" and self.keys and not is_open(route_path(scope)):
            try:
                scope["key_id"] = self.identify(scope)
            except ApiError as error:
                await error_answer(error, scope)(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def identify(self, scope: Scope) -> str:
        """The id of the key that a request presents. Raises ApiError (401)."""
        presented = _presented(scope["headers"])
        digest = hashlib.sha256(presented).digest()
        found = ""
        for id, known in self.keys:  # all of them, whichever it is
            if hmac.compare_digest(known, digest):
                found = id
        if not found:
            raise _unauthorized("The API key is not valid.")
        return found


def is_open(path: str) -> bool:
    return path in OPEN_PATHS or path.startswith(OPEN_FOLDER)


def _presented(headers: Sequence[tuple[bytes, bytes]]) -> bytes:
    """The key as its bytes were sent. Raises ApiError (401)."""
    authorizations = [value for name, value in headers if name == b"authorization"]
    others = [value for name, value in headers if name == b"x-api-key"]
    if len(authorizations) > 1 or len(others) > 1:
        raise _unauthorized("The request has more than one API key.")
    if authorizations:
        scheme, _, key = authorizations[0].strip().partition(b" ")
        key = key.strip()
        if scheme.lower() == b"bearer" and key:
            return key
        if not others:
            raise _unauthorized("Authorization must be of the form 'Bearer KEY'.")
    if others and (key := others[0].strip()):
        return key
    raise _unauthorized("Send an API key in the header 'Authorization: Bearer KEY' or 'X-Api-Key: KEY'.")


def _unauthorized(message: str) -> ApiError:
    headers = {"www-authenticate": "Bearer"}
    return ApiError(401, "invalid_api_key", message, type="authentication_error", headers=headers)
