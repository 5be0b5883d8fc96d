"""Reads a JSON body: its type, its size while it arrives, its depth. Its fields are for others."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec
from starlette.datastructures import Headers
from starlette.types import Receive, Scope

from app.http.errors import ApiError, ClientGone, RequestError, TooLarge, Unavailable
from app.settings.http import HttpSettings

MAX_DEPTH = 64
AT_ONCE = 64  # bodies of the largest size that are held at a time, or more smaller ones
UPLOAD_SECONDS = 2  # to wait for room
THREAD_ABOVE = 128 * 1024  # bytes; decoding more than this would hold up the streams of others

_decoder = msgspec.json.Decoder()


class Uploads:
    """Bodies that are arriving or being decoded: their bytes together have a limit, whoever sends them."""

    def __init__(self, settings: HttpSettings) -> None:
        self.held = 0
        self._limit = AT_ONCE * settings.max_body_bytes

    def add(self, count: int) -> None:
        """Raises Unavailable (503) where there is no room, and then has changed nothing."""
        if self.held + count > self._limit:
            error = Unavailable(
                "overloaded", "Too many large request bodies arrive at a time.", UPLOAD_SECONDS
            )
            error.headers["connection"] = "close"
            raise error
        self.held += count

    @contextmanager
    def releasing(self, data: bytearray) -> Iterator[None]:
        """Gives back, in the end, what `data` then holds."""
        try:
            yield
        finally:
            self.held -= len(data)


async def read_object(
    scope: Scope, receive: Receive, settings: HttpSettings, uploads: Uploads
) -> dict[str, object]:
    """The body as a JSON object. Raises ApiError (400, 408, 413, 415, 503), or ClientGone."""
    data = bytearray()
    with uploads.releasing(data):
        await _arrived(data, scope, receive, settings, uploads)
        if len(data) > THREAD_ABOVE:
            return await asyncio.to_thread(parse_object, data)
        return parse_object(data)


async def _arrived(
    data: bytearray, scope: Scope, receive: Receive, settings: HttpSettings, uploads: Uploads
) -> None:
    """Fills `data` with the body."""
    headers = Headers(scope=scope)
    _check_type(headers)
    try:
        async with asyncio.timeout(settings.body_timeout):
            await _read(data, headers, receive, settings.max_body_bytes, uploads)
    except TimeoutError:
        raise ApiError(
            408,
            "request_timeout",
            f"The request body did not arrive within {settings.body_timeout:g} seconds.",
            type="timeout_error",
            headers={"connection": "close"},
        ) from None


def parse_object(data: bytes | bytearray) -> dict[str, object]:
    """Strict JSON: no NaN, no lone surrogates, at most `MAX_DEPTH` levels. Raises RequestError."""
    if data[:3] == b"\xef\xbb\xbf":
        data = data[3:]
    try:
        value: object = _decoder.decode(data)
    except RecursionError:
        raise _too_deep() from None
    except UnicodeDecodeError:
        raise RequestError("invalid_json", "The body is not valid UTF-8.") from None
    except msgspec.DecodeError as error:
        raise RequestError("invalid_json", f"The body is not valid JSON: {error}", _culprit(data)) from None
    if not isinstance(value, dict):
        raise RequestError("invalid_type", "The body must be a JSON object.")
    if data.count(b"[") + data.count(b"{") > MAX_DEPTH:
        _check_depth(value)
    return value


def _culprit(data: bytes | bytearray) -> str | None:
    """The top-level field that holds what cannot be decoded (a number out of range), if it can be told."""
    try:
        fields = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    for name, raw in fields.items():
        try:
            _decoder.decode(raw)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return name
    return None


def _check_type(headers: Headers) -> None:
    media, _, parameters = headers.get("content-type", "").partition(";")
    if media.strip().lower() != "application/json":
        raise ApiError(415, "unsupported_media_type", "Send the body with Content-Type: application/json.")
    charset = parameters.strip().lower().partition("charset=")[2].strip('" ')
    if charset not in ("", "utf-8", "utf8"):
        raise ApiError(
            415, "unsupported_media_type", f"The charset {charset[:40]!r} is not supported, use utf-8."
        )
    encoding = headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise ApiError(415, "unsupported_media_type", f"Content-Encoding {encoding[:40]!r} is not supported.")


async def _read(data: bytearray, headers: Headers, receive: Receive, limit: int, uploads: Uploads) -> None:
    declared = headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limit:
        raise TooLarge(limit)
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        piece = message.get("body", b"")
        uploads.add(len(piece))
        data += piece
        more = message.get("more_body", False)
        if len(data) > limit:
            raise TooLarge(limit)


def _check_depth(value: object) -> None:
    level: list[object] = [value]
    for _ in range(MAX_DEPTH):
        below: list[object] = []
        for item in level:
            children = item.values() if isinstance(item, dict) else item if isinstance(item, list) else ()
            below += [child for child in children if isinstance(child, (dict, list))]
        if not below:
            return
        level = below
    raise _too_deep()


def _too_deep() -> RequestError:
    return RequestError("invalid_json", f"The body is nested deeper than {MAX_DEPTH} levels.")
