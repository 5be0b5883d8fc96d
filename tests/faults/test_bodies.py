"""Rows 1 to 8 of docs/faults.md: what is wrong with a body before any field is looked at."""

import gzip
import json
import select
import socket

import pytest

from tests.app.server_process import DEADLINE
from tests.faults.harness import (
    CHAT,
    COMPLETIONS,
    SHOWN,
    USER,
    Reply,
    Service,
    check_form,
    head,
    is_closed,
    read_reply,
    refused,
)
from tests.tiers import tiered

HUGE = 60_000_000  # bytes
PIECE = b" " * 65536
DEEP = 100_000
DEEP_SECONDS = 0.05

INTEGERS = ("max_tokens", "max_completion_tokens", "min_tokens", "n", "seed", "top_k", "best_of")
NUMBERS = (
    "temperature",
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
)
ZERO_IS_FINE = (
    "min_tokens",
    "seed",
    "top_k",
    "temperature",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
)
ROUTES = {COMPLETIONS: '"prompt": [1, 2]', CHAT: f'"messages": {json.dumps(USER)}'}


@pytest.mark.parametrize("path", ROUTES)
def test_01_bodies_that_are_no_object(service: Service, path: str) -> None:
    for body in ("{", "", " ", '{"a": }', "{'a': 1}", '{"a": 1} x'):
        refused(service.send(path, body), code="invalid_json")
    for body in ("null", "[]", '"x"', "5", "true"):
        refused(service.send(path, body), code="invalid_type")


@pytest.mark.parametrize("path", ROUTES)
def test_02_numbers_that_json_or_a_machine_has_not(service: Service, path: str) -> None:
    bad = ("NaN", "Infinity", "-Infinity", "1e999", str(2**63), "1" + "0" * 400)
    own = ("logprobs",) if path == COMPLETIONS else ("top_logprobs",)
    for name in (*INTEGERS, *NUMBERS, *own):
        for value in bad:
            reply = service.send(path, f'{{{ROUTES[path]}, "{name}": {value}}}')
            refused(reply, code=("invalid_json", "invalid_type", "out_of_range", "unsupported_parameter"))
    for value in bad:
        refused(service.send(path, f'{{{ROUTES[path]}, "logit_bias": {{"5": {value}}}}}'))
    for name in ZERO_IS_FINE:
        zeros = ("-0",) if name in INTEGERS else ("-0", "-0.0", "-0e5")
        for zero in zeros:
            reply = service.send(path, f'{{{ROUTES[path]}, "max_tokens": 2, "{name}": {zero}}}')
            assert reply.status == 200, (name, zero, reply.body[:SHOWN])


@pytest.mark.parametrize("path", ROUTES)
def test_03_a_type_is_not_guessed(service: Service, path: str) -> None:
    def send(name: str, value: str) -> Reply:
        return service.send(path, f'{{{ROUTES[path]}, "{name}": {value}}}')

    for name in INTEGERS:
        for value in ("true", "false", '"5"', "1.5", "[1]", "{}"):
            refused(send(name, value), code="invalid_type", param=name)
    for name in NUMBERS:
        for value in ('"0.7"', "true", "[0.7]", "{}"):
            refused(send(name, value), code="invalid_type", param=name)
    for name in ("stream", "ignore_eos", "skip_special_tokens"):
        for value in ("1", "0", '"true"', "[]"):
            refused(send(name, value), code="invalid_type", param=name)


@pytest.mark.parametrize("chunked", tiered([False, True], {1}), ids=["declared", "chunked"])
def test_04_sixty_megabytes(service: Service, chunked: bool) -> None:
    """The answer comes before all of the body was taken, and the connection ends."""
    before = service.rss()
    size = len(PIECE)
    piece = b"%x\r\n%b\r\n" % (size, PIECE) if chunked else PIECE
    with service.connect() as sock:
        sock.sendall(head(CHAT, None if chunked else HUGE, *(["Transfer-Encoding: chunked"] * chunked)))
        taken = feed(sock, piece, HUGE // size)
        reply = read_reply(sock)
        check_form(reply, "sixty megabytes")
        refused(reply, 413, code="request_too_large")
        assert taken < HUGE // size, "the whole body was read first"
        assert is_closed(sock, service.clock())
    assert service.rss() - before < 16_000_000


def feed(sock: socket.socket, piece: bytes, times: int) -> int:
    """Sends a piece so many times, but only until the server answers or closes; how many times it did."""
    for count in range(times):
        answered, writable, _ = select.select([sock], [sock], [], DEADLINE)
        if answered:
            return count
        assert writable, "no answer, and nothing more is taken"
        try:
            sock.sendall(piece)
        except OSError:
            return count
    return times


def test_05_brackets_without_end(service: Service) -> None:
    bodies = [
        '{"messages": ' * DEEP + "1" + "}" * DEEP,
        '{"messages": ' + "[" * DEEP + "]" * DEEP + "}",
        '{"messages": ' + "[" * DEEP,
        '{"messages": [], "metadata": ' + '{"a":' * DEEP + "1" + "}" * (DEEP + 1),
        '{"messages": ' + "[" * 65 + "]" * 65 + "}",
    ]
    for body in bodies:
        replies = [service.send(CHAT, body) for _ in range(5)]
        for reply in replies:
            refused(reply, code="invalid_json")
        assert min(reply.seconds for reply in replies) < DEEP_SECONDS
    assert "RecursionError" not in service.logged()


def test_06_content_types_that_a_form_may_send(service: Service) -> None:
    body = json.dumps({"prompt": [1], "max_tokens": 1})
    types = (
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/jsonx",
        "text/json",
        "application/json; charset=utf-16",
        "",
    )
    for value in types:
        refused(service.send(COMPLETIONS, body, {"Content-Type": value}), 415, code="unsupported_media_type")
    refused(service.send(COMPLETIONS, body, {}), 415, code="unsupported_media_type")
    for value in ("application/json", "Application/JSON; Charset=UTF-8"):
        assert service.send(COMPLETIONS, body, {"Content-Type": value}).status == 200


def test_07_a_bomb_is_not_unpacked(service: Service) -> None:
    bomb = gzip.compress(b" " * 100_000_000, 9)
    before = service.rss()
    for encoding in ("gzip", "GZIP", "deflate", "br", "gzip, gzip", "x-gzip"):
        headers = {"Content-Type": "application/json", "Content-Encoding": encoding}
        refused(service.send(CHAT, bomb, headers), 415, code="unsupported_media_type")
    assert service.rss() - before < 16_000_000


def test_08_characters_that_are_none(service: Service) -> None:
    def chat(content: bytes) -> Reply:
        return service.send(
            CHAT, b'{"max_tokens": 1, "messages": [{"role": "user", "content": "%b"}]}' % content
        )

    surrogates = (rb"\ud800", rb"a\udfffz", rb"\ud800\ud800", rb"\udc00\ud800")
    broken = (b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xf8\x88\x80\x80\x80", b"\xc0\xaf")
    for content in (*surrogates, *broken):
        refused(chat(content), code="invalid_json")
    for content in (rb"a\u0000b", rb"\ufeffhi", b"\xef\xbb\xbfhi", rb"\ud83d\ude00", b"\xf0\x9f\x98\x80"):
        assert chat(content).status == 200, content
    body = json.dumps({"prompt": "hi\x00", "max_tokens": 1}).encode()
    assert service.send(COMPLETIONS, b"\xef\xbb\xbf" + body).status == 200
    refused(service.send(COMPLETIONS, body + b"\x00"), code="invalid_json")
