"""Raw HTTP/1.1 clients that cost next to nothing, and what /proc says of a server."""

import asyncio
import json
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

TICKS = os.sysconf("SC_CLK_TCK")
EVENT = b"data: {"
TOKEN = b'"text":"'
DONE = b"data: [DONE]"


def post(body: dict[str, object], path: str = "/v1/completions") -> bytes:
    """A whole request; the connection ends with its answer."""
    data = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Connection: close\r\nContent-Length: {len(data)}\r\n\r\n"
    )
    return head.encode() + data


@dataclass(slots=True)
class Seen:
    """Moments of one request on the monotonic clock; `stamps` holds one for each read with tokens."""

    started: float
    status: int = 0
    events: int = 0
    first: float = 0.0
    last: float = 0.0
    done: bool = False
    retry_after: float | None = None
    stamps: list[float] = field(default_factory=list)


class Client(asyncio.Protocol):
    """Sends one request and watches its answer; `over` resolves when the connection has ended."""

    def __init__(self, request: bytes) -> None:
        self.seen = Seen(time.monotonic())
        self.over: asyncio.Future[Seen] = asyncio.get_running_loop().create_future()
        self._request = request
        self._head = b""
        self._tail = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        seen = self.seen
        if not seen.status:
            self._head += data
            end = self._head.find(b"\r\n\r\n")
            if end < 0:
                return
            lines = self._head[:end].split(b"\r\n")
            seen.status = int(lines[0].split()[1])
            for line in lines[1:]:
                name, _, value = line.partition(b":")
                if name.lower() == b"retry-after":
                    seen.retry_after = float(value)
            data = self._head[end:]
        tokens = data.count(TOKEN)
        if tokens:
            now = time.monotonic()
            seen.first = seen.first or now
            seen.last = now
            seen.events += tokens
            seen.stamps.append(now)
        self._tail = (self._tail + data)[-64:]
        seen.done = DONE in self._tail

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.over.done():
            self.over.set_result(self.seen)


async def send(port: int, request: bytes) -> Client:
    """Connects and sends; the client watches on."""
    loop = asyncio.get_running_loop()
    _, client = await loop.create_connection(lambda: Client(request), "127.0.0.1", port)
    return client


async def get(port: int, path: str) -> float:
    """Seconds that one GET on a connection of its own took, connecting included."""
    started = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
    status = await reader.readline()
    await reader.read()
    writer.close()
    assert b" 200 " in status, status
    return time.perf_counter() - started


def percentile(values: Iterable[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")


def family(pid: int) -> dict[int, str]:
    """A process and its descendants, by what they are."""
    found: dict[int, str] = {}
    pids = [pid]
    while pids:
        one = pids.pop()
        try:
            command = Path(f"/proc/{one}/cmdline").read_bytes().replace(b"\0", b" ").decode()
            pids += map(int, Path(f"/proc/{one}/task/{one}/children").read_text().split())
        except OSError:
            continue
        worker = "engine.worker" in command or "benchmarks.pulse" in command
        found[one] = "engine" if worker and one != pid else "front"
    return found


def resident_bytes(pid: int) -> int:
    """Anonymous memory of a process: what it allocated, without the files that it maps."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0


def open_files(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def processor_seconds(pids: Sequence[int]) -> float:
    """User and system time so far."""
    fields = [Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split() for pid in pids]
    return sum(int(f[11]) + int(f[12]) for f in fields) / TICKS
