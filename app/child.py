"""One engine process and the socket to it."""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

import engine.messages
from engine.messages import EngineConfig, Failed, Frame, Ready
from engine.messages.wire import FromEngine, ToEngine, Unframer, encode, from_engine

log = logging.getLogger("fastpath.engine")

ENGINE_COMMAND = (sys.executable, "-P", "-m", "engine.worker")


def _environment() -> dict[str, str]:
    """Modules are found as in this process, wherever it was started (the command's -P keeps the rest out)."""
    root = Path(engine.messages.__file__).parents[2]
    # Installed packages are found anyway, and in front of the standard library they could hide parts of it.
    places = [] if root.name in ("site-packages", "dist-packages") else [str(root)]
    if {"", os.getcwd()} & set(sys.path):
        places.append(os.getcwd())
    if "PYTHONPATH" in os.environ:
        places.append(os.environ["PYTHONPATH"])
    return os.environ | {"PYTHONPATH": os.pathsep.join(places)}


class Child(asyncio.Protocol):
    """Starts an engine process, exchanges messages with it, and counts how long it has been silent.

    `receive` gets every message. `silent_ticks` and `step_ticks` count the calls of `tick` since the last
    message, and since the last one that showed progress or an idle engine.
    """

    def __init__(self, receive: Callable[[FromEngine], None]) -> None:
        self._receive = receive
        self._unframer = Unframer()
        self._transport: asyncio.WriteTransport | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._steps = -1
        self.lost = asyncio.Event()  # the socket is closed and everything that came through it has been read
        self.failure: Failed | None = None
        self.was_ready = False
        self.silent_ticks = 0
        self.step_ticks = 0

    async def spawn(self, command: Sequence[str], config: EngineConfig) -> None:
        """Starts the process and sends it its configuration. Raises OSError."""
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                fd = theirs.fileno()
                self._process = await asyncio.create_subprocess_exec(
                    *command,
                    "--fd",
                    str(fd),
                    pass_fds=[fd],
                    stdin=asyncio.subprocess.DEVNULL,
                    env=_environment(),
                    start_new_session=True,  # Ctrl-C in a terminal is for the server only
                )
            await asyncio.get_running_loop().create_unix_connection(lambda: self, sock=ours)
        except BaseException:
            ours.close()
            self.kill()
            raise
        self.send(config)

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None else None

    async def wait(self) -> int:
        """The exit status of the process, negative for a signal."""
        assert self._process is not None
        return await self._process.wait()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)  # uvloop's is no subclass

    def data_received(self, data: bytes) -> None:
        try:
            for body in self._unframer.feed(data):
                self._take(from_engine.decode(body))
        except Exception:
            log.exception("the engine sent what cannot be understood")
            self.kill()

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set()

    def _take(self, message: FromEngine) -> None:
        self.silent_ticks = 0
        if isinstance(message, Frame):
            stats = message.stats
            if stats.steps != self._steps or not (stats.running or stats.waiting):
                self._steps, self.step_ticks = stats.steps, 0
        elif isinstance(message, Ready):
            self.was_ready = True
            self.step_ticks = 0
        else:
            self.failure = message
        self._receive(message)

    def tick(self) -> None:
        self.silent_ticks += 1
        self.step_ticks += 1

    def send(self, message: ToEngine) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(encode(message))

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def kill(self) -> None:
        """Ends the process and all that it started: they have a process group of their own."""
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def dump_stacks(self) -> None:
        """Asks the process to write the stack of each of its threads to its error output."""
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGUSR1)
