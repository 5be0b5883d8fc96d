"""Rows 40 to 42 and 47 of docs/faults.md: faults inside the engine, put into a real server's own process."""

import contextlib
import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.app.fair_clock import FairClock
from tests.app.server_process import DEADLINE, until
from tests.e2e.api import random_prompt
from tests.faults import faulty_worker
from tests.faults.faulty_worker import AFTER, GAVE_UP, HANG, PROMPT, SAMPLER
from tests.faults.harness import (
    COMPLETIONS,
    SHOWN,
    Reply,
    Service,
    check_form,
    events,
    launch,
    read_reply,
    refused,
    request_bytes,
    unharmed,
)
from tests.tiers import tiered

SERVE_FAULTY = [sys.executable, str(Path(__file__).with_name("serve_faulty.py"))]
MATES = 3
LIMIT = 60
READY_GONE_SECONDS = 10.0
LONG = {"prompt": [1, 2, 3], "max_tokens": 1000, "ignore_eos": True}


@pytest.fixture(scope="module")
def faulty(steady_model: Path) -> Iterator[Service]:
    with launch(steady_model, "--batch-size", "4", program=SERVE_FAULTY) as service:
        yield service


def ask(number: int, **fields: object) -> dict[str, object]:
    base = {"prompt": random_prompt(PROMPT, seed=number), "max_tokens": LIMIT, "ignore_eos": True}
    return base | {"temperature": 0.9, "seed": number} | fields


class Stream(threading.Thread):
    """Reads a streamed completion to its end."""

    def __init__(self, service: Service, body: dict[str, object]) -> None:
        super().__init__(daemon=True)
        self.sock = service.open_stream(body)
        self.status = 0
        self.text = ""
        self.data: list[str] = []
        self.error: dict[str, object] = {}
        self.refusal: Reply | None = None
        self.start()

    def run(self) -> None:
        with contextlib.closing(self.sock):
            if self.sock.recv(12, socket.MSG_PEEK)[9:] != b"200":
                self.refusal = read_reply(self.sock)
                return
            for data in events(self.sock):
                self.data.append(data)
                if data == "[DONE]":
                    continue
                body = json.loads(data)
                if "error" in body:
                    self.error = body["error"]
                else:
                    self.text += body["choices"][0]["text"]

    def wait(self, seconds: float = DEADLINE) -> "Stream":
        self.join(seconds)
        if self.is_alive():  # its request must not meet the next case
            self.sock.shutdown(socket.SHUT_RDWR)
            raise AssertionError("the stream did not end")
        return self

    @property
    def is_whole(self) -> bool:
        """Whether it ended well, with every token."""
        return not self.error and self.refusal is None and self.data[-1:] == ["[DONE]"]


@pytest.fixture(scope="module")
def undisturbed(faulty: Service) -> list[str]:
    """What the batch-mates get alone."""
    return [faulty.post(COMPLETIONS, ask(number)).text for number in range(MATES)]


def beside(
    faulty: Service, undisturbed: list[str], victim: dict[str, object], stream: bool
) -> Stream | Reply:
    """A victim in the middle of a batch; its mates' texts must be what they are alone."""
    mates = [Stream(faulty, ask(number)) for number in range(MATES)]
    until(lambda: all(mate.text for mate in mates))
    met: Stream | Reply
    if stream:
        met = Stream(faulty, victim).wait()
    else:
        met = faulty.post(COMPLETIONS, victim)
    assert [mate.wait().text for mate in mates] == undisturbed
    assert all(mate.is_whole for mate in mates)
    return met


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "plain"])
def test_40_a_fault_in_the_sampler(faulty: Service, undisturbed: list[str], stream: bool) -> None:
    with unharmed(faulty, told=True):
        victim = ask(9, seed=SAMPLER, logprobs=1)
        met = beside(faulty, undisturbed, victim, stream)
        if isinstance(met, Reply):
            refused(met, 500, code="internal_error")
            return
        assert met.error["code"] == "internal_error" and met.data[-1] == "[DONE]"
        assert met.text and len(met.data) <= AFTER + 2


@pytest.mark.parametrize("stream", tiered([True, False], {0}), ids=["stream", "plain"])
@pytest.mark.parametrize("where", ["OOM_PREFILL", "OOM_PREFILL_STEP", "OOM_DECODE", "OOM_DECODE_STEP"])
def test_42_out_of_memory(faulty: Service, undisturbed: list[str], where: str, stream: bool) -> None:
    with unharmed(faulty, told=True):
        (engine,) = faulty.children()
        met = beside(faulty, undisturbed, ask(9, seed=getattr(faulty_worker, where)), stream)
        assert faulty.children() == [engine], "the engine was started again"
        if isinstance(met, Reply) or met.refusal is not None:
            reply = met if isinstance(met, Reply) else met.refusal
            assert reply is not None
            refused(reply, 503, code="out_of_memory")
            check_form(reply, where)
            assert int(reply.headers["retry-after"]) > 0
        else:
            assert "DECODE" in where, "a request that was told nothing gets a status"
            assert met.error["code"] == "out_of_memory" and met.data[-1] == "[DONE]"
            assert met.text


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "plain"])
def test_47_kernels_give_up(faulty: Service, undisturbed: list[str], stream: bool) -> None:
    with unharmed(faulty):
        victim = ask(9, seed=GAVE_UP)
        alone = faulty.post(COMPLETIONS, victim).text
        before = faulty.stats()["path_failures"]
        met = beside(faulty, undisturbed, victim, stream)
        assert met.text == alone
        assert faulty.stats()["path_failures"] == before + 1


# -- the engine as a whole: services of their own, for the engine's end is part of the case
# ---------------------------------------------------------------------------------------


def check_dead_and_back(service: Service, engine: int, clock: FairClock) -> None:
    """/ready says no within seconds, /health still answers, and another engine takes over."""
    clock.until(lambda: not service.is_ready(), READY_GONE_SECONDS)
    assert service.get("/health").status == 200
    refusal = service.complete()
    if refusal.status != 200:  # it may be back already
        refused(refusal, 503, code="engine_unavailable")
        assert refusal.headers["retry-after"]
    until(service.is_ready)
    assert service.children() != [engine]


def check_error_frames(streams: list[Stream], seconds: float = DEADLINE) -> None:
    for stream in streams:
        assert stream.wait(seconds).error.get("code") == "engine_unavailable", stream.data[-2:]
        assert stream.data[-1] == "[DONE]"


def test_41_the_engine_is_killed(steady_model: Path) -> None:
    with launch(steady_model) as service, unharmed(service, told=True):
        streams = [Stream(service, LONG | {"seed": number}) for number in range(4)]
        until(lambda: all(stream.text for stream in streams))
        (engine,) = service.children()
        clock = service.clock()
        os.kill(engine, signal.SIGKILL)
        check_error_frames(streams)
        assert clock.seconds() < 1.0
        check_dead_and_back(service, engine, clock)


@pytest.mark.slow
def test_41_the_engine_hangs(steady_model: Path) -> None:
    """Its process is stopped: the heart beats no more."""
    with launch(steady_model, "--engine-hang-timeout", "3") as service, unharmed(service, told=True):
        streams = [Stream(service, LONG | {"seed": number}) for number in range(2)]
        until(lambda: all(stream.text for stream in streams))
        (engine,) = service.children()
        clock = service.clock()
        os.kill(engine, signal.SIGSTOP)
        clock.until(lambda: not service.is_ready(), READY_GONE_SECONDS)
        check_error_frames(streams)
        check_dead_and_back(service, engine, service.clock())


@pytest.mark.slow
def test_41_a_step_does_not_end(steady_model: Path) -> None:
    """The heart beats on, but work is there and no step ends."""
    with (
        launch(steady_model, "--step-timeout", "2", program=SERVE_FAULTY) as service,
        unharmed(service, told=True),
    ):
        mate = Stream(service, LONG)
        until(lambda: bool(mate.text))
        (engine,) = service.children()
        stuck = Stream(service, LONG | {"seed": HANG})
        clock = service.clock()
        check_error_frames([mate, stuck])
        check_dead_and_back(service, engine, clock)


@pytest.mark.slow
def test_41_the_engine_hangs_for_a_minute(steady_model: Path) -> None:
    """With the default patience: /ready is honest within ten seconds, long before the engine is given up."""
    with launch(steady_model) as service, unharmed(service, told=True):
        stream = Stream(service, LONG)
        until(lambda: bool(stream.text))
        (engine,) = service.children()
        clock = service.clock()
        os.kill(engine, signal.SIGSTOP)
        clock.until(lambda: not service.is_ready(), READY_GONE_SECONDS)
        check_error_frames([stream])  # --engine-hang-timeout is 20 s
        assert clock.seconds() < 60
        check_dead_and_back(service, engine, service.clock())


@pytest.mark.slow
def test_41_an_engine_that_keeps_dying_ends_the_server(tiny_model: Path) -> None:
    """Three restarts in ten minutes, then the server ends with a fault, for its supervisor to see."""
    with launch(tiny_model) as service:
        with unharmed(service):
            assert service.complete().status == 200
        for _ in range(4):
            until(lambda: service.process.poll() is None and service.is_ready())
            os.kill(service.children()[0], signal.SIGKILL)
            with contextlib.suppress(OSError):
                until(lambda: not service.is_ready())
        assert service.process.wait(30) == 1, service.logged()[-SHOWN:]


@pytest.mark.slow
def test_41_whoever_was_told_nothing_is_no_worse(steady_model: Path) -> None:
    """A request without a byte of answer gets its answer from the next engine, or a status to try again."""
    with launch(steady_model, "--batch-size", "1") as service, unharmed(service, told=True):
        first = Stream(service, LONG)
        until(lambda: bool(first.text))
        sock = service.connect()
        with contextlib.closing(sock):
            sock.sendall(request_bytes(COMPLETIONS, ask(1)))
            service.until_stats(lambda stats: stats["waiting"] == 1)
            os.kill(service.children()[0], signal.SIGKILL)
            reply = read_reply(sock)
        check_form(reply, "a queued request")
        assert reply.status in (200, 503)
        if reply.status == 200:
            assert reply.usage["completion_tokens"] == LIMIT
        check_error_frames([first])
        until(service.is_ready)
