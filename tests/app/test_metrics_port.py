"""/metrics on a port of its own: real processes, one front end and two, over a stand-in engine."""

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.app.echo_worker import CRASH
from tests.app.server_process import (
    GOLDEN,
    ROOT,
    SERVE_ECHO,
    Server,
    environment,
    serving,
    until,
)
from tests.tiers import tiered

MODEL = ["--", "--model", str(GOLDEN / "tokenizer")]


def get(port: int, path: str) -> tuple[int, str]:
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=20)) as connection:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()


def samples(port: int) -> dict[str, float]:
    """Sums over labels; a metric without labels of its own is its value."""
    status, text = get(port, "/metrics")
    assert status == 200
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found[sample.name] = found.get(sample.name, 0.0) + sample.value
    return found


def metrics_port(server: Server) -> int:
    assert server.process.stderr is not None
    while line := json.loads(server.process.stderr.readline()):
        if line["message"].startswith("metrics on port"):
            return int(line["message"].split()[3].rstrip(","))
    raise AssertionError("no line names the port")


@pytest.mark.parametrize("workers", tiered([1, 2], {1}))
def test_it_answers_for_all_front_ends(workers: int) -> None:
    flags = ["--api-workers", str(workers), "--metrics-port", "0"]
    with serving([*SERVE_ECHO, *MODEL], *flags) as server:
        port = metrics_port(server)
        before = samples(port)
        for _ in range(4):
            answer = server.ask([65, 66, 67])
            assert b"[DONE]" in answer.read()
        until(lambda: samples(port)["vllm:request_success_total"] == 4)
        assert get(port, "/v1/models")[0] == 404, "there is nothing else"
        until(lambda: samples(server.port)["http_request_duration_seconds_count"] >= 4)
        after = samples(port)
        assert after["vllm:request_generation_tokens_sum"] == 12
        assert after["process_resident_memory_bytes"] > workers * 20e6
        assert after["fastpath_engine_ready"] == 1 and after["fastpath_engine_heartbeat_age_seconds"] < 5
        assert (before["fastpath_engine_restarts_total"], after["fastpath_draining"]) == (0, 0)
        server.ask([CRASH]).read()
        until(lambda: samples(port)["fastpath_engine_restarts_total"] == 1)
        until(lambda: samples(server.port)["fastpath_engine_restarts_total"] == 1)
        assert samples(port)["vllm:request_success_total"] == 5, "the server's own counters go on"
        server.signal(signal.SIGTERM)
        assert server.wait() == 0


def test_a_busy_port_is_told_before_anything_starts() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        flags = ["--port", "0", "--metrics-port", port]
        done = subprocess.run(
            [sys.executable, "-m", "app", *flags],
            cwd=ROOT,
            env=environment() | {"PATH": os.environ["PATH"]},
            capture_output=True,
            text=True,
            timeout=30,
        )
    assert done.returncode == 98 and port in done.stderr and "--metrics-port" in done.stderr
