"""Streams from a server with client processes, and makes one row of what they saw."""

import asyncio
import json
import os
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

from benchmarks.client import Orders
from benchmarks.server import ROOT, Server

CLIENT = Path(__file__).with_name("client.py")
CLIENTS_PER_PROCESS = 32
SHARES = (0.5, 0.9, 0.99)


@dataclass(slots=True)
class Row:
    """A closed loop of `clients` at a time. client_cpu: cores that the busiest client process took;
    server_cpu: those of all the server's processes. Older results have no p90.
    """

    mode: str
    clients: int
    requests: int = 0
    tok_s: float = 0.0
    ttft_p50_ms: float = 0.0
    ttft_p90_ms: float = 0.0
    ttft_p99_ms: float = 0.0
    tpot_ms: float = 0.0
    itl_p50_ms: float = 0.0
    itl_p90_ms: float = 0.0
    itl_p99_ms: float = 0.0
    tokens_per_event: float = 0.0
    errors: int = 0
    client_cpu: float = 0.0
    server_cpu: float = 0.0
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Stream:
    """One request as its client saw it, on the monotonic clock."""

    started: float
    stamps: list[float]
    tokens: int

    @property
    def ttft(self) -> float:
        return self.stamps[0] - self.started

    @property
    def gaps(self) -> list[float]:
        return [after - before for before, after in pairwise(self.stamps)]

    @property
    def tpot(self) -> float:
        return (self.stamps[-1] - self.stamps[0]) / max(1, self.tokens - 1)


@dataclass(frozen=True, slots=True)
class Seen:
    """What all client processes saw. cpu: the busiest one's processor time."""

    streams: list[Stream]
    errors: list[str]
    seconds: float
    cpu: float


class Clients:
    """Client processes that wait for the word to begin."""

    def __init__(self, orders: Orders, processes: int) -> None:
        self._orders = orders
        self._count = max(1, min(processes, orders.clients))
        self._running: list[asyncio.subprocess.Process] = []

    async def prepare(self) -> None:
        """Starts them; returns when all of them are."""
        orders = asdict(self._orders)
        for part in range(self._count):
            clients = orders["clients"] // self._count + (part < orders["clients"] % self._count)
            own = json.dumps(orders | {"part": part, "parts": self._count, "clients": clients})
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, str(CLIENT), own),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                limit=1 << 30,
                cwd=ROOT.parent,
            )
            self._running.append(process)
        for process in self._running:
            assert process.stdout is not None
            if await process.stdout.readline() != b"ready\n":
                raise RuntimeError(f"a client process ended with exit code {await process.wait()}")

    def begin(self) -> None:
        for process in self._running:
            assert process.stdin is not None
            process.stdin.write(b"go\n")

    async def seen(self) -> Seen:
        """Waits for their end."""
        results = []
        for process in self._running:
            assert process.stdout is not None
            line = await process.stdout.readline()
            if await process.wait() or not line:
                raise RuntimeError(f"a client process ended with exit code {process.returncode}")
            results.append(json.loads(line))
        requests = [request for result in results for request in result["requests"]]
        return Seen(
            [Stream(**request) for request in requests if "error" not in request],
            [request["error"] for request in requests if "error" in request],
            max(result["ended"] for result in results) - min(result["began"] for result in results),
            max(result["cpu"] for result in results),
        )

    def kill(self) -> None:
        for process in self._running:
            if process.returncode is None:
                process.kill()


async def stream(orders: Orders, processes: int = 1) -> Seen:
    """All of `orders`, from start to end."""
    clients = Clients(orders, processes)
    try:
        await clients.prepare()
        clients.begin()
        return await clients.seen()
    finally:
        clients.kill()


def processes_for(clients: int) -> int:
    """Enough that the clients are not what is measured, and not so many that they take the server's cores."""
    return max(1, min(clients // CLIENTS_PER_PROCESS, (os.cpu_count() or 2) // 2))


async def closed_loop(server: Server, mode: str, orders: Orders, processes: int | None = None) -> Row:
    """`orders.count` requests, `orders.clients` at a time; errors are counted, not raised."""
    row = Row(mode, orders.clients)
    count = processes or processes_for(orders.clients)
    cpu, started = server.cpu_seconds(), time.monotonic()
    seen = await stream(orders, count)
    row.server_cpu = (server.cpu_seconds() - cpu) / (time.monotonic() - started)
    fill(row, seen)
    return row


def fill(row: Row, seen: Seen) -> None:
    """The figures of what the clients saw."""
    row.requests, row.errors = len(seen.streams), len(seen.errors)
    row.error = seen.errors[0] if seen.errors else None
    row.client_cpu = seen.cpu / seen.seconds
    if not seen.streams:
        return
    gaps = [gap for one in seen.streams for gap in one.gaps]
    firsts = [one.ttft for one in seen.streams]
    tokens = sum(one.tokens for one in seen.streams)
    row.tok_s = tokens / seen.seconds
    row.tokens_per_event = tokens / sum(len(one.stamps) for one in seen.streams)
    row.ttft_p50_ms, row.ttft_p90_ms, row.ttft_p99_ms = (1e3 * percentile(firsts, p) for p in SHARES)
    row.tpot_ms = 1e3 * statistics.mean(one.tpot for one in seen.streams)
    row.itl_p50_ms, row.itl_p90_ms, row.itl_p99_ms = (1e3 * percentile(gaps, p) for p in SHARES)


def percentile(values: list[float], share: float) -> float:
    """As in the field's load generators; 0 of nothing."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0
