"""Rows 30 to 35 of docs/faults.md: keys, ways around them, methods, headers, slow and idle connections."""

import base64
import contextlib
import itertools
import json
import os
import select
import socket
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pytest

from tests.app.server_process import DEADLINE
from tests.faults.harness import (
    CHAT,
    COMPLETIONS,
    NORMAL,
    SHOWN,
    TRACEBACK,
    Reply,
    Service,
    allow_open_files,
    check_form,
    head,
    is_closed,
    launch,
    percentile,
    read_reply,
    refused,
    request_bytes,
    unharmed,
)

KEY, OTHER_KEY = "sk-right-4711", "sk-second-0815"
PROTECTED = ("/v1/models", "/v1/models/x", "/stats", "/stats/stream", "/metrics")
OPEN = ("/health", "/ready", "/", "/static/app.js")


@pytest.fixture(scope="module")
def guarded(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A server that wants a key: one comes from a file, one from the environment."""
    file = tmp_path_factory.mktemp("keys") / "keys"
    file.write_text(f"{OTHER_KEY}\n")
    with launch(tiny_model, "--api-key-file", str(file), key=KEY, APP_API_KEY=KEY) as service:
        yield service


def bare(service: Service, path: str, *lines: bytes, method: str = "GET", version: str = "1.1") -> Reply:
    """A request of exactly these header lines, without the key that normal requests carry."""
    body = json.dumps(NORMAL).encode() if method == "POST" else b""
    own = [b"Host: 127.0.0.1"] if not any(line.lower().startswith(b"host:") for line in lines) else []
    if body:
        own += [b"Content-Type: application/json", b"Content-Length: %d" % len(body)]
    start = f"{method} {path} HTTP/{version}".encode()
    return service.raw(b"\r\n".join([start, *own, *lines, b"", body]), method)


# -- keys
# ---------------------------------------------------------------------------------------------


def test_30_keys(guarded: Service) -> None:
    good = KEY.encode()
    with unharmed(guarded):
        wrong: list[list[bytes]] = [
            [],
            [b"Authorization: Bearer wrong"],
            [b"Authorization: Bearer " + good + b"x"],
            [b"Authorization: Bearer " + good[:-1]],
            [b"Authorization: Bearer " + good.upper()],
            [b"Authorization: Bearer"],
            [b"Authorization: Bearer "],
            [b"Authorization: "],
            [b"Authorization: " + good],
            [b"Authorization: Basic " + base64.b64encode(b"user:" + good)],
            [b"Authorization: Bearer \xff\xfe\xfd"],
            [b"Authorization: Bearer " + "ключ".encode()],
            [b"Authorization: Bearer " + good + "é".encode("latin-1")],
            [b"X-Api-Key: wrong"],
            [b"X-Api-Key: \xe9"],
            [b"Cookie: api_key=" + good],
            [b"Authorization: Bearer " + good, b"Authorization: Bearer wrong"],
            [b"Authorization: Bearer wrong", b"Authorization: Bearer " + good],
        ]
        for lines in wrong:
            for path, method in ((COMPLETIONS, "POST"), ("/v1/models", "GET")):
                reply = bare(guarded, path, *lines, method=method)
                refused(reply, 401, code="invalid_api_key")
                assert reply.headers["www-authenticate"].lower().startswith("bearer")
        for query in ("api_key", "key", "token", "access_token", "authorization"):
            refused(bare(guarded, f"/v1/models?{query}={KEY}"), 401, code="invalid_api_key")
        right = [
            b"Authorization: Bearer " + good,
            b"authorization: bearer " + good,
            b"AUTHORIZATION: BEARER " + good,
            b"X-Api-Key: " + good,
            b"Authorization: Bearer " + OTHER_KEY.encode(),
        ]
        for line in right:
            reply = bare(guarded, COMPLETIONS, line, method="POST")
            assert reply.status == 200, (line, reply.body[:SHOWN])
        log = guarded.logged()
        assert "TypeError" not in log and KEY not in log and OTHER_KEY not in log


def test_30_what_a_key_protects(guarded: Service) -> None:
    with unharmed(guarded):
        for path in PROTECTED:
            refused(bare(guarded, path), 401, code="invalid_api_key")
        for path in (CHAT, COMPLETIONS, "/chat/completions"):
            refused(bare(guarded, path, method="POST"), 401, code="invalid_api_key")
        for path in OPEN:
            assert bare(guarded, path).status == 200, path


# -- ways around the keys
# ---------------------------------------------------------------------------------------------

DETOURS = (
    "//v1/models",
    "///v1/models",
    "/v1//models",
    "/./v1/models",
    "/v1/./models",
    "/v1/../v1/models",
    "/health/../v1/models",
    "/static/../v1/models",
    "/static/%2e%2e/v1/models",
    "/static/..%2fv1/models",
    "/v1/%2e%2e/v1/models",
    "/%2e/v1/models",
    "/%76%31/%6d%6f%64%65%6c%73",
    "/v1%2fmodels",
    "/health%2f..%2fv1/models",
    "/health;/v1/models",
    "/health/%2e%2e/stats",
    "/v1/models/",
    "/v1/models/.",
    "/v1/models#/health",
    "/v1/models?path=/health",
    "/V1/models",
    "/v1/models%00",
    "/v1/models%20",
    "/v1/models;a=/health",
    "/\\v1/models",
    "http://127.0.0.1/v1/models",
    "http://evil.example/v1/models",
    "http://evil.example/health/../v1/models",
    "stats",
    "/stats/",
    "/./stats",
    "/metrics/../metrics",
)
HOSTS = (
    b"Host: /health",
    b"Host: 127.0.0.1/health?",
    b"Host: 127.0.0.1/health#",
    b"Host: 127.0.0.1:1/ready",
    b"Host: a@b/static",
    b"Host:",
    b"Host: \xff",
)
PREFIXES = (
    b"X-Forwarded-Prefix: /health",
    b"X-Original-URL: /health",
    b"X-Rewrite-URL: /health",
    b"X-Forwarded-For: 127.0.0.1",
    b"X-Forwarded-Host: 127.0.0.1/health",
    b"X-HTTP-Method-Override: OPTIONS",
    b"Root-Path: /health",
    b"Script-Name: /health",
    b"Forwarded: for=127.0.0.1;host=/health",
)


def closed_door(reply: Reply, what: object) -> None:
    """Neither an answer nor a redirection to one."""
    assert reply.status in (400, 401, 403, 404, 405, 421), (what, reply.status, reply.body[:SHOWN])
    assert b'"data"' not in reply.body and b"vllm:" not in reply.body, what


def test_31_no_way_around_the_key(guarded: Service) -> None:
    with unharmed(guarded):
        for target in DETOURS:
            reply = bare(guarded, target)
            closed_door(reply, target)
            if target.startswith("/") and "#" not in target:
                assert reply.status in (401, 404), target
        for line in (*HOSTS, *PREFIXES):
            for path in PROTECTED:
                closed_door(bare(guarded, path, line), (line, path))
        for line in PREFIXES:
            refused(bare(guarded, "/v1/models", line), 401)
        two_hosts = [b"Host: 127.0.0.1", b"Host: 127.0.0.1/health"]
        closed_door(bare(guarded, "/v1/models", *two_hosts), two_hosts)
        for method in ("HEAD", "OPTIONS", "PUT", "DELETE", "PATCH", "TRACE", "PROPFIND"):
            closed_door(bare(guarded, "/v1/models", method=method), method)


# -- methods and protocols
# ---------------------------------------------------------------------------------------------


def test_32_methods(service: Service) -> None:
    posts = (CHAT, COMPLETIONS, "/chat/completions")
    for path, method in itertools.product(
        posts, ("GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE", "PATCH")
    ):
        reply = bare(service, path, method=method)
        assert (reply.status, reply.headers.get("allow")) == (405, "POST"), (path, method)
        assert not any(name.startswith("access-control") for name in reply.headers)
    for path in ("/health", "/ready", "/v1/models", "/stats"):
        assert service.get(path).status == 200
        reply = service.send(path, b"", {}, method="HEAD")
        assert (reply.status, reply.body) == (200, b"")
        for method in ("POST", "OPTIONS", "TRACE", "PUT"):
            assert bare(service, path, method=method).status == 405, (path, method)
    assert bare(service, "/health", method="GET", version="1.0").status == 200
    assert bare(service, "*", method="OPTIONS").status in (200, 204, 400, 404, 405)


def test_32_other_protocols(service: Service) -> None:
    upgrade = [
        b"Connection: Upgrade",
        b"Upgrade: websocket",
        b"Sec-WebSocket-Version: 13",
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    ]
    for path in (CHAT, "/health", "/v1/models"):
        reply = bare(service, path, *upgrade)
        assert reply.status in (200, 400, 404, 405, 426), reply.status
    h2c = [b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABkAAQAAP__"]
    assert bare(service, "/health", *h2c).status == 200
    foreign = {
        "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00",
        "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(256)) * 2,
        "SSH": b"SSH-2.0-OpenSSH_9.9\r\n",
        "noise": bytes(range(256)) * 4,
        "CONNECT": b"CONNECT example.org:443 HTTP/1.1\r\nHost: example.org:443\r\n\r\n",
        "method": b"GE\xffT /health HTTP/1.1\r\nHost: x\r\n\r\n",
        "version": b"GET /health HTTP/9.9\r\nHost: x\r\n\r\n",
    }
    # Its answer is one of HTTP/1, and the connection ends with it.
    assert service.raw(b"GET /health\r\n\r\n", "GET").status in (200, 400, 505)
    for name, data in foreign.items():
        turned_away(service, data, name, statuses=(400, 404, 405, 501, 505))


def turned_away(
    service: Service, data: bytes, what: str, *, statuses: Sequence[int], pieces: Iterable[bytes] = ()
) -> Reply:
    """What is no request is answered with one of these statuses, and its connection ends."""
    with service.connect() as sock:
        sock.settimeout(DEADLINE)
        with contextlib.suppress(ConnectionError):
            sock.sendall(data)
            for piece in pieces:
                if select.select([sock], [], [], 0)[0]:
                    break
                sock.sendall(piece)
        reply = read_reply(sock)
        assert reply.status in statuses, (what, reply.status, reply.body[:SHOWN])
        assert TRACEBACK not in reply.body
        check_form(reply, what)
        assert is_closed(sock, service.clock()), what
    return reply


def test_33_headers_that_no_client_sends(service: Service) -> None:
    start = b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    body = json.dumps(NORMAL).encode()
    length = b"Content-Length: %d\r\n" % len(body)
    chunked = b"Transfer-Encoding: chunked\r\n"
    chunk = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    too_large = (400, 431)
    before = service.rss()
    megabytes = iter([b"x" * (1 << 20)] * 20)
    turned_away(service, start + b"X-Big: ", "20 MB in a header", statuses=too_large, pieces=megabytes)
    names = (b"".join(b"X-%d: y\r\n" % (100 * k + n) for n in range(100)) for k in range(200))
    turned_away(service, start, "20,000 headers", statuses=too_large, pieces=names)
    paths = iter([b"a" * (1 << 20)] * 20)
    turned_away(service, b"GET /", "20 MB in the path", statuses=(400, 414, 431), pieces=paths)
    assert service.rss() - before < 16_000_000
    for what, lines in {
        "length and chunks": length + chunked,
        "chunks and length": chunked + length,
        "two lengths": length + b"Content-Length: 5\r\n",
        "a list of lengths": b"Content-Length: %d, 5\r\n" % len(body),
        "no number": b"Content-Length: abc\r\n",
        "negative": b"Content-Length: -5\r\n",
        "plus": b"Content-Length: +5\r\n",
        "folded": b"X-Folded: a\r\n b\r\n" + length,
        "folded length": b"Content-Length:\r\n %d\r\n" % len(body),
        "space in a name": b"X Y: z\r\n" + length,
        "space before a colon": b"Content-Length : %d\r\n" % len(body),
        "no colon": b"nonsense\r\n" + length,
        "nul": b"X-Nul: a\x00b\r\n" + length,
        "chunked twice": chunked * 2,
        "unknown encoding": b"Transfer-Encoding: identity, chunked, gzip\r\n",
    }.items():
        data = start + lines + b"\r\n" + (chunk if b"chunked" in lines else body)
        turned_away(service, data, what, statuses=(400, 501))
    for what, bad in {"no size": b"zz\r\nabc\r\n", "too long": b"f" * 20 + b"\r\nabc\r\n"}.items():
        with service.connect() as sock:
            sock.sendall(start + chunked + b"\r\n" + bad)
            sock.settimeout(DEADLINE)
            assert sock.recv(65536)[:12] in (b"HTTP/1.1 400", b"HTTP/1.1 413"), what
            assert is_closed(sock, service.clock()), what


# -- slow and idle connections
# ---------------------------------------------------------------------------------------------


def dribble(
    service: Service, socks: Sequence[socket.socket], every: float, seconds: float
) -> dict[socket.socket, tuple[float, float]]:
    """Sends a byte on each connection again and again; when each was answered or closed, from now on, by the
    wall's clock and by the fair one.
    """
    start, clock = time.monotonic(), service.clock()
    ended: dict[socket.socket, tuple[float, float]] = {}
    while len(ended) < len(socks) and time.monotonic() - start < seconds:
        waiting = [sock for sock in socks if sock not in ended]
        poll = select.poll()
        by_number = {sock.fileno(): sock for sock in waiting}
        for sock in waiting:
            poll.register(sock, select.POLLIN)
        for number, _ in poll.poll(every * 1000):
            ended[by_number[number]] = time.monotonic() - start, clock.seconds()
        for sock in waiting:
            if sock not in ended:
                with contextlib.suppress(OSError):
                    sock.send(b"a")
    return ended


def slow_clients(service: Service, headers: int, bodies: int) -> list[socket.socket]:
    """Half of them is stuck in a header, the others in a body."""
    socks = [service.connect() for _ in range(headers + bodies)]
    for sock in socks[:headers]:
        sock.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nX-Slow: ")
    for sock in socks[headers:]:
        sock.sendall(head(COMPLETIONS, 100_000) + b'{"prompt": "')
    return socks


def check_timed_out(service: Service, socks: Sequence[socket.socket]) -> None:
    for sock in socks:
        sock.settimeout(DEADLINE)
        reply = read_reply(sock)
        check_form(reply, "a slow client")
        refused(reply, 408, code="request_timeout")
        assert is_closed(sock, service.clock())


@pytest.mark.slow
def test_34_slow_clients_are_cut_off(tiny_model: Path) -> None:
    with (
        launch(tiny_model, "--header-timeout", "1", "--body-timeout", "1.5") as service,
        unharmed(service),
        contextlib.ExitStack() as stack,
    ):
        silent = stack.enter_context(service.connect())
        socks = slow_clients(service, 15, 15)
        for sock in socks:
            stack.enter_context(sock)
        ended = dribble(service, socks, 0.2, DEADLINE)
        assert len(ended) == len(socks)
        # A byte now and then moves no deadline.
        for which, least, most in ((socks[:15], 0.8, 2.5), (socks[15:], 1.2, 3.0)):
            assert all(least < ended[sock][0] and ended[sock][1] < most for sock in which)
        check_timed_out(service, socks)
        assert is_closed(silent, service.clock())


@pytest.mark.slow
def test_34_five_hundred_slow_clients_of_both_kinds(tiny_model: Path) -> None:
    allow_open_files(4096)

    def latencies(service: Service) -> float:
        """Of three p99 the best one: other programs of this machine may only make them longer."""
        rounds = [[service.post(COMPLETIONS, NORMAL).seconds for _ in range(200)] for _ in range(3)]
        return min(percentile(seconds, 0.99) for seconds in rounds)

    with (
        launch(tiny_model, "--header-timeout", "10", "--body-timeout", "15") as service,
        unharmed(service),
        contextlib.ExitStack() as stack,
    ):
        alone = latencies(service)
        socks = slow_clients(service, 500, 500)
        for sock in socks:
            stack.enter_context(sock)
        beside = latencies(service)
        ended = dribble(service, socks, 5.0, 40)
        assert len(ended) == len(socks)
        assert max(seconds for seconds, _ in ended.values()) < 25
        check_timed_out(service, socks)
        print(f"p99 of a normal request: {alone * 1000:.1f} ms alone, {beside * 1000:.1f} ms beside them")
        assert beside < 2 * alone + 0.005


def test_35_two_thousand_idle_connections(service: Service) -> None:
    allow_open_files(4096)
    before = service.open_files()
    with contextlib.ExitStack() as stack:
        for _ in range(2000):
            stack.enter_context(service.connect())
        seconds = [service.post(COMPLETIONS, NORMAL).seconds for _ in range(20)]
        assert max(seconds) < 1.0
        held = service.open_files()
        assert held >= 2000, "the connections were not held"
        limits = Path(f"/proc/{service.process.pid}/limits").read_text()
        allowed = next(line for line in limits.splitlines() if line.startswith("Max open files")).split()[3]
        assert int(allowed) > 2 * held, f"{held} of {allowed} files are open"
    service.until_stats(lambda _: service.open_files() <= before + 5, 10)


def test_35_more_connections_than_are_allowed(tiny_model: Path) -> None:
    with launch(tiny_model, "--max-connections", "40") as service, unharmed(service):
        with contextlib.ExitStack() as stack:
            kept = [stack.enter_context(service.connect()) for _ in range(40)]
            for sock in kept[:2]:  # they are known to be in
                sock.sendall(request_bytes(COMPLETIONS, NORMAL))
                assert read_reply(sock).status == 200
            for _ in range(10):
                with service.connect() as sock:
                    with contextlib.suppress(OSError):
                        sock.sendall(request_bytes(COMPLETIONS, NORMAL))
                    sock.settimeout(DEADLINE)
                    try:
                        reply = read_reply(sock)
                    except OSError:  # closed without a word (RemoteDisconnected is one of these)
                        continue
                    check_form(reply, "one connection too many")
                    assert reply.status == 503 and reply.headers["retry-after"]
            assert service.open_files() < 120
            # Those that are in are served on.
            kept[0].sendall(request_bytes(COMPLETIONS, NORMAL))
            assert read_reply(kept[0]).status == 200
        service.until_stats(lambda _: os.path.exists(f"/proc/{service.process.pid}"), 5)
