"""What one streamed token costs the HTTP layer: `python -m benchmarks.events [--streams 32] [--tokens 400]`.

The engine is a script, so only this is measured: the router that hands a step's tokens to their streams,
decoding, the event's bytes, and the write. Two figures, in microseconds of process CPU per event: with writes
that go nowhere, and over loopback sockets, where the reading client in the same process is counted, too.
"""

import argparse
import asyncio
import json
import time
from collections.abc import Awaitable, Callable

import uvloop
from starlette.types import Message

from app.openai import Completions
from engine.messages import Finish, Frame
from tests.app.scripted_engine import ScriptedEngine
from tests.app.serving import Served, served

Reader = Callable[[Served, bytes], Awaitable[None]]


async def read_nothing(s: Served, body: bytes) -> None:
    """Calls the endpoint directly; what it sends is dropped."""
    scope = {"type": "http", "headers": [(b"content-type", b"application/json")]}
    bodies = [body]

    async def receive() -> Message:
        if bodies:
            return {"type": "http.request", "body": bodies.pop(), "more_body": False}
        await asyncio.Event().wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        pass

    await Completions(s.context)(scope, receive, send)


async def read_socket(s: Served, body: bytes) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", s.port)
    head = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: "
    writer.write(f"{head}{len(body)}\r\n\r\n".encode() + body)
    while b"[DONE]" not in await reader.read(65536):
        pass
    writer.close()


async def measure(read: Reader, streams: int, tokens: int) -> tuple[float, float]:
    """(microseconds per event, events per write)."""
    engine = ScriptedEngine(max_model_len=tokens + 16, max_rows=streams)
    body = json.dumps({"prompt": [1], "stream": True, "max_tokens": tokens}).encode()
    async with served(engine) as s:
        readers = [asyncio.ensure_future(read(s, body)) for _ in range(streams)]
        await engine.until(lambda: len(engine.requests) == streams)
        ids = [request.id for request in engine.requests]
        metrics = s.context.metrics
        start = time.process_time()
        for step in range(tokens):
            ends = [Finish(id, "length") for id in ids] if step + 1 == tokens else []
            engine.router.dispatch(Frame(ids, [97] * streams, [], [], ends, engine.stats()))
            while metrics.events < (step + 1) * streams:
                await asyncio.sleep(0)
        await asyncio.gather(*readers)
        seconds = time.process_time() - start
        return 1e6 * seconds / metrics.events, metrics.events / metrics.writes


def main() -> None:
    parser = argparse.ArgumentParser(description="CPU time per streamed token in the HTTP layer")
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    readers: list[tuple[str, Reader]] = [("writes dropped", read_nothing), ("over loopback", read_socket)]
    for name, read in readers:
        results = [uvloop.run(measure(read, args.streams, args.tokens)) for _ in range(args.rounds)]
        cost, per_write = min(results)
        print(f"{name}: {cost:.1f} us per event, {per_write:.2f} events per write, {args.streams} streams")


if __name__ == "__main__":
    main()
