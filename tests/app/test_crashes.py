"""The real server over an engine process that dies or falls silent: who is replayed, who is refused."""

import concurrent.futures
import json
import os
import signal
import sys
from pathlib import Path

import pytest

from app.processes.supervisor import Patience, ProcessEngine
from engine.messages import EngineConfig, EngineState
from tests.app.echo_worker import FLOOD, HOLD, SILENT, STUCK
from tests.app.server_process import GOLDEN, SERVE_ECHO, Server, gone, serving, until
from tests.app.test_drain import read_event
from tests.app.test_supervisor import ask as submit
from tests.app.test_supervisor import until as soon
from tests.tiers import tiered

MODEL = ["--", "--model", str(GOLDEN / "tokenizer")]
ECHO = str(Path(__file__).with_name("echo_worker.py"))


def engine_of(server: Server) -> int:
    (pid,) = [pid for pid in server.children() if "echo_worker" in Path(f"/proc/{pid}/cmdline").read_text()]
    return pid


def stats(server: Server) -> dict[str, int]:
    connection = server.connect()
    connection.request("GET", "/stats")
    found: dict[str, int] = json.loads(connection.getresponse().read())
    connection.close()
    return found


def kill(server: Server, engine: int) -> None:
    os.kill(engine, signal.SIGKILL)
    until(lambda: gone(engine))


@pytest.mark.parametrize("workers", [1, 2])
def test_requests_that_were_told_nothing_are_answered_by_the_next_engine(workers: int) -> None:
    prompts = [[5, 6, k] for k in range(10, 16)]
    flags = ["--api-workers", str(workers)]
    with (
        serving([*SERVE_ECHO, *MODEL], *flags) as server,
        concurrent.futures.ThreadPoolExecutor(len(prompts)) as pool,
    ):
        engine = engine_of(server)
        os.kill(engine, signal.SIGSTOP)  # what is sent now reaches nobody
        answers = [pool.submit(server.ask, prompt, k % 2 == 0) for k, prompt in enumerate(prompts)]
        until(lambda: stats(server)["open_answers"] == len(prompts))
        kill(server, engine)
        for k, answer in enumerate(answers):
            reply = answer.result()
            assert reply.status == 200
            text = reply.read().decode()
            if k % 2 == 0:
                events = [line[6:] for line in text.split("\n") if line.startswith("data: ")]
                assert events.pop() == "[DONE]"
                got = "".join(json.loads(event)["choices"][0]["text"] for event in events)
            else:
                got = json.loads(text)["choices"][0]["text"]
            assert got.encode() == bytes(prompts[k])
        until(lambda: stats(server)["open_answers"] == 0)
        found = stats(server)
        assert (found["running"], found["replays"]) == (0, len(prompts))


@pytest.mark.parametrize("workers", [1, 2])
def test_a_request_that_two_engines_died_of_is_refused_by_all(workers: int) -> None:
    flags = ["--api-workers", str(workers)]
    with (
        serving([*SERVE_ECHO, *MODEL], *flags) as server,
        concurrent.futures.ThreadPoolExecutor(1) as pool,
    ):
        answer = pool.submit(server.ask, [SILENT, 7], False)
        for _ in range(2):
            until(lambda: server.get("/ready") == 200 and stats(server)["running"] == 1)
            kill(server, engine_of(server))
        reply = answer.result()
        assert reply.status == 500 and reply.getheader("x-should-retry") == "false"
        assert json.loads(reply.read())["error"]["code"] == "poison_request"
        until(lambda: server.get("/ready") == 200)
        for stream in (True, False, True, False):  # connections go to the processes in turn
            again = server.ask([SILENT, 7], stream)
            assert (again.status, json.loads(again.read())["error"]["code"]) == (500, "poison_request")
        assert server.ask([SILENT - 1 - 50, 7], False).status == 200
        assert stats(server)["running"] == 0


async def test_silence_shows_within_two_seconds_though_the_socket_is_full() -> None:
    engine = ProcessEngine(EngineConfig(), command=[sys.executable, ECHO], patience=Patience())
    await engine.start()
    try:
        await engine.ready()
        submit(engine, FLOOD)
        stat = Path(f"/proc/{engine.pid}/stat")
        await soon(lambda: stat.read_text().rsplit(")", 1)[1].split()[0] == "T")
        assert await soon(lambda: engine.state is EngineState.DEAD) < 2.0 + 1.0  # one for a busy machine
        assert not gone(engine.pid or 0), "it is not killed for that yet"
    finally:
        await engine.close()


@pytest.mark.parametrize(
    ("prompt", "flags"),
    tiered([(STUCK, ["--step-timeout", "1"]), (FLOOD, ["--engine-hang-timeout", "2"])], {0}),
    ids=["a step without end", "silence"],
)
def test_the_watchdogs_times_can_be_set(prompt: int, flags: list[str]) -> None:
    with serving([*SERVE_ECHO, *MODEL], *flags) as server:
        answer = server.ask([prompt])
        read_event(answer)
        engine = engine_of(server)
        assert json.loads(read_event(answer))["error"]["code"] == "engine_unavailable"
        assert read_event(answer) == "[DONE]"
        until(lambda: gone(engine))
        until(lambda: server.get("/ready") == 200)
        assert server.ask([5], False).status == 200


def test_a_stream_that_was_told_something_is_not_replayed() -> None:
    with serving([*SERVE_ECHO, *MODEL]) as server:
        answer = server.ask([HOLD])
        assert read_event(answer)
        clock = server.clock()
        kill(server, engine_of(server))
        assert json.loads(read_event(answer))["error"]["code"] == "engine_unavailable"
        assert clock.seconds() < 1 + 1
        assert read_event(answer) == "[DONE]"
        until(lambda: server.get("/ready") == 200)
        assert stats(server)["running"] == 0 and stats(server)["replays"] == 0
