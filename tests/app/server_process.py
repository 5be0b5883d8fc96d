"""Starts a server program and talks to it, for tests that need a real process."""

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.app.fair_clock import FairClock

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden" / "g1"
SERVE_ECHO = [sys.executable, str(Path(__file__).with_name("serve_echo.py"))]
SERVER = [sys.executable, "-m", "app"]
DEADLINE = 60.0  # generous: the machine may be busy


def environment() -> dict[str, str]:
    """Ours without any of the settings."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("APP_")}
    return kept | {"PYTHONPATH": str(ROOT), "NANOCHAT_BASE_DIR": "/does/not/exist"}


def finish(command: Sequence[str], **more: str) -> "subprocess.CompletedProcess[str]":
    """Runs a program to its end."""
    return subprocess.run(
        command, cwd=ROOT, env=environment() | more, capture_output=True, text=True, timeout=DEADLINE
    )


def until(condition: Callable[[], bool], seconds: float = DEADLINE) -> float:
    """Waits for a condition; how long that took."""
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < seconds, "the condition did not come true in time"
        time.sleep(0.01)
    return time.monotonic() - start


@dataclass
class Server:
    """A running server and its address."""

    process: "subprocess.Popen[str]"
    port: int = 0

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=DEADLINE)

    def get(self, path: str) -> int:
        """The status of a GET."""
        with contextlib.closing(self.connect()) as connection:
            connection.request("GET", path)
            return connection.getresponse().status

    def ask(self, prompt: list[int], stream: bool = True, max_tokens: int = 100) -> http.client.HTTPResponse:
        """Opens a completion; its connection ends with the response."""
        body = {"prompt": prompt, "max_tokens": max_tokens, "stream": stream}
        connection = self.connect()
        headers = {"Content-Type": "application/json"}
        connection.request("POST", "/v1/completions", json.dumps(body), headers)
        return connection.getresponse()

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def wait(self, seconds: float = DEADLINE) -> int:
        return self.process.wait(seconds)

    def end(self, seconds: float, clock: FairClock) -> int:
        """The exit status, which is there by this time of the server's clock."""
        clock.until(lambda: self.process.poll() is not None, seconds)
        return self.process.wait()

    def clock(self) -> FairClock:
        """For what the server, its children and this client do together."""
        return FairClock(self.process.pid, *self.children())

    def children(self) -> list[int]:
        """Process ids of the server's children (Linux)."""
        pid = self.process.pid
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@contextlib.contextmanager
def serving(
    command: Sequence[str],
    *flags: str,
    ready: bool = True,
    cwd: Path = ROOT,
    port: int = 0,
    **more: str,
) -> Iterator[Server]:
    """A server on a free port, if `port` names none. `ready`: wait for its ready line, else for its
    listening line.
    """
    process = subprocess.Popen(
        [*command, "--port", str(port), "--log-format", "json", *flags],
        cwd=cwd,
        env=environment() | more,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stderr is not None
    try:
        listening = json.loads(process.stderr.readline())
        server = Server(process, int(listening["message"].split(",")[0].rsplit(":", 1)[1]))
        if ready:
            line = json.loads(process.stdout.readline())
            assert line["event"] == "ready" and line["port"] == server.port
        yield server
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        process.communicate()


def gone(pid: int) -> bool:
    """Whether the process has ended (a zombie counts as ended)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True
