"""The end of a server process: drain, deadline, second signal, dead engine, orphans. A stand-in engine."""

import contextlib
import http.client
import json
import os
import signal
import time

from tests.app.echo_worker import CRASH, HOLD
from tests.app.server_process import GOLDEN, SERVE_ECHO, gone, serving, until

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
        start = time.monotonic()
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
        assert time.monotonic() - start < 10
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
        start = time.monotonic()
        server.signal(signal.SIGINT)
        error = json.loads(read_event(answer))
        assert error["error"]["code"] == "server_shutdown"
        assert read_event(answer) == "[DONE]"
        assert server.wait() == 0
        assert time.monotonic() - start < 0.5 + 10


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


def test_idle_connections_and_stuck_uploads_do_not_hold_the_server() -> None:
    with serving([*SERVE_ECHO, *MODEL], "--drain-timeout", "1") as server:
        idle = server.connect()
        idle.request("GET", "/health")
        assert idle.getresponse().read()
        stuck = server.connect()
        stuck.putrequest("POST", "/v1/completions")
        stuck.putheader("Content-Type", "application/json")
        stuck.putheader("Content-Length", "1000")
        stuck.endheaders(b'{"prompt": ')
        start = time.monotonic()
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
        assert time.monotonic() - start < 1 + 10
