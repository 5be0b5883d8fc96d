"""One engine process and the socket to it."""

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

import engine.messages
from app.processes.enginelink import EngineLink, Receiver
from engine.messages import EngineConfig

ENGINE_COMMAND = (sys.executable, "-P", "-m", "engine.worker")


def environment() -> dict[str, str]:
    """Modules are found as in this process, wherever it was started (the command's -P keeps the rest out)."""
    root = Path(engine.messages.__file__).parents[2]
    # Installed packages are found anyway, and in front of the standard library they could hide parts of it.
    places = [] if root.name in ("site-packages", "dist-packages") else [str(root)]
    if {"", os.getcwd()} & set(sys.path):
        places.append(os.getcwd())
    if "PYTHONPATH" in os.environ:
        places.append(os.environ["PYTHONPATH"])
    return os.environ | {"PYTHONPATH": os.pathsep.join(places)}


class Child(EngineLink):
    """Starts an engine process and exchanges messages with it."""

    def __init__(self, receiver: Receiver) -> None:
        super().__init__(receiver)
        self._process: asyncio.subprocess.Process | None = None

    async def spawn(
        self, command: Sequence[str], config: EngineConfig, shared: socket.socket | None = None
    ) -> None:
        """Starts the process and sends it its configuration. Raises OSError.

        shared: a listening socket on which further front ends find the engine.
        """
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                fds = [theirs.fileno()]
                flags = ["--fd", str(fds[0])]
                if shared is not None:
                    fds.append(shared.fileno())
                    flags += ["--listen", str(fds[1])]
                self._process = await asyncio.create_subprocess_exec(
                    *command,
                    *flags,
                    pass_fds=fds,
                    stdin=asyncio.subprocess.DEVNULL,
                    env=environment(),
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

    def broken(self) -> None:
        self.kill()

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
