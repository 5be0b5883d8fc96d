"""What the service manager hears: real datagrams, from the notifier alone and from real servers."""

import asyncio
import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from app.processes.notify import Notifier, watchdog_seconds
from tests.app.echo_worker import FREEZE
from tests.app.server_process import DEADLINE, GOLDEN, SERVE_ECHO, serving, until
from tests.tiers import tiered

MODEL = ["--", "--model", str(GOLDEN / "tokenizer")]


@dataclass
class Manager:
    """As much of systemd as a service sees: a datagram socket."""

    address: str
    said: list[str] = field(default_factory=list)

    def count(self, message: str) -> int:
        return self.said.count(message)

    def said_so_far(self, message: str) -> int:
        """How often, also of what is still on its way."""
        mark = f"mark {len(self.said)}"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.sendto(mark.encode(), "\0" + self.address[1:] if self.address[0] == "@" else self.address)
        until(lambda: mark in self.said)
        return self.said[: self.said.index(mark)].count(message)


@contextlib.contextmanager
def listening(address: str) -> Iterator[Manager]:
    manager = Manager(address)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind("\0" + address[1:] if address[0] == "@" else address)

        def receive() -> None:
            while message := sock.recv(4096):
                manager.said.append(message.decode())

        thread = threading.Thread(target=receive)
        thread.start()
        try:
            yield manager
        finally:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as last:
                last.sendto(b"", sock.getsockname())
            thread.join()


@pytest.mark.parametrize("abstract", [False, True])
async def test_the_watchdog_is_fed_while_the_engine_is_heard(tmp_path: Path, abstract: bool) -> None:
    address = f"@fastpath-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    age = 0.0
    with listening(address) as manager:
        environment = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "30000"}
        notifier = Notifier(environment, lambda: age)
        await asyncio.sleep(0.05)
        assert not manager.said, "nothing is said before there is something to say"
        notifier.ready()

        async def beats(count: int) -> None:
            async with asyncio.timeout(DEADLINE):
                while manager.count("WATCHDOG=1") < count:
                    await asyncio.sleep(0.002)

        await beats(3)
        age = 0.031
        silent = manager.said_so_far("WATCHDOG=1")
        await asyncio.sleep(0.06)
        assert manager.said_so_far("WATCHDOG=1") == silent
        age = 0.0
        await beats(silent + 1)
        notifier.stopping()
        notifier.close()
    assert (manager.said[0], manager.said[-1]) == ("READY=1", "STOPPING=1")


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "60000000"}, 60.0),
        ({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": str(os.getpid())}, 60.0),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_only_our_own_watchdog_counts(environment: dict[str, str], expected: float | None) -> None:
    assert watchdog_seconds(environment) == expected


def test_a_manager_that_is_gone_is_no_reason_to_stop(tmp_path: Path) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": str(tmp_path / "nobody")}, lambda: 0.0)
    notifier.ready()
    notifier.stopping()


@pytest.mark.parametrize("workers", tiered(["1", "2"], {1}))
def test_a_server_tells_its_life(tmp_path: Path, workers: str) -> None:
    with listening(str(tmp_path / "notify")) as manager:
        environment = {"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "1200000"}
        with serving([*SERVE_ECHO, *MODEL], "--api-workers", workers, **environment) as server:
            until(lambda: manager.count("WATCHDOG=1") >= 2)
            assert manager.said[0] == "READY=1"
            answer = server.ask([FREEZE])  # the engine's process stands still
            until(lambda: server.get("/ready") == 503)  # its heart has not beaten for 1.5 s
            silent = manager.said_so_far("WATCHDOG=1")
            begin = time.monotonic()
            while time.monotonic() < begin + 0.6:  # a third of the watchdog's time, and half as much again
                assert server.get("/health") == 200
            assert manager.said_so_far("WATCHDOG=1") == silent
            answer.close()
            server.signal(signal.SIGTERM)
            until(lambda: manager.count("STOPPING=1") == 1)
            for child in server.children():  # the frozen one could not hear that its parent has ended
                os.kill(child, signal.SIGKILL)
