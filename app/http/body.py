"""Reads a JSON body: its type, its size while it arrives, its depth. Its fields are for others."""

import asyncio

import msgspec
from starlette.datastructures import Headers
from starlette.types import Receive, Scope

from app.http.errors import ApiError, ClientGone, RequestError, TooLarge
from app.settings.http import HttpSettings

MAX_DEPTH = 64
THREAD_ABOVE = 128 * 1024  # bytes; decoding more than this would hold up the streams of others

_decoder = msgspec.json.Decoder()


async def read_object(scope: Scope, receive: Receive, settings: HttpSettings) -> dict[str, object]:
    """The body as a JSON object. Raises ApiError (400, 408, 413, 415), or ClientGone."""
    headers = Headers(scope=scope)
    _check_type(headers)
    try:
        async with asyncio.timeout(settings.body_timeout):
            data = await _read(headers, receive, settings.max_body_bytes)
    except TimeoutError:
        raise ApiError(
            408,
            "request_timeout",
            f"The request body did not arrive within {settings.body_timeout:g} seconds.",
            type="timeout_error",
            headers={"connection": "close"},
        ) from None
    if len(data) > THREAD_ABOVE:
        return await asyncio.to_thread(parse_object, data)
    return parse_object(data)


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


async def _read(headers: Headers, receive: Receive, limit: int) -> bytearray:
    declared = headers.get("content-length", "")
    data = bytearray()
    if declared.isdecimal() and int(declared) > limit:
        raise TooLarge(limit)
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        data += message.get("body", b"")
        more = message.get("more_body", False)
        if len(data) > limit:
            raise TooLarge(limit)
    return data


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
