"""What one streamed token costs the front end: `python -m benchmarks.events [--save]`.

Three parts, in microseconds of processor time per event (one token of one stream):
1. writes dropped: frames as they come from the engine's socket, to the bytes of each event, in this process.
2. over loopback: the server process with its sockets, the engine and the reading clients outside of it; the
   last load is 256 streams at 157 steps a second, 40,000 tokens a second.
3. the last load with two front-end processes.

A delay is counted from the moment at which a step was due to the moment at which a client had its token; all
clients are one process, which takes part of it.
"""

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import uvloop
from starlette.types import Message

from app.http.direct import EXTENSION
from app.processes.enginelink import EngineLink
from app.routes.openai import Completions
from benchmarks.pulse import ALPHABET, CONTEXT, ROWS
from benchmarks.report import save, table
from engine.messages import Fanout, Finish, Frame, ModelInfo
from engine.messages.wire import encode
from tests.app.scripted_engine import ScriptedEngine
from tests.app.serving import Served, served

ROOT = Path(__file__).resolve().parents[1]
LOADS = ((1, 500.0), (32, 500.0), (256, 157.0))  # streams, steps per second
WARM_UP_SECONDS = 1.0
MARK = b'"text":"'
TICKS = os.sysconf("SC_CLK_TCK")


async def drop(s: Served, body: bytes) -> None:
    """Calls the endpoint directly; what it writes is dropped."""
    scope = {
        "type": "http",
        "headers": [(b"content-type", b"application/json")],
        "extensions": {EXTENSION: lambda data: True},
    }
    bodies = [body]

    async def receive() -> Message:
        if bodies:
            return {"type": "http.request", "body": bodies.pop(), "more_body": False}
        await asyncio.Event().wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        pass

    await Completions(s.context)(scope, receive, send)


class Router:
    """Takes frames from a link as the engine's client does."""

    def __init__(self, fanout: Fanout) -> None:
        self.on_frames = fanout.push

    def on_ready(self, info: ModelInfo) -> None:
        pass


async def dropped(streams: int, tokens: int) -> float:
    """Microseconds per event between the first token and the last."""
    engine = ScriptedEngine(max_model_len=tokens + 16, max_rows=streams)
    link = EngineLink(Router(Fanout(engine.router)))
    body = json.dumps({"prompt": [1], "stream": True, "max_tokens": tokens}).encode()
    async with served(engine) as s:
        readers = [asyncio.ensure_future(drop(s, body)) for _ in range(streams)]
        await engine.until(lambda: len(engine.requests) == streams)
        ids = [request.id for request in engine.requests]
        metrics = s.context.metrics
        start = 0.0
        for step in range(1, tokens + 1):
            ends = [Finish(id, "length") for id in ids] if step == tokens else []
            if step == tokens:
                seconds = time.process_time() - start
            link.data_received(encode(Frame(ids, [97] * streams, [], [], ends, engine.stats())))
            while metrics.events < step * streams:
                await asyncio.sleep(0)
            if step == 1:
                await asyncio.sleep(0)
                start = time.process_time()
        await asyncio.gather(*readers)
        return 1e6 * seconds / ((tokens - 2) * streams)


class Reader(asyncio.Protocol):
    """One client: counts events, and notes how late the last one of each read is."""

    def __init__(self, body: bytes, rate: float) -> None:
        head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        self._request = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
        self._rate = rate
        self.events = 0
        self.reads = 0
        self.delays: list[float] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        transport.write(self._request)  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        self.events += data.count(MARK)
        self.reads += 1
        at = data.rfind(MARK) + len(MARK)
        if len(MARK) <= at < len(data):
            now = time.monotonic()
            next_step = int(now * self._rate) + 1  # timers may be early by a step, never by more
            behind = (next_step - ALPHABET.find(data[at])) % len(ALPHABET)
            self.delays.append(now - (next_step - behind) / self._rate)

    def reset(self) -> None:
        self.events = self.reads = 0
        self.delays = []


@contextmanager
def serving(
    rate: float, workers: int = 1, rows: int = ROWS, flags: Sequence[str] = ("--max-queue", "4096")
) -> Iterator[tuple[int, list[int]]]:
    """The server over the pulse: its port, and the process ids of its front ends."""
    flags = ["--port", "0", "--log-format", "json", "--api-workers", str(workers), *flags]
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.pulse", "--rate", str(rate), "--rows", str(rows), "--", *flags],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout is not None
        port = int(json.loads(process.stdout.readline())["port"])
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        fronts = [
            int(pid) for pid in children if "app.processes.front" in Path(f"/proc/{pid}/cmdline").read_text()
        ]
        yield port, fronts or [process.pid]
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def processor_seconds(pids: Sequence[int]) -> tuple[float, float]:
    """(user, system) time so far."""
    fields = [Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split() for pid in pids]
    return sum(int(f[11]) for f in fields) / TICKS, sum(int(f[12]) for f in fields) / TICKS


async def loaded(streams: int, rate: float, workers: int, seconds: float) -> dict[str, float]:
    """Runs `streams` clients for `seconds`; everything is measured after a warm-up."""
    body = json.dumps({"prompt": [1], "stream": True, "max_tokens": CONTEXT - 16}).encode()
    loop = asyncio.get_running_loop()
    with serving(rate, workers) as (port, fronts):
        readers = [Reader(body, rate) for _ in range(streams)]
        for reader in readers:
            await loop.create_connection(lambda reader=reader: reader, "127.0.0.1", port)  # type: ignore[misc]
        while not all(reader.events for reader in readers):
            await asyncio.sleep(0.01)
        await asyncio.sleep(WARM_UP_SECONDS)
        for reader in readers:
            reader.reset()
        start, before = time.monotonic(), processor_seconds(fronts)
        await asyncio.sleep(seconds)
        elapsed, after = time.monotonic() - start, processor_seconds(fronts)
        events = sum(reader.events for reader in readers)
        reads = sum(reader.reads for reader in readers)
        delays = sorted(delay for reader in readers for delay in reader.delays)
        for reader in readers:
            reader.transport.close()
        await asyncio.sleep(0.1)  # until they are closed, or the server would wait for them in its drain
    user, system = after[0] - before[0], after[1] - before[1]
    return {
        "streams": streams,
        "steps_per_second": rate,
        "api_workers": workers,
        "offered_events_per_second": streams * rate,
        "events_per_second": events / elapsed,
        "us_per_event": 1e6 * (user + system) / events,
        "us_per_event_user": 1e6 * user / events,
        "us_per_event_system": 1e6 * system / events,
        "processor_share": (user + system) / elapsed,
        "events_per_read": events / reads,
        "delay_p50_ms": 1e3 * delays[len(delays) // 2],
        "delay_p99_ms": 1e3 * delays[int(len(delays) * 0.99)],
        "delay_max_ms": 1e3 * delays[-1],
    }


def show(rows: Sequence[dict[str, float]]) -> None:
    header = ["streams", "workers", "offered/s", "events/s", "us/event", "user", "system", "cores", "ev/read"]
    keys = ["streams", "api_workers", "offered_events_per_second", "events_per_second", "us_per_event"]
    keys += ["us_per_event_user", "us_per_event_system", "processor_share", "events_per_read"]
    keys += ["delay_p50_ms", "delay_p99_ms", "delay_max_ms"]
    print(table([*header, "p50 ms", "p99 ms", "max ms"], [[row[key] for key in keys] for row in rows]))


def main() -> None:
    parser = argparse.ArgumentParser(description="processor time per streamed token in the front end")
    parser.add_argument("--tokens", type=int, default=400, help="tokens per stream with writes dropped")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0, help="length of a run over loopback")
    parser.add_argument("--save", action="store_true")
    args = parser.parse_args()
    rows: list[dict[str, object]] = []
    print("writes dropped (frame decoded, routed, event's bytes made)")
    for streams, _ in LOADS:
        tokens = args.tokens * max(1, 32 // streams)
        cost = min(uvloop.run(dropped(streams, tokens)) for _ in range(args.rounds))
        rows.append({"case": "dropped", "streams": streams, "us_per_event": cost})
        print(f"  {streams:3} streams: {cost:.2f} us per event")
    print("over loopback, server process only (delay: from the step's time to the client)")
    single = [uvloop.run(loaded(streams, rate, 1, args.seconds)) for streams, rate in LOADS]
    double = uvloop.run(loaded(*LOADS[-1], 2, args.seconds))
    show([*single, double])
    rows += [{"case": "loopback", **row} for row in (*single, double)]
    if args.save:
        settings = {"tokens": args.tokens, "rounds": args.rounds, "seconds": args.seconds}
        print(save("events", rows, settings))


if __name__ == "__main__":
    main()
