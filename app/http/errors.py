"""What can be wrong with a request, as one tree of exceptions, and its shape on the wire.

Every error answers with `{"error": {"message", "type", "param", "code"}}`, codes are strings. The same object
becomes an SSE event when it happens after the headers have left.
"""

import asyncio
from collections.abc import Mapping

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

SERVER_ERROR = "server_error"
INVALID_REQUEST = "invalid_request_error"
UNAVAILABLE = "service_unavailable"

_LINGER_BYTES = 64 * 1024 * 1024
_LINGER_SECONDS = 2.0


class ApiError(Exception):
    """Ends one request. `param` names the field at fault, `headers` travel with the HTTP answer."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        type: str = INVALID_REQUEST,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.type = type
        self.param = param
        self.headers = dict(headers or {})

    def payload(self) -> dict[str, str | None]:
        return {"message": self.message, "type": self.type, "param": self.param, "code": self.code}


class RequestError(ApiError):
    """The client's request is wrong: status 400 unless the subclass says otherwise."""

    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(400, code, message, param=param)


class Unsupported(RequestError):
    """A known field with a value that this server does not act on; never silently dropped."""

    def __init__(self, param: str, why: str = "") -> None:
        detail = f": {why}" if why else "."
        super().__init__("unsupported_parameter", f"'{param}' is not supported by this server{detail}", param)


class ContextLengthExceeded(RequestError):
    def __init__(self, message: str, param: str) -> None:
        super().__init__("context_length_exceeded", message, param)


class GrammarFailed(RequestError):
    """The form of the answer that `param` asks for compiled, but turned out to be too much on the way."""

    def __init__(self, message: str, param: str) -> None:
        reason = message.partition(";")[0]  # behind it the library has advice for who runs it
        super().__init__("grammar_failed", f"'{param}': {reason}.", param)


class TooLarge(ApiError):
    def __init__(self, limit: int) -> None:
        message = f"The request body is larger than {limit} bytes."
        super().__init__(413, "request_too_large", message, headers={"connection": "close"})


class Unavailable(ApiError):
    """Status 503 with Retry-After: the client may try again."""

    def __init__(self, code: str, message: str, retry_after: int = 1, param: str | None = None) -> None:
        headers = {"retry-after": str(retry_after)}
        super().__init__(503, code, message, type=UNAVAILABLE, param=param, headers=headers)


class Overloaded(Unavailable):
    """Too many requests of all clients together; `milliseconds` is `seconds` more exactly."""

    def __init__(self, message: str, seconds: int, milliseconds: int) -> None:
        super().__init__("overloaded", message, seconds)
        self.headers |= {"retry-after-ms": str(milliseconds), "x-should-retry": "true"}


class QueueTimeout(Unavailable):
    def __init__(self, waited: float, seconds: int, milliseconds: int) -> None:
        message = f"The request waited for {waited:g} seconds, and its turn did not come."
        super().__init__("queue_timeout", message, seconds)
        self.headers |= {"retry-after-ms": str(milliseconds), "x-should-retry": "true"}


class QueueFull(ApiError):
    """Too many requests of this one client (its key): status 429."""

    def __init__(self, message: str, seconds: int, milliseconds: int, param: str | None = None) -> None:
        headers = {
            "retry-after": str(seconds),
            "retry-after-ms": str(milliseconds),
            "x-should-retry": "true",
        }
        super().__init__(429, "queue_full", message, type="rate_limit_error", param=param, headers=headers)


class EngineGone(Unavailable):
    def __init__(self, message: str = "The engine is not ready.") -> None:
        super().__init__("engine_unavailable", message, retry_after=2)


class OutOfMemory(Unavailable):
    """The model had no memory left for this one request."""

    def __init__(self, message: str) -> None:
        super().__init__("out_of_memory", message, retry_after=2)


class Draining(Unavailable):
    def __init__(self) -> None:
        super().__init__("draining", "The server is shutting down and takes no new requests.", retry_after=5)
        self.headers["connection"] = "close"


class ServerShutdown(Unavailable):
    def __init__(self) -> None:
        super().__init__(
            "server_shutdown", "The server shut down before the answer was complete.", retry_after=5
        )


class DeadlineExceeded(ApiError):
    def __init__(self, seconds: float) -> None:
        message = f"The request took longer than {seconds:g} seconds."
        super().__init__(504, "deadline_exceeded", message, type="timeout_error", headers=_NO_RETRY)


class InternalError(ApiError):
    """A fault of ours in this one request. Clients are told not to run it again by themselves."""

    def __init__(self, message: str = "The server failed to answer this request.") -> None:
        super().__init__(500, "internal_error", message, type=SERVER_ERROR, headers=_NO_RETRY)


class NotImplementedHere(ApiError):
    """Status 501: absent on purpose, so trying again is of no use."""

    def __init__(self, message: str) -> None:
        super().__init__(501, "not_implemented", message, type=SERVER_ERROR, headers=_NO_RETRY)


class Cancelled(ApiError):
    """Status 499: another request of the same client ended this one."""

    def __init__(self) -> None:
        super().__init__(
            499, "request_cancelled", "The request was cancelled.", type="cancelled_error", headers=_NO_RETRY
        )


class PoisonRequest(ApiError):
    """The engine died twice while it worked on this request."""

    def __init__(self) -> None:
        message = "The engine ended twice while it worked on this request, which is therefore refused."
        super().__init__(500, "poison_request", message, type=SERVER_ERROR, headers=_NO_RETRY)


class StreamCancelled(ApiError):
    def __init__(self) -> None:
        super().__init__(410, "stream_cancelled", "The stream was ended by a DELETE.")


class StreamGap(ApiError):
    def __init__(self, first: int) -> None:
        message = f"Events before {first} have been forgotten."
        super().__init__(410, "stream_gap", message, headers=_NO_RETRY)


class ClientGone(Exception):
    """The client closed its connection before the answer began; there is nobody to tell."""


_NO_RETRY = {"x-should-retry": "false"}


def error_body(error: ApiError, *, detail: bool = False) -> bytes:
    """The JSON body; `detail` adds the field that nanochat's clients read."""
    body: dict[str, object] = {"error": error.payload()}
    if detail:
        body["detail"] = error.message
    return msgspec.json.encode(body)


class _Early(Response):
    """An answer to a request whose body is still on its way.

    It is sent first; then what the client still sends is taken for a while, for closing on unread data would
    destroy the answer.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
        await _discard(receive)
        await send({"type": "http.response.body", "body": b""})


async def _discard(receive: Receive) -> None:
    seen, more = 0, True
    try:
        async with asyncio.timeout(_LINGER_SECONDS):
            while more and seen < _LINGER_BYTES:
                message = await receive()
                seen += len(message.get("body", b""))
                more = message["type"] == "http.request" and message.get("more_body", False)
    except TimeoutError:
        pass


def error_response(error: ApiError, body: bytes | None = None, *, detail: bool = False) -> Response:
    """body: the error in a shape of its own."""
    response = _Early if isinstance(error, TooLarge) else Response
    data = error_body(error, detail=detail) if body is None else body
    return response(data, error.status, headers=error.headers, media_type="application/json")
