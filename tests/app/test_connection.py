"""Connections that no honest client would open: refused by name and closed, and nobody else notices."""

import asyncio
import json
import socket
import time

import pytest

from app.settings.http import ConnectionLimits, HttpSettings
from tests.app.raw_http import SECONDS, exchange, is_well
from tests.app.scripted_engine import ScriptedEngine, says
from tests.app.serving import served

HOST = b"Host: x\r\n"
POST = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
BODY = b'{"prompt": "x"}'
QUICK = ConnectionLimits(head_timeout=0.15, body_timeout=0.15, keep_alive=0.15)

FAULTY = {
    "a header of 20 MB": (b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 20_000_000 + b"\r\n\r\n", 431),
    "a header of 20 MB without an end": (b"GET / HTTP/1.1\r\nX: " + b"a" * 20_000_000, 431),
    "20,000 headers": (b"GET / HTTP/1.1\r\n" + b"X: a\r\n" * 20_000 + b"\r\n", 431),
    "101 headers": (b"GET / HTTP/1.1\r\n" + HOST + b"X: a\r\n" * 100 + b"\r\n", 431),
    "a long URL": (b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\n" + HOST + b"\r\n", 414),
    "both lengths": (POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    "both lengths, reversed": (
        POST + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
        400,
    ),
    "two lengths": (POST + b"Content-Length: 15\r\nContent-Length: 15\r\n\r\n" + BODY, 400),
    "a list of lengths": (POST + b"Content-Length: 15, 15\r\n\r\n" + BODY, 400),
    "a negative length": (POST + b"Content-Length: -1\r\n\r\n", 400),
    "an encoding of its own": (POST + b"Transfer-Encoding: xchunked\r\n\r\n" + BODY, 400),
    "chunked, but not last": (POST + b"Transfer-Encoding: chunked, identity\r\n\r\n" + BODY, 400),
    "a chunk of no size": (POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
    "a folded header": (b"GET /health HTTP/1.1\r\n" + HOST + b"X-A: b\r\n c\r\n\r\n", 400),
    "space before the colon": (b"GET /health HTTP/1.1\r\nHost : x\r\n\r\n", 400),
    "a NUL in a header": (b"GET /health HTTP/1.1\r\n" + HOST + b"A: b\0c\r\n\r\n", 400),
    "bare line feeds": (b"GET /health HTTP/1.1\nHost: x\n\n", 400),
    "HTTP/0.9": (b"GET /health\r\n\r\n", 400),
    "HTTP/1.2": (b"GET /health HTTP/1.2\r\n" + HOST + b"\r\n", 400),
    "the preface of HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    "a TLS greeting": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
    "CONNECT": (b"CONNECT a:443 HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "a method that is none": (b"FOO / HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "bytes beyond ASCII in the path": (b"GET /\xff HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "no host": (b"GET /health HTTP/1.1\r\nConnection: close\r\n\r\n", 400),
    "two hosts": (b"GET /health HTTP/1.1\r\nHost: x\r\nHost: y\r\nConnection: close\r\n\r\n", 400),
}


async def test_what_is_no_request_is_refused_and_closed() -> None:
    async with served(ScriptedEngine(says("ok"))) as s:
        for name, (data, status) in FAULTY.items():
            reply = await exchange(s.port, data)
            assert reply.status == status, (name, reply.data[:200])
            assert reply.error["type"] == "invalid_request_error" and reply.error["code"], name
            assert reply.headers["connection"] == "close", name
            assert reply.headers["x-request-id"], name
            assert b"Traceback" not in reply.data
            await is_well(s)


async def test_methods_and_offers_that_are_not_taken_up() -> None:
    close = HOST + b"Connection: close\r\n\r\n"
    websocket = HOST + b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\r\n"
    h2c = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nContent-Length: 15\r\n\r\n" + BODY
    cases = [
        (b"TRACE / HTTP/1.1\r\n" + close, 405),
        (b"TRACE /v1/completions HTTP/1.1\r\n" + close, 405),
        (b"HEAD /health HTTP/1.1\r\n" + close, 200),
        (b"HEAD /v1/completions HTTP/1.1\r\n" + close, 405),
        (b"OPTIONS /v1/completions HTTP/1.1\r\n" + close, 405),
        (b"OPTIONS * HTTP/1.1\r\n" + close, 404),
        (b"GET /v1/completions HTTP/1.1\r\n" + close, 405),
        (b"GET http://elsewhere/health HTTP/1.1\r\n" + close, 200),
        (b"GET /health HTTP/1.0\r\n\r\n", 200),
        (b"GET /health HTTP/1.1\r\n" + websocket + b"GET /health HTTP/1.1\r\n" + close, 200),
        (POST + h2c + b"GET /health HTTP/1.1\r\n" + close, 200),
    ]
    async with served(ScriptedEngine(says("ok"))) as s:
        for data, status in cases:
            reply = await exchange(s.port, data)
            assert reply.status == status, (data, reply.data[:200])
            if status == 405:
                assert reply.headers["allow"]
            if data.startswith(b"HEAD"):
                assert reply.data.endswith(b"\r\n\r\n")
            await is_well(s)


async def test_trailers_are_no_headers() -> None:
    """What is checked must be what is used, and a trailer comes after the checks."""
    chunks = b"f\r\n" + BODY + b"\r\n0\r\n"
    async with served(ScriptedEngine(says("ok"))) as s:
        head = POST + b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
        reply = await exchange(s.port, head + chunks + b"Host: second\r\nX-Request-Id: late\r\n\r\n")
        assert reply.status == 200 and reply.headers["x-request-id"] != "late"
        await is_well(s)


LATE = {
    "half a request line": (b"GET /hea", 408),
    "half the headers": (POST, 408),
    "HTTP/0.9 without an end": (b"GET /\r\n", 408),
    "nothing": (b"", 0),
    "half a body": (POST + b"Content-Length: 100\r\n\r\n{", 408),
    "half a body in chunks": (POST + b"Transfer-Encoding: chunked\r\n\r\nf\r\n{", 408),
    "half a body for somebody who does not want it": (
        b"GET /health HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{",
        200,
    ),
    "a request, then silence": (b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n", 200),
    "a request, then half of one": (b"GET /health HTTP/1.1\r\nHost: x\r\n\r\nGET /", 200),
    "a request, then a blank line": (b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n\r\n", 200),
}


async def test_what_does_not_arrive_is_not_waited_for() -> None:
    """`exchange` returns when the server has closed: each of these ends by itself."""
    settings = HttpSettings(body_timeout=0.15)
    async with served(ScriptedEngine(says("ok")), settings, limits=QUICK) as s:
        replies = await asyncio.gather(*(exchange(s.port, data) for data, _ in LATE.values()))
        for (name, (_, status)), reply in zip(LATE.items(), replies, strict=True):
            assert reply.status == status, (name, reply.data[:200])
            if status == 408:
                assert reply.error["code"] == "request_timeout", name
                assert reply.headers["connection"] == "close", name
        await is_well(s)


async def test_bytes_that_trickle_do_not_move_the_deadline() -> None:
    async def trickle(data: bytes) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", s.port)

        async def write() -> None:
            for byte in data:
                writer.write(bytes([byte]))
                await writer.drain()
                await asyncio.sleep(0.02)  # the attack is slowness itself

        writing = asyncio.ensure_future(write())
        try:
            async with asyncio.timeout(SECONDS):
                return await reader.read()
        except ConnectionResetError:
            return b""
        finally:
            writing.cancel()
            await asyncio.wait({writing})
            if not writing.cancelled():
                writing.exception()
            writer.close()

    answered = b"GET /health HTTP/1.1\r\nHost: x\r\nContent-Length: 500\r\n\r\n"
    settings = HttpSettings(body_timeout=0.15)
    async with served(ScriptedEngine(says("ok")), settings, limits=QUICK) as s:
        started = time.monotonic()
        head, body, unwanted, blank = await asyncio.gather(
            trickle(b"GET / HTTP/1.1\r\nX: " + b"a" * 500),
            trickle(POST + b"Content-Length: 500\r\n\r\n" + b" " * 500),
            trickle(answered + b" " * 500),
            trickle(b"\r\n" * 250),
        )
        assert head.startswith(b"HTTP/1.1 408 ") and body.startswith(b"HTTP/1.1 408 ")
        assert b" 200 OK" in unwanted or b" 408 " in unwanted
        assert blank.startswith(b"HTTP/1.1 408 ")
        assert time.monotonic() - started < 5  # 500 bytes at that pace would take longer
        await is_well(s)


async def test_a_stream_outlives_the_limits_of_what_arrives() -> None:
    """The clocks are for requests, not for answers, even while half of the next request waits behind."""
    engine = ScriptedEngine()
    async with served(engine, HttpSettings(header_grace=0.0), limits=QUICK) as s:
        reader, writer = await asyncio.open_connection("127.0.0.1", s.port)
        body = b'{"prompt": "x", "stream": true}'
        writer.write(POST + b"Content-Length: %d\r\n\r\n" % len(body) + body + b"GET /hea")
        await engine.until(lambda: len(engine.requests) == 1)
        # A connection that says nothing is closed after both limits have passed for the stream.
        for _ in range(3):
            assert (await exchange(s.port, b"GET /")).status == 408
        id = engine.requests[0].id
        engine.emit(id, b"ab")
        async with asyncio.timeout(SECONDS):
            assert b'"text":"a' in await reader.readuntil(b'"text":"a')
        writer.close()
        await engine.until(lambda: engine.open_streams == 0)


async def test_an_answer_under_way_is_never_written_into() -> None:
    engine = ScriptedEngine()
    async with served(engine, HttpSettings(header_grace=0.0), limits=QUICK) as s:
        body = b'{"prompt": "x", "stream": true}'
        reader, writer = await asyncio.open_connection("127.0.0.1", s.port)
        writer.write(POST + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        await engine.until(lambda: len(engine.requests) == 1)
        engine.emit(engine.requests[0].id, b"a")
        seen = await reader.readuntil(b'"text":"a')
        writer.write(b"\0\0\0 no request\r\n\r\n")
        async with asyncio.timeout(SECONDS):
            seen += await reader.read()
        assert seen.count(b"HTTP/1.1 ") == 1
        writer.close()
        await engine.until(lambda: engine.open_streams == 0)


async def test_connections_beyond_the_limit_hear_why_and_the_others_go_on() -> None:
    async with served(ScriptedEngine(says("ok")), limits=ConnectionLimits(connections=3)) as s:
        await is_well(s)  # one, which httpx keeps
        kept = [await asyncio.open_connection("127.0.0.1", s.port) for _ in range(2)]
        await is_well(s)
        reply = await exchange(s.port, b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (reply.status, reply.error["code"]) == (503, "overloaded")
        assert 1 <= int(reply.headers["retry-after"]) <= 60 and reply.headers["connection"] == "close"
        await is_well(s)
        for _, writer in kept:
            writer.close()
            await writer.wait_closed()
        # The server learns of it a moment later.
        request = b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        async with asyncio.timeout(SECONDS):
            while (await exchange(s.port, request)).status != 200:
                pass


async def test_far_beyond_the_limit_connections_are_only_closed() -> None:
    async with served(ScriptedEngine(says("ok")), limits=ConnectionLimits(connections=2)) as s:
        await is_well(s)
        crowd = [await asyncio.open_connection("127.0.0.1", s.port) for _ in range(100)]

        async def closed(reader: asyncio.StreamReader) -> bool:
            try:
                async with asyncio.timeout(SECONDS):
                    return await reader.read() == b""
            except ConnectionResetError:
                return True

        # Those that fit stay; of the others the late ones go at once, the rest after a second of silence.
        waits = [asyncio.ensure_future(closed(reader)) for reader, _ in crowd]
        await is_well(s)
        gone = await asyncio.gather(*waits[2:])
        assert all(gone)
        await is_well(s)
        for wait in waits:
            wait.cancel()
        for _, writer in crowd:
            writer.close()


async def test_an_early_answer_reaches_a_client_that_goes_on_sending() -> None:
    """Refused before its body is read: the connection stays good for the next request."""
    engine = ScriptedEngine(max_rows=1)
    async with served(engine, HttpSettings(max_queue=0)) as s:
        task = asyncio.ensure_future(s.complete(prompt="x"))
        await engine.until(lambda: len(engine.requests) == 1)
        extra = asyncio.ensure_future(s.complete(prompt="x"))
        await engine.until(lambda: len(engine.requests) == 2)
        big = json.dumps({"prompt": "x" * 1_000_000}).encode()
        head = POST + b"Content-Length: %d\r\n\r\n" % len(big)
        data = (head + big) * 2 + b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        reply = await exchange(s.port, data)
        statuses = [part[:3] for part in reply.data.split(b"HTTP/1.1 ")[1:]]
        assert statuses == [b"503", b"503", b"200"]
        engine.script = says("ok")
        engine.abort([request.id for request in engine.requests])
        task.cancel()
        extra.cancel()


@pytest.mark.slow
async def test_five_hundred_slow_senders_of_each_kind() -> None:
    settings = HttpSettings(body_timeout=1.0)
    limits = ConnectionLimits(head_timeout=1.0, body_timeout=1.0)
    async with served(ScriptedEngine(says("ok")), settings, limits=limits) as s:

        async def p99() -> float:
            times = []
            for _ in range(100):
                started = time.perf_counter()
                assert (await s.complete(prompt="x")).status_code == 200
                times.append(time.perf_counter() - started)
            return sorted(times)[98]

        await p99()
        alone = await p99()
        crowd = [
            asyncio.ensure_future(exchange(s.port, data))
            for data in [b"GET / HTTP/1.1\r\nX: ", POST + b"Content-Length: 100\r\n\r\n{"] * 500
        ]
        beside = await p99()
        replies = await asyncio.gather(*crowd)
        assert {reply.status for reply in replies} == {408}
        assert beside < 2 * alone + 0.05  # both ends and the crowd share one event loop here
        await is_well(s)


@pytest.mark.slow
async def test_two_thousand_idle_connections() -> None:
    limits = ConnectionLimits(connections=2048, head_timeout=60.0)
    async with served(ScriptedEngine(says("ok")), limits=limits) as s:
        sockets: list[socket.socket] = []
        loop = asyncio.get_running_loop()
        try:
            for _ in range(2000):
                sock = socket.socket()
                sock.setblocking(False)
                await loop.sock_connect(sock, ("127.0.0.1", s.port))
                sockets.append(sock)
            started = time.perf_counter()
            for _ in range(20):
                await is_well(s)
            assert time.perf_counter() - started < 10
        finally:
            for sock in sockets:
                sock.close()
