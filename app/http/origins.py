"""Which web pages may talk to the server: checks of Host and Origin, and CORS for the origins that are named.

A page of any site can make a visitor's browser send requests to a server on the visitor's own machine, and
with a name that resolves to 127.0.0.1 it could even read the answers. So a server that listens on such an
address knows its own names (Host), and nobody's page but its own may post (Origin).
"""

import re
from collections.abc import Awaitable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.http.dialects import error_answer
from app.http.errors import ApiError
from app.http.fields import shown
from app.settings.http import Access

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
PREFLIGHT_SECONDS = b"600"
_METHODS = b"GET, HEAD, POST, DELETE"
_EXPOSED = b"x-request-id, x-stream-id, retry-after, retry-after-ms, x-should-retry"
_FIELD_NAMES = re.compile(rb"[A-Za-z0-9!#$%&'*+.^_`|~ ,\-]{1,2048}")

Headers = list[tuple[bytes, bytes]]


class Origins:
    """A pure ASGI wrapper."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self.app = app
        self.hosts = access.hosts
        self.origins = frozenset(origin.encode() for origin in access.origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = scope["headers"]
        origin = _values(headers, b"origin")
        try:
            host = self._check_host(scope, _values(headers, b"host"))
            if origin:
                self._check_origin(scope, origin, host)
        except ApiError as error:
            await error_answer(error, scope)(scope, receive, send)
            return
        if not self.origins:
            await self.app(scope, receive, send)
        elif origin and origin[0] in self.origins:
            await self._allow(origin[0], scope, receive, send)
        else:
            await self.app(scope, receive, _with(send, [(b"vary", b"origin")]))

    def _check_host(self, scope: Scope, hosts: list[bytes]) -> bytes:
        if len(hosts) != 1:
            if hosts or scope["http_version"] != "1.0":
                raise ApiError(400, "invalid_host", "A request needs exactly one Host header.")
            return b""
        if self.hosts is not None and host_name(hosts[0]) not in self.hosts:
            name = shown(host_name(hosts[0]), 100)
            message = (
                f"This server does not answer for the host '{name}'. "
                f"Whoever runs it can let that name in with '--allowed-hosts {name}'."
            )
            raise ApiError(403, "host_not_allowed", message, type="permission_error")
        return hosts[0]

    def _check_origin(self, scope: Scope, origin: list[bytes], host: bytes) -> None:
        """A browser tells with `Sec-Fetch-Site` what it thinks; no page can set that. It helps where a proxy
        has changed the Host.
        """
        if len(origin) == 1 and origin[0] in self.origins:
            return
        if scope["method"] in SAFE_METHODS and not _is_preflight(scope):
            return
        own = origin[0].partition(b"://")[2].lower() == host.lower() and bool(host)
        if len(origin) == 1 and (own or _values(scope["headers"], b"sec-fetch-site") == [b"same-origin"]):
            return
        name = shown(origin[0].decode("latin-1"), 100)
        message = (
            f"Pages of the origin '{name}' may not use this server. "
            f"Whoever runs it can let them in with '--allowed-origins {name}'."
        )
        raise ApiError(403, "origin_not_allowed", message, type="permission_error")

    async def _allow(self, origin: bytes, scope: Scope, receive: Receive, send: Send) -> None:
        headers: Headers = [(b"access-control-allow-origin", origin), (b"vary", b"origin")]
        if not _is_preflight(scope):
            headers.append((b"access-control-expose-headers", _EXPOSED))
            await self.app(scope, receive, _with(send, headers))
            return
        headers += [
            (b"access-control-allow-methods", _METHODS),
            (b"access-control-max-age", PREFLIGHT_SECONDS),
        ]
        wanted = _values(scope["headers"], b"access-control-request-headers")
        if len(wanted) == 1 and _FIELD_NAMES.fullmatch(wanted[0]):
            headers.append((b"access-control-allow-headers", wanted[0]))
        await send({"type": "http.response.start", "status": 204, "headers": headers})
        await send({"type": "http.response.body", "body": b""})


def host_name(host: bytes) -> str:
    """The name in a Host header, without the port; an IPv6 address keeps its brackets."""
    name = host.decode("latin-1").strip().lower()
    bare, colon, port = name.rpartition(":")
    return (bare if colon and port.isdecimal() else name).removesuffix(".")


def _is_preflight(scope: Scope) -> bool:
    return scope["method"] == "OPTIONS" and bool(_values(scope["headers"], b"access-control-request-method"))


def _values(headers: Headers, name: bytes) -> list[bytes]:
    return [value for key, value in headers if key == name]


def _with(send: Send, headers: Headers) -> Send:
    # Not a coroutine function: body messages pass without a frame of their own.
    def send_with_headers(message: Message) -> Awaitable[None]:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", []), *headers]
        return send(message)

    return send_with_headers
