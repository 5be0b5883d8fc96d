"""Pure ASGI wrappers: a request id on every answer, no traceback on the wire."""

import logging
import re
import secrets
from collections.abc import Awaitable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.http.dialects import error_answer, is_anthropic
from app.http.errors import InternalError
from app.http.lifecycle import Lifecycle

log = logging.getLogger("fastpath.http")

_SANE_ID = re.compile(rb"[A-Za-z0-9._:\-]{1,128}")


def request_id(scope: Scope) -> str:
    """The id that `RequestIds` gave this request."""
    value: object = scope.get("request_id")
    return value if isinstance(value, str) else ""


def key_id(scope: Scope) -> str:
    """The id of the API key that came with this request; empty where the server has none."""
    value: object = scope.get("key_id")
    return value if isinstance(value, str) else ""


class RequestIds:
    """Echoes a client's X-Request-Id if it is sane, else invents one; every answer carries it, and, while the
    server drains, `Connection: close`.
    """

    def __init__(self, app: ASGIApp, lifecycle: Lifecycle) -> None:
        self.app = app
        self.lifecycle = lifecycle

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        value = next((v for k, v in scope["headers"] if k == b"x-request-id"), b"")
        if not _SANE_ID.fullmatch(value):
            value = b"req_" + secrets.token_hex(12).encode()
        scope["request_id"] = value.decode()
        names = [b"x-request-id", b"request-id"][: 1 + is_anthropic(scope)]
        own = [(name, value) for name in names]

        # Not a coroutine function: body messages pass without a frame of their own.
        def send_with_id(message: Message) -> Awaitable[None]:
            if message["type"] == "http.response.start":
                headers = [*message.get("headers", []), *own]
                if self.lifecycle.draining and not any(name == b"connection" for name, _ in headers):
                    headers.append((b"connection", b"close"))
                message["headers"] = headers
            return send(message)

        await self.app(scope, receive, send_with_id)


class Faults:
    """Turns an exception that nobody expected into a plain 500; the traceback goes to the log only."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = False

        def watched(message: Message) -> Awaitable[None]:
            nonlocal started
            started = True
            return send(message)

        try:
            await self.app(scope, receive, watched)
        except Exception:
            log.exception("request %s failed", request_id(scope))
            if started:
                raise  # too late for a status: the server closes the connection
            await error_answer(InternalError(), scope)(scope, receive, send)
