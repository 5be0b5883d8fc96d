"""The end of a server process: drain, deadline, second signal, dead engine, orphans. A stand-in engine."""

import contextlib
import http.client
import json
import os
import signal
import time

import pytest

from tests.app.echo_worker import CRASH, HOLD, PACED
from tests.app.server_process import GOLDEN, SERVE_ECHO, gone, serving, until
from tests.tiers import tiered

MODEL = ["--", "--model", str(GOLDEN / "tokenizer")]


def read_event(answer: http.client.HTTPResponse) -> str:
    """The next event of a stream, without comments; empty at its end."""
    while line := answer.readline():
        if line.startswith(b"data: "):
            return line[6:].decode().strip()
    return ""


def test_it_answers_while_the_model_loads() -> None:
    with serving([*SERVE_ECHO, "--never-ready", *MODEL], ready=False) as server:
        assert server.get("/health") == 200
        assert server.get("/ready") == 503
        assert server.ask([1]).status == 503
        server.signal(signal.SIGTERM)
        assert server.wait() == 0


def test_sigterm_with_nothing_open_ends_at_once_and_leaves_no_process() -> None:
    with serving([*SERVE_ECHO, *MODEL]) as server:
        assert server.get("/ready") == 200
        (child,) = server.children()
        clock = server.clock()
        server.signal(signal.SIGTERM)
        assert server.end(10, clock) == 0
        assert gone(child)


def test_sigterm_lets_open_streams_end_and_refuses_new_ones() -> None:
    with serving([*SERVE_ECHO, *MODEL], "--drain-timeout", "60") as server:
        answer = server.ask([HOLD])
        assert answer.status == 200
        assert "text" in read_event(answer)
        server.signal(signal.SIGTERM)
        until(lambda: server.get("/ready") == 503)
        refused = server.ask([1])
        assert refused.status == 503
        assert refused.getheader("connection", "").lower() == "close"
        answer.close()  # the reader leaves: nothing is open any more
        assert server.wait() == 0


def test_the_deadline_ends_streams_with_server_shutdown() -> None:
    with serving([*SERVE_ECHO, *MODEL], "--drain-timeout", "0.5") as server:
        answer = server.ask([HOLD])
        read_event(answer)
        clock = server.clock()
        server.signal(signal.SIGINT)
        error = json.loads(read_event(answer))
        assert error["error"]["code"] == "server_shutdown"
        assert read_event(answer) == "[DONE]"
        assert server.end(0.5 + 10, clock) == 0


def test_a_second_signal_ends_at_once() -> None:
    with serving([*SERVE_ECHO, *MODEL], "--drain-timeout", "600") as server:
        answer = server.ask([HOLD])
        read_event(answer)
        (child,) = server.children()
        server.signal(signal.SIGTERM)
        until(lambda: server.get("/ready") == 503)
        time.sleep(0.05)  # signals closer together than this are taken for one
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
        until(lambda: gone(child))


def test_a_dead_engine_fails_streams_shows_in_ready_and_returns() -> None:
    with serving([*SERVE_ECHO, *MODEL]) as server:
        answer = server.ask([HOLD])
        read_event(answer)
        (child,) = server.children()
        os.kill(child, signal.SIGKILL)
        error = json.loads(read_event(answer))
        assert "error" in error
        assert read_event(answer) == "[DONE]"
        until(lambda: server.get("/ready") == 200)
        assert server.ask([5]).status == 200
        assert server.children() != [child]


def test_an_engine_that_keeps_dying_ends_the_server_with_1() -> None:
    with serving([*SERVE_ECHO, *MODEL]) as server:
        for k in range(4):  # each another request: the same one would be refused as poison
            until(lambda: server.get("/ready") == 200)
            # It may have been told nothing, and begin again: then it takes a second engine along.
            with contextlib.suppress(OSError, http.client.HTTPException):
                server.ask([CRASH, k]).read()
            if server.process.poll() is not None:
                break
        assert server.wait() == 1


def test_a_killed_server_leaves_no_orphan() -> None:
    with serving([*SERVE_ECHO, *MODEL]) as server:
        (child,) = server.children()
        server.signal(signal.SIGKILL)
        server.wait()
        until(lambda: gone(child))


WORKERS = pytest.mark.parametrize("workers", tiered(["1", "2"], {1}))


@WORKERS
def test_idle_connections_and_stuck_uploads_do_not_hold_the_server(workers: str) -> None:
    """Also where an answer is open until the deadline."""
    flags = ["--drain-timeout", "1", "--api-workers", workers]
    with serving([*SERVE_ECHO, *MODEL], *flags) as server:
        idle = server.connect()
        idle.request("GET", "/health")
        assert idle.getresponse().read()
        stuck = [server.connect() for _ in range(4)]
        for connection in stuck:
            connection.putrequest("POST", "/v1/completions")
            connection.putheader("Content-Type", "application/json")
            connection.putheader("Content-Length", "1000")
            connection.endheaders(b'{"prompt": ')
        answer = server.ask([HOLD])
        assert read_event(answer)
        clock = server.clock()
        server.signal(signal.SIGTERM)
        assert server.end(1 + 2, clock) == 0


@WORKERS
def test_before_the_drain_balancers_are_told(workers: str) -> None:
    for delay in (1.5, 6.0, 24.0):  # a busy machine may be too late for a short one
        flags = ["--drain-delay", str(delay), "--drain-timeout", "60", "--api-workers", workers]
        with serving([*SERVE_ECHO, *MODEL], *flags) as server:
            start = time.monotonic()
            server.signal(signal.SIGTERM)
            until(lambda server=server: server.get("/ready") == 503)
            late = server.ask([PACED, *range(50)])
            if time.monotonic() - start > delay:
                continue
            assert late.status == 200, "it is still let in"
            assert late.getheader("connection") is None
            text = late.read().decode()
            assert text.endswith("data: [DONE]\n\n") and '"finish_reason":"stop"' in text
            assert server.wait() == 0
            assert time.monotonic() - start >= delay
            return
    raise AssertionError("the machine is too busy for this test")


@WORKERS
def test_no_stream_is_cut_short(workers: str) -> None:
    """Eight run and more wait; each gets all of its tokens, and who comes late is sent away."""
    length = 400
    flags = ["--drain-timeout", "60", "--api-workers", workers]
    with serving([*SERVE_ECHO, *MODEL], *flags) as server:
        answers = [server.ask([PACED, *[65 + k] * length], max_tokens=length + 1) for k in range(20)]
        assert all(read_event(answer) for answer in answers)
        server.signal(signal.SIGTERM)
        until(lambda: server.get("/ready") == 503)
        refused = server.ask([1])
        assert refused.status == 503 and refused.getheader("connection", "").lower() == "close"
        assert json.loads(refused.read())["error"]["code"] == "draining"
        with contextlib.closing(server.connect()) as connection:
            connection.request("GET", "/health")
            health = connection.getresponse()
            assert health.status == 200 and health.getheader("connection", "").lower() == "close"
        for k, answer in enumerate(answers):
            text = answer.read().decode()
            assert text.count(f'"{chr(65 + k)}"') == length and text.endswith("data: [DONE]\n\n")
        assert server.wait() == 0


@WORKERS
def test_a_killed_servers_port_can_be_taken_at_once(workers: str) -> None:
    with serving([*SERVE_ECHO, *MODEL], "--api-workers", workers) as server:
        answer = server.ask([HOLD])
        assert read_event(answer)
        server.signal(signal.SIGKILL)
        server.wait()
        with serving([*SERVE_ECHO, *MODEL], "--api-workers", workers, port=server.port) as heir:
            assert heir.ask([5], stream=False).status == 200


@WORKERS
def test_two_interrupts_end_it_at_once(workers: str) -> None:
    with serving([*SERVE_ECHO, *MODEL], "--drain-timeout", "600", "--api-workers", workers) as server:
        answer = server.ask([HOLD])
        assert read_event(answer)
        server.signal(signal.SIGINT)
        until(lambda: server.get("/ready") == 503)
        time.sleep(0.05)  # signals closer together than this are taken for one
        clock = server.clock()
        server.signal(signal.SIGINT)
        assert server.end(3, clock) == 0
