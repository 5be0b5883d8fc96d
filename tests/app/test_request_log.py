"""The line of each request: what it says, what it never says, and that it can stop nothing."""

import asyncio
import json
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.answers.choices import Choice
from app.answers.record import gap_quantiles
from app.http.fields import Fields
from app.requests.text import TextService
from app.routes.nanochat import parse
from app.settings.http import HttpSettings
from app.telemetry.logs import HELD_BYTES, JsonFormatter, PatientHandler, RequestLine, TextFormatter
from engine.messages import Finish, Frame, Request, SamplingParams, Started, StreamRouter
from tests.app.scripted_engine import ScriptedEngine, byte_template, byte_tokenizer, says
from tests.app.server_process import GOLDEN, ROOT, SERVE_ECHO, Server, environment, until
from tests.app.serving import served
from tests.tiers import tiered

LOGGED = HttpSettings(access_log=True)
_info = ScriptedEngine().info
SAMPLING = parse(Fields({"messages": [{"role": "user", "content": "x"}]}), _info, HttpSettings())[1]
SECRET = "the quick brown secret"


class Kept(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    def lines(self, formatter: logging.Formatter | None = None) -> list[str]:
        return [(formatter or JsonFormatter()).format(record) for record in self.records]

    def objects(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self.lines()]


@pytest.fixture
def kept() -> Iterator[Kept]:
    handler, logger = Kept(), logging.getLogger("fastpath")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel("INFO")
    yield handler
    logger.removeHandler(handler)
    logger.setLevel(level)


async def test_the_line_says_what_happened(kept: Kept) -> None:
    engine = ScriptedEngine()
    async with served(engine, LOGGED) as s:
        body = {"prompt": "abcd", "max_tokens": 9, "temperature": 0.5, "seed": 7, "user": "u-1"}
        headers = {"x-request-id": "mine"}
        task = asyncio.ensure_future(s.http.post("/v1/completions", json=body, headers=headers))
        await engine.until(lambda: bool(engine.requests))
        id = engine.requests[0].id
        engine.router.dispatch(Frame([], [], [], [], [], engine.stats(), started=[Started(id, 0.0125, 3)]))
        for byte in b"abc":
            engine.emit(id, [byte])
            await asyncio.sleep(0)
        engine.emit(id, b"d", Finish(id, "length", None, 3, batch_rows=2.5))
        await task
    (line,) = kept.objects()
    assert {name: line[name] for name in ("level", "request_id", "route", "method", "status", "client")} == {
        "level": "info",
        "request_id": "mine",
        "route": "/v1/completions",
        "method": "POST",
        "status": 200,
        "client": "127.0.0.1",
    }
    assert (line["finish_reason"], line["n_prompt"], line["n_cached"], line["n_out"]) == ("length", 5, 3, 4)
    assert (line["queue_ms"], line["batch_mean"], line["aborted"], line["user"]) == (12.5, 2.5, None, "u-1")
    wanted = {
        "n": 1,
        "stream": False,
        "max_tokens": 9,
        "temperature": 0.5,
        "seed": 7,
        "top_p": 1.0,
        "top_k": 0,
    }
    assert line["params"] == wanted
    assert 0 < line["itl_p50_ms"] <= line["itl_p95_ms"] < line["duration_ms"]  # type: ignore[operator]
    assert 0 < line["ttft_ms"] < line["duration_ms"]  # type: ignore[operator]
    assert {"ts", "key_id", "tok_s", "trace_id"} <= line.keys()
    (text,) = kept.lines(TextFormatter())
    assert "POST /v1/completions 200" in text and "n_out=4" in text and "request_id=mine" in text


async def test_who_left_and_who_was_refused_is_said(kept: Kept) -> None:
    async with served(ScriptedEngine(says("x")), LOGGED) as s:
        await s.http.post("/v1/completions", json={"prompt": 5})
        await s.http.get("/nowhere/%1b%5b31m%0d%0a")
        await s.http.get("/v1/models/unknown")
    refused, nowhere, unknown = kept.objects()
    assert (refused["status"], refused["route"], "params" in refused) == (400, "/v1/completions", False)
    assert (nowhere["status"], unknown["status"]) == (404, 404)
    assert unknown["route"] == "/v1/models/{id:path}"
    assert all("\x1b" not in line for line in kept.lines() + kept.lines(TextFormatter()))


@pytest.mark.parametrize("content", [False, True])
async def test_no_line_holds_a_prompt_unless_it_is_asked_for(kept: Kept, content: bool) -> None:
    settings = HttpSettings(access_log=True, log_content=content)
    async with served(ScriptedEngine(says("an answer")), settings) as s:
        await s.chat(SECRET)
        await s.chat(SECRET, stream=True)
        await s.complete(prompt=SECRET, stop=[SECRET])
        nano = {"messages": [{"role": "user", "content": SECRET}]}
        await s.http.post("/chat/completions", json=nano)
    lines = kept.lines() + kept.lines(TextFormatter())
    assert len(lines) == 8
    assert all((SECRET in line) == content for line in lines)


async def test_probes_leave_no_line(kept: Kept) -> None:
    async with served(ScriptedEngine(), LOGGED) as s:
        for path in ("/health", "/ready", "/metrics", "/stats"):
            await s.http.get(path)
    assert [line["route"] for line in kept.objects()] == ["/stats"]


@given(st.text(max_size=80))
@settings(max_examples=60)
def test_whatever_a_client_writes_makes_one_line(user: str) -> None:
    fields = {"client": "::1", "method": "POST", "route": "/x", "status": 200, "duration_ms": 1, "user": user}
    fields["content"] = {"prompt": user}
    record = logging.LogRecord("fastpath.access", logging.INFO, "", 0, RequestLine(fields), None, None)
    text, line = TextFormatter().format(record), JsonFormatter().format(record)
    for each in (text, line):
        assert len(each.splitlines()) == 1
        assert not any(ord(char) < 32 or 127 <= ord(char) < 160 for char in each)
    assert json.loads(line)["user"] == user


# -- the writer


SIZES = st.lists(st.one_of(st.integers(0, 200), st.integers(4000, 90_000)), max_size=12)


@given(SIZES, st.lists(st.booleans(), max_size=12))
@settings(max_examples=25)
def test_lines_reach_a_slow_reader_whole_and_in_order(sizes: list[int], reads: list[bool]) -> None:
    """And `emit` never waits: nobody reads while it runs."""
    read_end, write_end = os.pipe()
    os.set_blocking(read_end, False)
    got = bytearray()

    def read() -> None:
        while True:
            try:
                got.extend(os.read(read_end, 1 << 16))
            except BlockingIOError:
                return

    with os.fdopen(write_end, "w") as stream:
        handler = PatientHandler(stream)
        lines = [f"{k} " + "x" * size for k, size in enumerate(sizes)]
        for k, line in enumerate(lines):
            handler.emit(logging.makeLogRecord({"msg": line}))
            if reads[k : k + 1] == [True]:
                read()
        for _ in range(100):
            read()
            handler.flush()
        read()
    os.close(read_end)
    assert got.decode().splitlines() == lines and handler.dropped == 0


def test_what_nobody_reads_is_dropped_in_whole_lines() -> None:
    read_end, write_end = os.pipe()
    with os.fdopen(write_end, "w") as stream, os.fdopen(read_end, "rb", buffering=0) as reader:
        handler = PatientHandler(stream)
        line = "y" * 9_999
        count = 3 * HELD_BYTES // len(line)
        for _ in range(count):
            handler.emit(logging.makeLogRecord({"msg": line}))
        assert 0 < handler.dropped < count
        os.set_blocking(reader.fileno(), False)
        got = b""
        while data := reader.read(1 << 16):
            got += data
            handler.flush()
        assert got == (line.encode() + b"\n") * (count - handler.dropped)
    handler.emit(logging.makeLogRecord({"msg": "into a closed file"}))


# -- real processes whose output cannot be written


def start(error: int | None, out: int, tmp_path: Path) -> "subprocess.Popen[bytes]":
    """A server with a line per request; its port is written into a file, for its output is in question."""
    code = (
        "import os, sys\n"
        "if sys.argv[1] == 'close': os.close(1); os.close(2)\n"
        "command = sys.argv[2:]\n"
        "os.execv(command[0], command)\n"
    )
    flags = [
        "--",
        "--model",
        str(GOLDEN / "tokenizer"),
        "--log-format",
        "json",
        "--port",
        (tmp_path / "port").read_text(),
    ]
    how = "close" if error is None else "keep"
    return subprocess.Popen(
        [sys.executable, "-c", code, how, *SERVE_ECHO, *flags],
        cwd=ROOT,
        env=environment(),
        stdout=out,
        stderr=subprocess.DEVNULL if error is None else error,
        stdin=subprocess.DEVNULL,
    )


@pytest.mark.parametrize("fault", tiered(["full disk", "closed", "nobody reads", "reader gone"], {0, 2}))
def test_the_service_goes_on_without_its_log(fault: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as found:
        port = found.getsockname()[1]
    (tmp_path / "port").write_text(str(port))
    read_end, write_end = os.pipe()
    full = os.open("/dev/full", os.O_WRONLY)
    error = {"full disk": full, "closed": None}.get(fault, write_end)
    if fault == "reader gone":
        os.close(read_end)
    process = start(error, full if error == full else write_end, tmp_path)
    try:
        server = Server(process, port)  # type: ignore[arg-type]

        def ready() -> bool:
            assert process.poll() is None, "the server ended"
            try:
                return server.get("/ready") == 200
            except OSError:
                return False

        until(ready)
        path = "/v1/models/" + "x" * 400
        for _ in range(300):  # more than a pipe holds
            assert server.get(path) == 404
        answer = server.ask([65, 66])
        assert answer.status == 200 and b"[DONE]" in answer.read()
        process.terminate()
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()
        for fd in {read_end, write_end, full} - ({read_end} if fault == "reader gone" else set()):
            os.close(fd)


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 50)), min_size=1, max_size=30))
@settings(max_examples=50)
def test_percentiles_are_those_of_the_gaps_between_steps(frames: list[tuple[int, int]]) -> None:
    """Frames of one to four steps each, so many seconds apart; before and after them come those of others."""
    (stream,) = (router := StreamRouter()).open(
        Request(id=1, prompt=[1], params=SamplingParams(max_tokens=1))
    )
    choice = Choice(0, stream, [1], SAMPLING, TextService(byte_tokenizer(), byte_template()))
    arrivals, now, steps = [(0.0, 5), (100.0, 6)], 100.0, 6
    expected: list[float] = []
    for count, seconds in frames:
        now, steps = now + seconds, steps + count
        arrivals.append((now, steps))
        expected += [seconds / count] * count
    router._arrivals.extend([*arrivals, (now + 7, steps + 1)])
    choice.first_token_at, choice.last_token_at, choice.completion_tokens = 100.5, now, len(expected) + 1
    expected.sort()
    p50, p95 = gap_quantiles(choice)
    assert p50 == pytest.approx(expected[int(0.5 * (len(expected) - 1))])
    assert p95 == pytest.approx(expected[int(0.95 * (len(expected) - 1))])
