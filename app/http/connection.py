"""What a connection may cost before a request has arrived whole.

uvicorn reads whatever comes for as long as it comes. This protocol counts bytes and watches the clock while a
request's head and body arrive; it speaks only where the application has no say yet, in the application's
own error format, and closes then. While an answer is under way it does nothing but wait.
"""

import asyncio
import secrets
from enum import IntEnum

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE
from uvicorn.server import ServerState

from app.http.direct import DirectHttpProtocol
from app.http.errors import UNAVAILABLE, ApiError, error_body
from app.settings.http import ConnectionLimits

EXCESS_SECONDS = 1.0  # for a connection beyond the limit to say something, so that it hears why it must go
LINGER_SECONDS = 1.0  # for a client to read why it was refused; closing on unread data would destroy that
LINGER_BYTES = 32 * 1024 * 1024
GRACE_SECONDS = 1.0  # the application has its own clock for bodies, and more to say
RETRY_SECONDS = "5"
VERSIONS = ("1.0", "1.1")


class Phase(IntEnum):
    """What is arriving."""

    NOTHING = 0  # between two requests
    HEAD = 1
    BODY = 2


class _Refused(Exception):
    """Leaves the parser; `error` is what the client is told."""


class GuardedHttpProtocol(DirectHttpProtocol):
    """uvicorn's protocol within `limits`."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, object],
        _loop: asyncio.AbstractEventLoop | None = None,
        limits: ConnectionLimits | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.limits = limits or ConnectionLimits()
        self.timeout_keep_alive = self.limits.keep_alive  # type: ignore[assignment]
        self._phase = Phase.HEAD
        self._watched = Phase.NOTHING
        self._timer: asyncio.TimerHandle | None = None
        self._received = 0  # bytes of the request at hand, as they came
        self._head = 0  # of those, what the parser has made of its head
        self._refusal: ApiError | None = None
        self._closing = False  # it has been refused: what still comes is not looked at
        self._excess = False
        self._offered = False  # another protocol, in the head that has just been parsed

    # -- the connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        open_now, most = len(self.connections), self.limits.connections
        if open_now <= most:
            self._watch()
        elif open_now <= most + max(64, most // 8):
            self._excess = True
            self._timer = self.loop.call_later(EXCESS_SECONDS, transport.abort)
        else:
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_watching()
        self._unset_keepalive_if_required()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        self._received += len(data)
        if self._closing:
            if self._received > LINGER_BYTES:
                self.transport.abort()
            return
        if self._excess:
            self._refuse(_too_many())
            return
        if self._phase is Phase.NOTHING:
            self._phase = Phase.HEAD
        try:
            self._parse(data)
        except httptools.HttpParserError:
            self._refuse(self._refusal or _invalid())
            return
        if self._phase is Phase.HEAD and self._received > self.limits.head:
            self._refuse(_head_too_large(self.limits))
        elif self._received > self.limits.message:
            self._refuse(_too_large(self.limits))
        else:
            self._watch()

    def _parse(self, data: bytes) -> None:
        """Feeds the parser. Raises HttpParserError."""
        while True:
            try:
                self.parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as offer:
                # The parser takes a request that offers another protocol for one without a body. So it is
                # parsed again, as if nothing had been offered.
                data = self._without_offer() + data[int(offer.args[0]) :]
                self.parser = httptools.HttpRequestParser(self)

    def _without_offer(self) -> bytes:
        method, version = self.parser.get_method(), self.parser.get_http_version().encode()
        lines = [b"%b %b HTTP/%b" % (method, self.url, version)]
        for name, value in self.headers:
            if name == b"connection":
                value = b", ".join(word for word in _words(value) if word.lower() != b"upgrade")
            if name != b"upgrade" and (value or name != b"connection"):
                lines.append(name + b": " + value)
        return b"\r\n".join([*lines, b"", b""])

    # -- the parser's callbacks

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._phase = Phase.HEAD
        self._head = 0

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        if len(self.url) > self.limits.url:
            self._reject(ApiError(414, "uri_too_long", f"The URL is longer than {self.limits.url} bytes."))

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._phase is Phase.BODY:
            return  # a trailer: the headers that were checked are those in front
        self._head += len(name) + len(value) + 4
        if len(self.headers) >= self.limits.headers or self._head + len(self.url) > self.limits.head:
            self._reject(_head_too_large(self.limits))
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if self.parser.get_http_version() not in VERSIONS:
            self._reject(_invalid())
        self._offered = self.parser.should_upgrade()
        if self._offered:
            if self.parser.get_method() == b"CONNECT":
                self._reject(_invalid())
            return
        self._phase = Phase.BODY
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        if self._offered:
            return
        self._phase = Phase.NOTHING
        self._received = 0
        super().on_message_complete()

    # -- the clock

    def _watch(self) -> None:
        """Sets the clock for what is arriving, unless it runs already."""
        if self._phase is self._watched:
            return
        self._stop_watching()
        self._watched = self._phase
        if self._phase is Phase.HEAD:
            self._timer = self.loop.call_later(self.limits.head_timeout, self._head_is_late)
        elif self._phase is Phase.BODY:
            seconds = self.limits.body_timeout + GRACE_SECONDS
            self._timer = self.loop.call_later(seconds, self._body_is_late)
        elif self.cycle is not None and self.cycle.response_complete and not self._closing:
            # The answer came before the end of the body, and the body's bytes have stopped uvicorn's clock.
            self.timeout_keep_alive_task = self.loop.call_later(
                self.limits.keep_alive, self.timeout_keep_alive_handler
            )

    def _stop_watching(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._watched = Phase.NOTHING

    def _head_is_late(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            # The next request can wait until this one has been answered.
            self._timer = self.loop.call_later(self.limits.head_timeout, self._head_is_late)
        elif not self._received:
            self.transport.abort()
        else:
            self._refuse(_late("headers", self.limits.head_timeout))

    def _body_is_late(self) -> None:
        self._refuse(_late("body", self.limits.body_timeout))

    # -- refusing

    def _reject(self, error: ApiError) -> None:
        """Ends the parser's run from within a callback."""
        self._refusal = error
        raise _Refused

    def _refuse(self, error: ApiError) -> None:
        """Answers in the application's place, and closes."""
        self._stop_watching()
        self._closing = True
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete:
            # Between an answer that has begun and its end nothing else can be said.
            if cycle.response_started:
                self.transport.close()
                return
            cycle.disconnected = True
            cycle.message_event.set()
        elif cycle is not None and self._phase is Phase.BODY:
            self.transport.close()  # this request has had its answer
            return
        self.transport.write(_answer(error))
        if self.transport.can_write_eof():
            self._received = 0
            self.transport.write_eof()
            self._timer = self.loop.call_later(LINGER_SECONDS, self.transport.abort)
        else:
            self.transport.close()


def _words(value: bytes) -> list[bytes]:
    return [word.strip() for word in value.split(b",") if word.strip()]


def _answer(error: ApiError) -> bytes:
    body = error_body(error)
    headers = {
        "content-type": "application/json",
        "content-length": str(len(body)),
        "connection": "close",
        "x-request-id": "req_" + secrets.token_hex(12),
        **error.headers,
    }
    lines = [f"{name}: {value}\r\n".encode() for name, value in headers.items()]
    return b"".join([STATUS_LINE[error.status], *lines, b"\r\n", body])


def _invalid() -> ApiError:
    return ApiError(400, "invalid_http", "What was received is not a valid HTTP/1.1 request.")


def _head_too_large(limits: ConnectionLimits) -> ApiError:
    message = f"The headers are more than {limits.headers}, or larger than {limits.head} bytes."
    return ApiError(431, "headers_too_large", message)


def _too_large(limits: ConnectionLimits) -> ApiError:
    message = f"The request is larger than {limits.message} bytes."
    return ApiError(413, "request_too_large", message)


def _late(what: str, seconds: float) -> ApiError:
    message = f"The request's {what} did not arrive within {seconds:g} seconds."
    return ApiError(408, "request_timeout", message, type="timeout_error")


def _too_many() -> ApiError:
    headers = {"retry-after": RETRY_SECONDS, "x-should-retry": "true"}
    message = "The server has as many connections as it can take."
    return ApiError(503, "overloaded", message, type=UNAVAILABLE, headers=headers)
