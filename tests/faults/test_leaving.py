"""Rows 36 to 38 of docs/faults.md: clients that leave, leave in masses, or stay and hardly read."""

import contextlib
import itertools
import json
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.app.server_process import DEADLINE
from tests.e2e.api import random_prompt, stopped
from tests.engine.checkpoints import write_checkpoint
from tests.faults.harness import (
    COMPLETIONS,
    Service,
    events,
    head,
    launch,
    request_bytes,
    rss,
    unharmed,
)

ROWS = 2
# A step may be under way when the client leaves, and the next one may be queued behind it.
STEPS_LATE = 3
LONG = {"prompt": random_prompt(8, seed=4), "max_tokens": 900, "ignore_eos": True, "temperature": 0}
STORM = 1000
LONG_ANSWER = 4000  # tokens


@pytest.fixture(scope="module")
def service(steady_model: Path) -> Iterator[Service]:
    flags = ("--batch-size", str(ROWS), "--prefill-chunk", "2", "--no-enable-prefix-caching")
    with launch(steady_model, *flags) as service:
        yield service


def leave(sock: socket.socket, reset: bool) -> None:
    """Closes a connection: in order, or with a RST."""
    if reset:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def aborts(service: Service) -> int:
    return service.stats()["disconnects"]


@pytest.mark.parametrize("reset", [False, True], ids=["close", "reset"])
def test_36_leaving_before_the_queue(service: Service, reset: bool) -> None:
    data = request_bytes(COMPLETIONS, LONG | {"stream": True})
    before = service.stats()
    at_head = data.index(b"\r\n\r\n")
    for length in (0, 1, 20, at_head + 1, at_head + 4, at_head + 9, len(data) - 1):
        sock = service.connect()
        sock.sendall(data[:length])
        leave(sock, reset)
    service.get("/health")
    assert service.stats()["prompt_tokens"] == before["prompt_tokens"]


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "plain"])
@pytest.mark.parametrize("reset", [False, True], ids=["close", "reset"])
@pytest.mark.parametrize("phase", ["queue", "prefill", "decode"])
def test_36_leaving_frees_all_within_a_step(service: Service, phase: str, reset: bool, stream: bool) -> None:
    (engine,) = service.children()
    start = service.stats()
    body = LONG | {"stream": stream}
    blockers = []
    if phase == "queue":
        blockers = [service.open_stream(LONG) for _ in range(ROWS)]
        service.until_stats(lambda stats: stats["running"] == ROWS)
    elif phase == "prefill":
        body |= {"prompt": random_prompt(1000, seed=1), "max_tokens": 8}
    sock = service.connect()
    sock.sendall(request_bytes(COMPLETIONS, body))
    if phase == "queue":
        service.until_stats(lambda stats: stats["waiting"] == 1)
    elif phase == "prefill":
        service.until_stats(lambda stats: stats["running"] == 1 and stats["steps"] > start["steps"] + 2)
    else:
        service.until_stats(lambda stats: stats["generated_tokens"] > start["generated_tokens"] + 2)
    with stopped(engine):
        time.sleep(0.01)  # what the engine sent before it was stopped arrives
        held = service.stats()
        made = held["generated_tokens"] > start["generated_tokens"]
        assert phase == "queue" or (held["running"] == 1 and made == (phase == "decode"))
        leave(sock, reset)
        service.until_stats(lambda stats: stats["open_answers"] == held["open_answers"] - 1, 2)
    if phase == "queue":
        service.until_stats(lambda stats: stats["waiting"] == 0, 2)
        assert service.stats()["prompt_tokens"] == held["prompt_tokens"], "it was admitted after it had left"
        for blocker in blockers:
            leave(blocker, reset)
    else:
        service.until_stats(lambda stats: stats["running"] == 0, 2)
        freed = service.stats()
        assert freed["steps"] - held["steps"] <= STEPS_LATE
        assert freed["blocks_used"] == 0
    service.until_stats(lambda _: aborts(service) == start["disconnects"] + 1 + len(blockers), 2)


@pytest.mark.parametrize("reset", [False, True], ids=["close", "reset"])
def test_36_leaving_just_before_the_end(service: Service, reset: bool) -> None:
    """Whoever leaves between the last token and `[DONE]` leaves nothing behind either."""
    for back in range(6):
        sock = service.open_stream(LONG | {"max_tokens": 12})
        seen = 0
        for data in events(sock):
            seen += data != "[DONE]"
            if seen >= 12 - back:
                break
        leave(sock, reset)


def test_37_a_storm_of_clients_that_leave(service: Service) -> None:
    """A thousand connect, send and disconnect; memory is flat, and who stays is served at its pace."""
    (engine,) = service.children()
    alone = texts(service)
    data = request_bytes(COMPLETIONS, LONG | {"stream": True})

    def storm(count: int) -> None:
        for number in range(count):
            sock = service.connect()
            sock.sendall(data)
            leave(sock, reset=number % 2 == 0)

    storm(STORM // 2)  # what is allocated once is there
    service.until_stats(lambda stats: stats["open_answers"] == 0)
    before = service.rss(), rss(engine)
    over = threading.Event()
    gaps: list[float] = []
    wrong: list[str] = []

    def stay() -> None:
        while not over.is_set():
            found = texts(service, gaps)
            if found != alone:
                wrong.append(found)

    thread = threading.Thread(target=stay)
    thread.start()
    start = time.monotonic()
    storm(STORM)
    seconds = time.monotonic() - start
    over.set()
    thread.join(60)
    service.until_stats(lambda stats: stats["open_answers"] == 0)
    after = service.rss(), rss(engine)
    print(f"{STORM} storms in {seconds:.1f} s, longest gap {max(gaps):.3f} s, RSS {before} -> {after}")
    assert not wrong
    assert max(gaps) < 1.0
    for was, now in zip(before, after, strict=True):
        assert now < was * 1.05


def texts(service: Service, gaps: list[float] | None = None) -> str:
    """One streamed answer's text; the times between its events are appended to `gaps`."""
    with service.open_stream(LONG | {"max_tokens": 60}) as sock:
        text, clock = "", service.clock()
        for data in events(sock):
            if gaps is not None:
                gaps.append(clock.seconds())
                clock = service.clock()
            if data != "[DONE]":
                text += json.loads(data)["choices"][0]["text"]
        assert data == "[DONE]"
    return text


@pytest.fixture(scope="module")
def long_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("long"), "G5", sequence_len=8192)


@pytest.mark.slow
def test_38_a_reader_of_one_byte_a_second(long_model: Path) -> None:
    with launch(long_model, "--send-timeout", "3", "--max-model-len", "8192") as service, unharmed(service):
        alone = texts(service)
        (engine,) = service.children()
        before = service.rss(), rss(engine)
        slow_readers = service.stats()["slow_reader_aborts"]
        # Logprobs make four thousand events larger than what the kernel holds for both ends.
        body = LONG | {"max_tokens": LONG_ANSWER, "logprobs": 20, "stream": True}
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        sock.connect(("127.0.0.1", service.port))
        with contextlib.closing(sock):
            sock.sendall(request_bytes(COMPLETIONS, body))
            start = time.monotonic()
            others = itertools.count()
            highest = before[0]
            while service.stats()["slow_reader_aborts"] == slow_readers:
                assert time.monotonic() - start < DEADLINE, "the reader was not given up"
                sock.settimeout(0.2)
                assert len(sock.recv(1)) == 1
                assert texts(service) == alone, next(others)
                highest = max(highest, service.rss())
                time.sleep(0.5)
            gone = time.monotonic() - start
            service.until_stats(lambda stats: stats["running"] == 0, 2)
        print(f"given up after {gone:.1f} s, RSS {before[0]} -> at most {highest}")
        assert highest - before[0] < 32_000_000
        assert rss(engine) - before[1] < 64_000_000


@pytest.mark.slow
def test_38_a_reader_that_has_stopped(long_model: Path) -> None:
    """The same within a second: the send timeout is short, and nothing is read at all."""
    with launch(long_model, "--send-timeout", "1", "--max-model-len", "8192") as service, unharmed(service):
        alone = texts(service)
        slow_readers = service.stats()["slow_reader_aborts"]
        body = LONG | {"max_tokens": LONG_ANSWER, "logprobs": 20, "n": 4, "stream": True}
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        sock.connect(("127.0.0.1", service.port))
        with contextlib.closing(sock):
            sock.sendall(request_bytes(COMPLETIONS, body))
            start = time.monotonic()
            while service.stats()["slow_reader_aborts"] == slow_readers:
                assert texts(service) == alone
                assert time.monotonic() - start < DEADLINE, "the reader was not given up"
            service.until_stats(lambda stats: stats["running"] == 0, 2)


def test_38_a_stuck_upload_holds_nothing(service: Service) -> None:
    """The other direction: a body that does not come on takes no row."""
    socks = [service.connect() for _ in range(20)]
    for sock in socks:
        sock.sendall(head(COMPLETIONS, 1000) + b'{"prompt":')
    assert service.complete().status == 200
    for sock in socks:
        sock.close()
