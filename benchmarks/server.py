"""A server in a process of its own, for benchmarks over HTTP."""

import asyncio
import json
import os
import signal
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[1]


class ServerFailed(RuntimeError):
    """The server ended before it was ready; the message has the end of its log."""


@dataclass(slots=True)
class Server:
    """url: where it answers. ready: seconds from its start to that. log: its output so far, lines."""

    url: str
    ready: float
    process: asyncio.subprocess.Process
    log: list[str] = field(default_factory=list)

    def cpu_seconds(self) -> float:
        """Processor time of the server and its children until now; 0 where /proc does not tell."""
        pids = [self.process.pid]
        for pid in pids:
            try:
                children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
            except OSError:
                continue
            pids += map(int, children)
        ticks = 0
        for pid in pids:
            try:
                ticks += sum(
                    map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13])
                )
            except (OSError, ValueError):
                continue
        return ticks / os.sysconf("SC_CLK_TCK")


@asynccontextmanager
async def server(
    model: str, arguments: Sequence[str], environment: Mapping[str, str] | None = None, timeout: float = 600
) -> AsyncIterator[Server]:
    """A server on a free port, once it is ready; stopped on the way out. Raises ServerFailed."""
    command = [
        sys.executable,
        "-m",
        "app",
        "--model",
        model,
        "--port",
        "0",
        "--log-format",
        "json",
        *arguments,
    ]
    started = time.perf_counter()
    process = await asyncio.create_subprocess_exec(
        *command,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env=dict(os.environ) | dict(environment or {}),
        cwd=ROOT,
        limit=1 << 24,
        start_new_session=True,
    )
    tail: deque[str] = deque(maxlen=400)
    reading: asyncio.Task[None] | None = None
    try:
        async with asyncio.timeout(timeout):
            url = await _ready(process, tail)
        made = Server(url, time.perf_counter() - started, process, list(tail))
        reading = asyncio.create_task(_read_on(process, made.log))
        yield made
    except TimeoutError:
        raise ServerFailed(f"not ready after {timeout} s:\n" + "\n".join(list(tail)[-30:])) from None
    finally:
        await _stop(process)
        if reading is not None:
            await asyncio.gather(reading, return_exceptions=True)


async def _ready(process: asyncio.subprocess.Process, tail: deque[str]) -> str:
    assert process.stdout is not None
    while line := await process.stdout.readline():
        text = line.decode(errors="replace").rstrip()
        tail.append(text)
        if text.startswith("{"):
            try:
                event = json.loads(text)
            except ValueError:
                continue
            if event.get("event") == "ready":
                return str(event["url"])
    code = await process.wait()
    raise ServerFailed(f"the server ended with exit code {code}:\n" + "\n".join(list(tail)[-30:]))


async def _read_on(process: asyncio.subprocess.Process, log: list[str]) -> None:
    """A server whose output nobody reads would come to a halt."""
    assert process.stdout is not None
    while line := await process.stdout.readline():
        if len(log) < 10_000:
            log.append(line.decode(errors="replace").rstrip())


async def _stop(process: asyncio.subprocess.Process) -> None:
    for sign, patience in ((signal.SIGTERM, 10), (signal.SIGTERM, 10), (signal.SIGKILL, 10)):
        if process.returncode is not None:
            return
        try:
            process.send_signal(sign)
            async with asyncio.timeout(patience):
                await process.wait()
        except (TimeoutError, ProcessLookupError):
            continue
