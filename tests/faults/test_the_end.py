"""Rows 43 and 44 of docs/faults.md: signals and the end, and a machine that plays tricks."""

import contextlib
import json
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.app.server_process import DEADLINE, ROOT, SERVER, environment, gone, until
from tests.e2e.api import random_prompt
from tests.faults.harness import (
    CHAT,
    COMPLETIONS,
    NORMAL,
    USER,
    Service,
    head,
    is_closed,
    launch,
    refused,
    unharmed,
)
from tests.faults.test_engine_faults import SERVE_FAULTY, Stream
from tests.tiers import tiered

RUNNING, QUEUED = 8, 20
TOKENS = 100
DRAIN = 20.0
PROMPTLY = 2.0  # seconds beyond the drain's time
AT_ONCE = 3.0


@pytest.mark.slow
def test_43_sigterm_with_eight_running_and_twenty_queued(steady_model: Path) -> None:
    """Every answer that has begun is whole; one that has not may be told to come again, never cut."""
    flags = ("--batch-size", str(RUNNING), "--drain-timeout", str(DRAIN))
    with launch(steady_model, *flags) as service:
        with unharmed(service):
            pass
        (engine,) = service.children()
        streams = []
        for number in range(RUNNING + QUEUED):
            prompt = random_prompt(8, seed=number)
            body = {"prompt": prompt, "max_tokens": TOKENS, "ignore_eos": True, "return_token_ids": True}
            streams.append(Stream(service, body))
        service.until_stats(lambda stats: stats["running"] == RUNNING and stats["waiting"] > 0)
        until(lambda: sum(bool(stream.text) for stream in streams) >= RUNNING)
        begun = [stream for stream in streams if stream.text]
        clock = service.clock()
        service.process.send_signal(signal.SIGTERM)
        clock.until(lambda: not service.is_ready(), 5)
        refused(service.complete(), 503, code="draining")
        assert not all(not stream.is_alive() for stream in streams), "all had ended before the signal"
        for stream in streams:
            stream.wait()
        clock.until(lambda: service.process.poll() is not None, DRAIN + PROMPTLY)
        assert service.process.returncode == 0
        assert gone(engine)
    for stream in streams:
        if stream.refusal is not None:
            assert stream not in begun
            refused(stream.refusal, 503, code=("draining", "server_shutdown"))
        else:
            assert stream.is_whole, (stream.error, stream.data[-1:])
            ids = [json.loads(data)["choices"][0].get("token_ids") or [] for data in stream.data[:-1]]
            assert sum(map(len, ids)) == TOKENS


@pytest.mark.slow
def test_43_sigterm_with_a_stuck_upload(tiny_model: Path) -> None:
    with launch(tiny_model, "--drain-timeout", "1") as service:
        with unharmed(service):
            pass
        with service.connect() as stuck, service.connect() as half, service.connect() as idle:
            stuck.sendall(head(CHAT, 1000) + b'{"messages": [')
            half.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: ")
            assert service.complete().status == 200
            clock = service.clock()
            service.process.send_signal(signal.SIGTERM)
            clock.until(lambda: service.process.poll() is not None, 1 + PROMPTLY)
            assert service.process.returncode == 0
            assert all(is_closed(sock) for sock in (stuck, half, idle))


def test_43_two_signals_end_at_once(steady_model: Path) -> None:
    with launch(steady_model, "--drain-timeout", "600", "--max-model-len", "1024") as service:
        with unharmed(service):
            pass
        (engine,) = service.children()
        stream = Stream(service, {"prompt": [1], "max_tokens": 1000, "ignore_eos": True, "n": 8})
        until(lambda: bool(stream.text))
        service.process.send_signal(signal.SIGINT)
        until(lambda: not service.is_ready())
        start = time.monotonic()
        until(lambda: time.monotonic() - start > 0.05)  # closer together they are taken for one
        clock = service.clock()
        service.process.send_signal(signal.SIGINT)
        clock.until(lambda: service.process.poll() is not None, AT_ONCE)
        assert service.process.returncode == 0
        clock.until(lambda: gone(engine), 2 * AT_ONCE)
        stream.join(DEADLINE)


@pytest.mark.slow
def test_43_killed_and_started_again_on_the_same_port(tiny_model: Path) -> None:
    with launch(tiny_model) as service:
        (engine,) = service.children()
        port = service.port
        kept = service.connect()
        stream = Stream(service, {"prompt": [1], "max_tokens": 200, "ignore_eos": True})
        until(lambda: bool(stream.text))
        clock = service.clock()
        service.process.kill()
        service.process.wait()
        clock.until(lambda: gone(engine), AT_ONCE)
        with contextlib.closing(kept), launch(tiny_model, port=port) as again, unharmed(again):
            assert again.port == port
            assert again.complete().status == 200


# -- a machine that plays tricks
# ---------------------------------------------------------------------------------------


def test_44_the_disk_is_full(tiny_model: Path) -> None:
    """Every line that is logged fails to be written."""
    with launch(tiny_model, "--access-log", "--log-level", "debug", log_to="/dev/full") as service:
        with unharmed(service):
            for _ in range(20):
                assert service.chat().status == 200
                refused(service.post(CHAT, {"messages": 5}))
            assert service.get("/nowhere").status == 404
        service.process.send_signal(signal.SIGTERM)
        assert service.process.wait(DEADLINE) == 0


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
@pytest.mark.slow
def test_44_an_output_that_is_closed(tiny_model: Path, stream: str, tmp_path: Path) -> None:
    """A pipe whose reader has gone: the first write of the server would end a careless one."""
    log = tmp_path / "log"
    command = [*SERVER, "--port", "0", "--log-format", "json", "--log-level", "debug", "--access-log"]
    command += ["--dtype", "float32", "--threads", "1", "--model", str(tiny_model)]
    other = "stderr" if stream == "stdout" else "stdout"
    with log.open("wb") as file:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment(),
            **{stream: subprocess.PIPE, other: file},  # type: ignore[call-overload]
        )
    pipe = process.stdout if stream == "stdout" else process.stderr
    try:
        if stream == "stderr":
            pipe.readline()
        pipe.close()
        service = Service(process, log)
        until(lambda: found_port(service))
        until(service.is_ready)
        with unharmed(service):
            for _ in range(5):
                assert service.complete().status == 200
                assert service.get("/nowhere").status == 404
        process.send_signal(signal.SIGTERM)
        assert process.wait(DEADLINE) == 0
    finally:
        process.kill()
        process.wait()


def found_port(service: Service) -> bool:
    """Whether the log (or the ready line in its place) tells the port by now."""
    for line in service.log.read_text().splitlines():
        record = json.loads(line)
        if "port" in record:
            service.port = record["port"]
        elif str(record.get("message", "")).startswith("listening on "):
            service.port = int(record["message"].split(",")[0].rsplit(":", 1)[1])
    return service.port > 0


@pytest.mark.slow
def test_44_the_clock_jumps_and_no_name_is_known(tiny_model: Path) -> None:
    flags = ("--wild-clock", "--no-names", "--drain-timeout", "5")
    with launch(tiny_model, *flags, program=SERVE_FAULTY) as service:
        with unharmed(service):
            bodies = [service.complete(max_tokens=20, seed=1, ignore_eos=True).json() for _ in range(10)]
            created = [body["created"] for body in bodies]
            assert max(created) - min(created) > 80_000, "the clock did not jump"
            texts = {body["choices"][0]["text"] for body in bodies}  # type: ignore[index]
            assert len(texts) == 1
            stream = Stream(service, NORMAL | {"max_tokens": 100}).wait()
            assert stream.is_whole
            stats = service.stats()
            assert 0 <= stats["tokens_per_second"] < 1e6 and (stats["ttft_p50_seconds"] or 0) < 60
        service.process.send_signal(signal.SIGTERM)
        assert service.process.wait(DEADLINE) == 0


FORGED = '{"level": "error", "message": "forged"}'
NASTY = f"mallory\r\n{FORGED}\n\x1b[2J\x1b]0;owned\x07\x1b[31mred\x7f\u2028\u202e\x85\x00"


@pytest.mark.parametrize("format", tiered(["json", "text"], {1}))
def test_44_nobody_forges_a_line_of_the_log(tiny_model: Path, format: str) -> None:
    with launch(tiny_model, "--access-log", "--log-level", "debug", log_format=format) as service:
        mark = service.log.stat().st_size
        with unharmed(service):
            for field in ("user", "cache_salt", "safety_identifier", "model", "stop", "unheard_of"):
                service.post(CHAT, {"messages": USER, "max_tokens": 2, field: NASTY})
            service.chat(metadata={NASTY: NASTY}, user=NASTY)
            service.post(COMPLETIONS, {"prompt": NASTY, "max_tokens": 2, "user": NASTY})
            for value in ("a\tb", "a%0d%0ab", "\u00ff\u0085"):
                headers = {"X-Request-Id": value, "User-Agent": value, "traceparent": value, "Origin": "null"}
                headers["Content-Type"] = "application/json"
                encoded = {name: text.encode("latin-1") for name, text in headers.items()}
                service.send(COMPLETIONS, json.dumps(NORMAL), encoded)  # type: ignore[arg-type]
            for path in ("/%0d%0aforged", "/%1b%5b2J", "/v1/models/%0a%7b%22level%22%3a1%7d", "/%e2%80%a8"):
                service.get(path)
        lines = service.logged(mark)
        records = [line for line in lines.split("\n") if line]
        if format == "json":
            assert "forged" not in [record(line).get("message") for line in records]
        else:
            assert all(re.match(r"\d\d:\d\d:\d\d [A-Z]+ ", line) for line in records)
        assert lines.count("\n") >= 5, "nothing was logged"
        for character in "\r\x1b\x07\x00\x7f\x85\u2028":
            assert character not in lines, repr(character)


def record(line: str) -> dict[str, object]:
    """A line of the log, which is one JSON object."""
    value = json.loads(line)
    assert isinstance(value, dict), line
    return value
