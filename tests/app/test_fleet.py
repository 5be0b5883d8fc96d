"""Several front-end processes on one port and one engine: real processes, a stand-in engine."""

import contextlib
import http.client
import itertools
import json
import os
import signal
import time
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from app.processes.shared import SharedEngine
from app.telemetry.metrics import E2E_BUCKETS, Counts, Histogram, Metrics
from tests.app.echo_worker import CRASH, HOLD
from tests.app.server_process import GOLDEN, SERVE_ECHO, Server, finish, gone, serving, until
from tests.app.test_drain import read_event

MODEL = ["--", "--model", str(GOLDEN / "tokenizer"), "--api-workers", "2"]


def fronts(server: Server) -> list[int]:
    return [pid for pid in server.children() if "app.processes.front" in command(pid)]


def engine(server: Server) -> int:
    (pid,) = [pid for pid in server.children() if "echo_worker" in command(pid)]
    return pid


def command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except (FileNotFoundError, ProcessLookupError):
        return ""


def page(server: Server, path: str) -> str:
    connection = server.connect()
    connection.request("GET", path)
    text = connection.getresponse().read().decode()
    connection.close()
    return text


def metric(server: Server, name: str, **labels: str) -> float:
    for family in text_string_to_metric_families(page(server, "/metrics")):
        for sample in family.samples:
            if sample.name == name and labels.items() <= sample.labels.items():
                return sample.value
    raise AssertionError(f"there is no {name}")


def running(server: Server) -> int | None:
    """Sequences in the engine; None where the connection went to a process that is just dying."""
    try:
        return int(json.loads(page(server, "/stats"))["running"])
    except (OSError, http.client.HTTPException):
        return None


def hold(server: Server, streams: int) -> list[http.client.HTTPResponse]:
    """Streams that have said one token and go on."""
    answers = [server.ask([HOLD]) for _ in range(streams)]
    for answer in answers:
        assert '"text":"a"' in read_event(answer)
    return answers


def last_words(answer: http.client.HTTPResponse) -> str:
    """The next event; empty if the connection ends instead."""
    try:
        return read_event(answer)
    except (http.client.HTTPException, ConnectionResetError):
        return ""


def test_requests_are_spread_and_every_process_answers_for_all() -> None:
    with serving([*SERVE_ECHO, *MODEL]) as server:
        assert len(fronts(server)) == 2
        answers = hold(server, 4)
        for _ in range(4):
            assert json.loads(server.ask([5, 6], stream=False).read())["choices"][0]["text"] == "\x05\x06"
        for _ in range(4):  # each in a connection of its own, so both processes are asked
            assert metric(server, "vllm:request_success_total", finished_reason="stop") == 4
            assert metric(server, "vllm:time_to_first_token_seconds_count") == 8
            assert metric(server, "fastpath_open_answers") == 4
            assert metric(server, "vllm:num_requests_running") == 4
            stats = json.loads(page(server, "/stats"))
            assert (stats["open_choices"], stats["running"]) == (4, 4)
        for answer in answers:
            answer.close()
        until(lambda: metric(server, "fastpath_disconnects_total", phase="decode") == 4)
        until(lambda: metric(server, "vllm:num_requests_running") == 0)


def test_a_killed_front_end_takes_only_its_own_streams_along() -> None:
    with serving([*SERVE_ECHO, *MODEL], "--drain-timeout", "0.5") as server:
        answers = hold(server, 4)
        server.ask([5], stream=False).read()
        assert metric(server, "vllm:time_to_first_token_seconds_count") == 5
        killed, other = fronts(server)
        os.kill(killed, signal.SIGKILL)
        until(lambda: running(server) == 2)  # the engine ended the others
        until(lambda: len(fronts(server)) == 2 and killed not in fronts(server))
        assert other in fronts(server)
        for _ in range(4):
            assert server.ask([5], stream=False).status == 200
            # What the dead one had counted is not lost.
            assert metric(server, "vllm:time_to_first_token_seconds_count") >= 6
        server.signal(signal.SIGTERM)
        cut = 0
        for answer in answers:
            event = last_words(answer)
            if not event:
                cut += 1
                continue
            assert json.loads(event)["error"]["code"] == "server_shutdown"
            assert read_event(answer) == "[DONE]"
        assert cut == 2
        assert server.wait() == 0


def test_drain_under_load() -> None:
    with serving([*SERVE_ECHO, *MODEL], "--drain-timeout", "60") as server:
        first, second, *others = hold(server, 4)
        for answer in others:
            answer.close()
        children = server.children()
        server.signal(signal.SIGTERM)
        until(lambda: server.get("/ready") == 503)
        assert server.ask([1]).status == 503
        first.close()
        assert server.process.poll() is None
        second.close()
        assert server.wait() == 0
        assert all(gone(pid) for pid in children)


def test_a_second_signal_ends_at_once() -> None:
    with serving([*SERVE_ECHO, *MODEL], "--drain-timeout", "600") as server:
        (answer,) = hold(server, 1)
        children = server.children()
        server.signal(signal.SIGTERM)
        until(lambda: server.get("/ready") == 503)
        time.sleep(0.05)  # signals closer together than this are taken for one
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
        assert last_words(answer) == ""
        until(lambda: all(gone(pid) for pid in children))


def test_a_dead_engine_fails_the_streams_of_all_and_returns() -> None:
    with serving([*SERVE_ECHO, *MODEL]) as server:
        answers = hold(server, 4)
        before = engine(server)
        os.kill(before, signal.SIGKILL)
        for answer in answers:
            assert "error" in json.loads(read_event(answer))
            assert read_event(answer) == "[DONE]"
        for _ in range(4):
            until(lambda: server.get("/ready") == 200)
            until(lambda: server.ask([5], stream=False).status == 200)
        assert engine(server) != before


def test_an_engine_that_keeps_dying_ends_the_server_with_1() -> None:
    with serving([*SERVE_ECHO, *MODEL]) as server:
        numbers = itertools.count()

        def ended() -> bool:
            """Asks again and again: the other process may not know yet that there is no engine. Each time
            another request, because the same one would be refused as poison.
            """
            with contextlib.suppress(OSError, http.client.HTTPException):
                server.ask([CRASH, next(numbers) % 500]).read()
            return server.process.poll() is not None

        until(ended)
        assert server.wait() == 1


def test_a_killed_server_leaves_no_orphan_and_no_file(tmp_path: Path) -> None:
    with serving([*SERVE_ECHO, *MODEL], TMPDIR=str(tmp_path)) as server:
        assert list(tmp_path.iterdir())
        children = server.children()
        assert len(children) == 3
        server.signal(signal.SIGKILL)
        server.wait()
        until(lambda: all(gone(pid) for pid in children))
        assert not list(tmp_path.iterdir())


def test_a_model_that_cannot_be_loaded() -> None:
    done = finish([*SERVE_ECHO, "--fail", "no such model", *MODEL, "--port", "0"])
    assert done.returncode == 3
    assert "no such model" in done.stderr and "Traceback" not in done.stderr


def test_a_tokenizer_that_cannot_be_loaded(tmp_path: Path) -> None:
    flags = ["--", "--model", str(tmp_path), "--api-workers", "2", "--port", "0"]
    done = finish([*SERVE_ECHO, *flags])
    assert done.returncode == 3
    assert "cannot be served" in done.stderr and "Traceback" not in done.stderr


async def test_no_two_processes_have_stream_ids_in_common() -> None:
    one, two = SharedEngine("/none", 1), SharedEngine("/none", 2)
    assert two.next_id(8) - one.next_id(10**9) > 10**11
    assert two.next_id(1) < 1 << 63  # the messages' integers


@pytest.mark.parametrize("dead", [False, True])
def test_counts_add_up(dead: bool) -> None:
    one = Counts(finishes={"stop": 2}, events=3, open_answers=1, tokens_per_second=5.0, recent_ttft=[0.1])
    two = Counts(finishes={"stop": 1, "abort": 1}, events=4, open_answers=2, recent_ttft=[0.3])
    latency = Histogram(E2E_BUCKETS)
    latency.observe(1.5, 3)
    one.request_latency = latency.dump()
    total = (one.past() if dead else one).plus(two)
    assert (total.finishes, total.events) == ({"stop": 3, "abort": 1}, 7)
    assert (total.open_answers, total.tokens_per_second) == ((2, 0.0) if dead else (3, 5.0))
    both = Histogram(E2E_BUCKETS)
    both.load(total.plus(one).request_latency)
    assert (both.count, both.total) == (6, 9.0)


def test_gaps_are_counted_once_per_step() -> None:
    metrics = Metrics()
    for _ in range(3):
        metrics.flowed(10.0, 10.5)
    metrics.flowed(10.25, 10.5)
    metrics.flowed(10.5, 10.75)
    latency = metrics.inter_token_latency
    assert (latency.count, latency.total) == (5, 3 * 0.5 + 0.25 + 0.25)


def test_an_answer_is_cancelled_wherever_it_is_open() -> None:
    """Connections go to the front ends in turn: half of the cancellations arrive where the answer is not."""
    with serving([*SERVE_ECHO, *MODEL]) as server:
        for answer in [server.ask([HOLD]) for _ in range(4)]:
            event = read_event(answer)
            id = json.loads(event.removeprefix("data: "))["id"]
            for expected in (200, 404):
                connection = server.connect()
                connection.request("POST", f"/v1/requests/{id}/cancel")
                assert connection.getresponse().status == expected
                connection.close()
            rest = answer.read().decode()
            assert "request_cancelled" in rest and rest.endswith("data: [DONE]\n\n")
        until(lambda: running(server) == 0)
