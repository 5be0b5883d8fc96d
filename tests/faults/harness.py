"""A real server that is treated badly, and the promise that it is none the worse for it.

Every request made here checks the form of what is refused, and `unharmed` checks the server after a case.
"""

import contextlib
import http.client
import json
import re
import resource
import socket
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.app.fair_clock import FairClock
from tests.app.server_process import DEADLINE, ROOT, SERVER, environment, until

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
USER = [{"role": "user", "content": "hi"}]
JSON_TYPE = {"Content-Type": "application/json"}
NORMAL = {"prompt": [1, 2, 3], "max_tokens": 2, "temperature": 0, "ignore_eos": True}
NORMAL_SECONDS = 1.0  # a normal request after a case takes no longer
SETTLED_SECONDS = 2.0  # what a case held is free after this time
BALANCED = ("running", "waiting", "blocks_used", "open_answers")
TRACEBACK = b"Traceback (most recent call last)"
SHOWN = 300  # characters of a body in a failed test's message


@dataclass(slots=True)
class Reply:
    """An HTTP answer. `seconds`: by the fair clock. `closed`: the server has announced that it closes the
    connection, or has done so.
    """

    status: int
    headers: dict[str, str]
    body: bytes
    seconds: float
    closed: bool = False

    def json(self) -> dict[str, object]:
        value = json.loads(self.body)
        assert isinstance(value, dict), value
        return value

    @property
    def error(self) -> dict[str, str | None]:
        error = self.json()["error"]
        assert isinstance(error, dict)
        return error

    @property
    def choice(self) -> dict[str, object]:
        choices = self.json()["choices"]
        assert isinstance(choices, list)
        return choices[0]

    @property
    def text(self) -> str:
        """The first choice's text, of a completion or a message."""
        choice = self.choice
        message = choice.get("message")
        text = message["content"] if isinstance(message, dict) else choice["text"]
        assert isinstance(text, str)
        return text

    @property
    def usage(self) -> dict[str, int]:
        usage = self.json()["usage"]
        assert isinstance(usage, dict)
        return usage


def check_form(reply: Reply, what: str, *, has_body: bool = True) -> None:
    """The promise for every answer that is no success: nested error, string code, id, JSON, no traceback."""
    assert TRACEBACK not in reply.body and b'File "' not in reply.body, what
    if reply.status < 400:
        return
    shown = f"{what}: {reply.status} {reply.headers} {reply.body[:SHOWN]!r}"
    assert reply.headers.get("x-request-id"), shown
    assert reply.headers.get("content-type", "").startswith("application/json"), shown
    if not has_body:
        return
    error = reply.error
    assert {"message", "type", "param", "code"} <= set(error), shown
    assert isinstance(error["code"], str) and error["code"], shown
    assert isinstance(error["message"], str) and 0 < len(error["message"]) < 600, shown
    assert isinstance(error["type"], str) and isinstance(error["param"], str | None), shown


def read_reply(sock: socket.socket, method: str = "POST", clock: FairClock | None = None) -> Reply:
    """The next answer on a connection. clock: begun with the request, or with this call."""
    clock = clock or FairClock()
    response = http.client.HTTPResponse(sock, method=method)
    try:
        response.begin()
        body = response.read()
        headers = {name.lower(): value for name, value in response.getheaders()}
        return Reply(response.status, headers, body, clock.seconds(), response.will_close)
    finally:
        response.close()


def is_closed(sock: socket.socket, clock: FairClock | None = None, seconds: float = 3.0) -> bool:
    """Whether the server closes its side within this time; what it still sends is thrown away. clock: the
    server's, begun now.
    """
    clock = clock or FairClock()
    sock.settimeout(DEADLINE)
    with contextlib.suppress(OSError):
        while sock.recv(65536):
            pass
    return clock.seconds() < seconds


def head(path: str, length: int | None, *lines: str, method: str = "POST") -> bytes:
    """A request's head with a JSON content type."""
    all_lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", "Content-Type: application/json", *lines]
    if length is not None:
        all_lines.append(f"Content-Length: {length}")
    return "\r\n".join([*all_lines, "", ""]).encode()


def request_bytes(path: str, body: Mapping[str, object], *lines: str) -> bytes:
    """A whole request."""
    data = json.dumps(body).encode()
    return head(path, len(data), *lines) + data


@dataclass(slots=True)
class Service:
    """A running server, as its clients and its machine see it."""

    process: "subprocess.Popen[bytes]"
    log: Path
    port: int = 0
    key: str = ""

    # Requests

    def connect(self, timeout: float = DEADLINE) -> socket.socket:
        sock = socket.create_connection(("127.0.0.1", self.port), timeout)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock

    def auth(self) -> list[str]:
        """The header lines that a normal request needs."""
        return [f"Authorization: Bearer {self.key}"] if self.key else []

    def send(
        self,
        path: str,
        body: bytes | str,
        headers: Mapping[str, str] = JSON_TYPE,
        *,
        method: str = "POST",
    ) -> Reply:
        """One request on a connection of its own, its form checked."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=DEADLINE)
        key = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        data = body.encode() if isinstance(body, str) else body
        clock = self.clock()
        with contextlib.closing(connection):
            connection.request(method, path, data or None, key | dict(headers))
            response = connection.getresponse()
            answer = response.read()
            seconds = clock.seconds()
        found = {name.lower(): value for name, value in response.getheaders()}
        reply = Reply(response.status, found, answer, seconds)
        check_form(reply, f"{method} {path} {data[:SHOWN]!r}", has_body=method != "HEAD")
        return reply

    def post(self, path: str, body: Mapping[str, object]) -> Reply:
        return self.send(path, json.dumps(body))

    def get(self, path: str) -> Reply:
        return self.send(path, b"", {}, method="GET")

    def chat(self, **fields: object) -> Reply:
        return self.post(CHAT, {"messages": USER, "max_tokens": 4} | fields)

    def complete(self, **fields: object) -> Reply:
        return self.post(COMPLETIONS, {"prompt": [1, 2, 3], "max_tokens": 4} | fields)

    def raw(self, data: bytes, method: str = "POST") -> Reply:
        """Bytes as they are, and the answer to them; its form is checked."""
        with self.connect() as sock:
            clock = self.clock()
            with contextlib.suppress(OSError):  # refused before all was sent: the answer is there to read
                sock.sendall(data)
            reply = read_reply(sock, method, clock)
            reply.closed = reply.closed and is_closed(sock, self.clock())
        check_form(reply, repr(data[:SHOWN]), has_body=method != "HEAD")
        return reply

    def open_stream(self, body: Mapping[str, object], path: str = COMPLETIONS) -> socket.socket:
        """Sends a request and reads nothing of its answer."""
        sock = self.connect()
        sock.sendall(request_bytes(path, dict(body) | {"stream": True}, *self.auth()))
        return sock

    # The server's own account

    def stats(self) -> dict[str, int]:
        stats: dict[str, int] = json.loads(self.get("/stats").body)
        return stats

    def balance(self) -> dict[str, int]:
        """What has to be the same before and after."""
        stats = self.stats()
        return {name: stats[name] for name in BALANCED}

    def until_stats(self, condition: Callable[[dict[str, int]], bool], seconds: float = 20) -> None:
        self.clock().until(lambda: condition(self.stats()), seconds)

    def is_ready(self) -> bool:
        return self.get("/ready").status == 200

    def logged(self, since: int = 0) -> str:
        """What was written to standard error, from a byte on."""
        with self.log.open("rb") as file:
            file.seek(since)
            return file.read().decode("utf-8", "replace")

    # The machine's account of the server's process

    def clock(self) -> FairClock:
        """For what the server, its engine and this client do together."""
        return FairClock(self.process.pid, *self.children())

    def children(self) -> list[int]:
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(child) for child in children.read_text().split()] if children.exists() else []

    def rss(self) -> int:
        """Bytes of the process that speaks HTTP."""
        return rss(self.process.pid)

    def open_files(self) -> int:
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))


def rss(pid: int) -> int:
    """Bytes of memory that a process holds."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()


@contextlib.contextmanager
def launch(
    model: Path,
    *flags: str,
    program: Sequence[str] = SERVER,
    key: str = "",
    port: int = 0,
    log_to: str = "",
    log_format: str = "json",
    **more: str,
) -> Iterator[Service]:
    """A server of one small model on a free port. Its outputs go to files, so that nothing can block it."""
    with tempfile.TemporaryDirectory() as folder:
        out, log = Path(folder, "out"), Path(folder, "log")
        log.touch()
        with out.open("wb") as stdout, Path(log_to or log).open("wb") as stderr:
            command = [*program, *flags, "--port", str(port), "--log-format", log_format]
            process = subprocess.Popen(
                [*command, "--dtype", "float32", "--threads", "1", "--model", str(model)],
                cwd=ROOT,
                env=environment() | more,
                stdout=stdout,
                stderr=stderr,
            )
        try:
            service = Service(process, log, key=key)
            service.port = announced_port(process, out, log)
            yield service
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()


def announced_port(process: "subprocess.Popen[bytes]", out: Path, log: Path) -> int:
    """The port in the ready line, whatever its format."""
    found: list[str] = []

    def look() -> bool:
        assert process.poll() is None, f"the server ended: {log.read_text()}"
        found[:] = re.findall(r"^(?:Ready:|{.*\"ready\").*http://127\.0\.0\.1:(\d+)", out.read_text(), re.M)
        return bool(found)

    until(look)
    return int(found[0])


@contextlib.contextmanager
def unharmed(service: Service, *, told: bool = False) -> Iterator[None]:
    """After what happens in here the server is what it was.

    A normal request is answered within a second, the statistics are balanced, the log has no traceback (with
    `told` it may: of a fault that was put in). It begins at rest: an answer that a client has read to its end
    may be open for some microseconds more, and would be missed afterwards.
    """
    service.until_stats(lambda stats: not any(stats[name] for name in BALANCED))
    before = service.balance()
    mark = service.log.stat().st_size
    yield
    with contextlib.suppress(AssertionError):  # told below, with both values
        service.clock().until(lambda: service.balance() == before, SETTLED_SECONDS)
    assert service.balance() == before
    reply = service.post(COMPLETIONS, NORMAL)
    assert reply.status == 200, reply.body[:SHOWN]
    assert reply.seconds < NORMAL_SECONDS
    assert reply.usage["completion_tokens"] == NORMAL["max_tokens"]
    service.clock().until(lambda: service.balance() == before, SETTLED_SECONDS)
    log = service.logged(mark)
    assert told or ("Traceback" not in log and '"traceback"' not in log), log


def refused(
    reply: Reply, status: int = 400, *, code: str | Sequence[str] | None = None, param: str | None = None
) -> None:
    """Checks what a request was refused with; its form has been checked already."""
    shown = f"{reply.status} {reply.body[:SHOWN]!r}"
    assert reply.status == status, shown
    codes = [code] if isinstance(code, str) else code
    assert codes is None or reply.error["code"] in codes, shown
    # The field, or the element of it.
    assert param is None or (reply.error["param"] or "").startswith(param), shown


class Pulse:
    """Asks /health all the time from a thread, and keeps how long each answer took."""

    def __init__(self, service: Service, path: str = "/health", pause: float = 0.002) -> None:
        self.seconds: list[float] = []
        self._service, self._path, self._pause = service, path, pause
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "Pulse":
        self._thread.start()
        until(lambda: len(self.seconds) >= 3)
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join(DEADLINE)

    def _run(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._service.port, timeout=DEADLINE)
        with contextlib.closing(connection):
            while not self._over.wait(self._pause):
                clock = self._service.clock()
                connection.request("GET", self._path)
                connection.getresponse().read()
                self.seconds.append(clock.seconds())


def allow_open_files(count: int) -> None:
    """Lets this process hold so many connections. Skips nothing: a machine that cannot is told so."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < count:
        assert hard == resource.RLIM_INFINITY or hard >= count, f"only {hard} files may be open (ulimit -Hn)"
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))


def events(sock: socket.socket) -> Iterator[str]:
    """The data of a stream's events, over a raw connection; checks that it was accepted."""
    response = http.client.HTTPResponse(sock)
    response.begin()
    assert response.status == 200, response.read()
    while line := response.readline():
        if line.startswith(b"data: "):
            yield line[6:].decode().strip()


def percentile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)]
