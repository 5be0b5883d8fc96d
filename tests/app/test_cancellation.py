"""A client that leaves frees what it holds at once, whatever its request was doing."""

import asyncio
import json
import socket
import struct

import pytest

from app.routes.openai import Completions
from app.settings.http import HttpSettings
from engine.messages import Finish
from tests.app.scripted_engine import ScriptedEngine
from tests.app.serving import Served, served

BODIES: dict[str, dict[str, object]] = {
    "/v1/completions": {"prompt": [1, 2], "n": 2},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hi"}]},
    "/chat/completions": {"messages": [{"role": "user", "content": "hi"}]},
    "/v1/responses": {"input": "hi"},
    "/v1/messages": {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 99},
}


async def connect(s: Served, path: str, **extra: object) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Sends a request by hand, so that the test decides how the connection ends."""
    body = json.dumps({**BODIES[path], **extra}).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", s.port)
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    await writer.drain()
    return reader, writer


def leave(writer: asyncio.StreamWriter, reset: bool) -> None:
    if reset:
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()
    else:
        writer.close()


@pytest.mark.parametrize("reset", [False, True], ids=["close", "reset"])
@pytest.mark.parametrize(
    ("phase", "path"),
    [(phase, path) for phase in ("queued", "waiting with headers", "mid stream") for path in BODIES]
    + [("plain answer", path) for path in BODIES if path != "/chat/completions"],
)
async def test_leaving_aborts_every_choice(phase: str, path: str, reset: bool) -> None:
    engine = ScriptedEngine()
    grace = 0.0 if phase == "waiting with headers" else 60.0
    async with served(engine, HttpSettings(header_grace=grace)) as s:
        reader, writer = await connect(s, path, stream=phase != "plain answer")
        await engine.until(lambda: bool(engine.requests))
        request = engine.requests[0]
        ids = [request.id + k for k in range(request.n)]
        if phase == "mid stream":
            engine.emit(ids[0], b"a")
            await reader.readuntil(b"a")
        elif phase == "waiting with headers":
            await reader.readuntil(b"\r\n\r\n")
        leave(writer, reset)
        await engine.until(lambda: sorted(engine.aborted) == ids)
        assert engine.open_streams == 0
        assert await s.context.lifecycle.wait_idle(5)
        assert s.context.metrics.finishes["abort"] == len(ids)


async def test_others_do_not_notice() -> None:
    engine = ScriptedEngine()
    async with served(engine) as s:
        staying = asyncio.ensure_future(s.complete(prompt="x", stream=True))
        await engine.until(lambda: len(engine.requests) == 1)
        _, writer = await connect(s, "/v1/completions", stream=True)
        await engine.until(lambda: len(engine.requests) == 2)
        id = engine.requests[0].id
        engine.emit(id, b"a")
        leave(writer, False)
        await engine.until(lambda: len(engine.aborted) == 2)
        engine.emit(id, b"b", Finish(id, "length"))
        assert (await staying).text.count("data: {") == 2
        assert id not in engine.aborted


async def test_a_choice_that_ended_is_not_aborted() -> None:
    engine = ScriptedEngine()
    async with served(engine) as s:
        _, writer = await connect(s, "/v1/completions")
        await engine.until(lambda: bool(engine.requests))
        id = engine.requests[0].id
        engine.emit(id, b"a", Finish(id, "length"))
        leave(writer, False)
        await engine.until(lambda: engine.aborted == [id + 1])


async def test_a_reader_that_takes_nothing_is_aborted() -> None:
    """Not over a socket: the kernel would take megabytes before a write blocks."""
    engine = ScriptedEngine()
    async with served(engine, HttpSettings(send_timeout=0.05, header_grace=0.0)) as s:
        blocked = asyncio.Event()

        async def receive() -> dict[str, object]:
            if not engine.requests:
                body = b'{"prompt": "x", "stream": true}'
                return {"type": "http.request", "body": body, "more_body": False}
            await asyncio.Event().wait()
            raise AssertionError

        async def send(message: dict[str, object]) -> None:
            if message["type"] == "http.response.body":
                blocked.set()
                await asyncio.Event().wait()

        scope = {"type": "http", "headers": [(b"content-type", b"application/json")]}
        answering = asyncio.ensure_future(Completions(s.context)(scope, receive, send))
        await engine.until(lambda: bool(engine.requests))
        id = engine.requests[0].id
        engine.emit(id, b"a")
        await blocked.wait()
        for _ in range(50):  # what comes meanwhile waits in one delta
            engine.emit(id, b"bc")
        await engine.until(lambda: engine.aborted == [id])
        await answering
        assert s.context.metrics.slow_readers == 1


async def test_leaving_while_the_body_is_sent_submits_nothing() -> None:
    engine = ScriptedEngine()
    async with served(engine) as s:
        _, writer = await asyncio.open_connection("127.0.0.1", s.port)
        writer.write(
            b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Content-Length: 100\r\n\r\n{"
        )
        await writer.drain()
        writer.close()
        assert (await s.complete(prompt="x", max_tokens=0, echo=True)).status_code == 200
        assert engine.requests == []


async def test_request_deadline() -> None:
    engine = ScriptedEngine()
    async with served(engine, HttpSettings(request_timeout=0.05)) as s:
        for stream in (False, True):
            reply = await s.chat(stream=stream)
            assert (reply.status_code, reply.json()["error"]["code"]) == (504, "deadline_exceeded")
        assert engine.open_streams == 0
