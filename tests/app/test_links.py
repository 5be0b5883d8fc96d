"""Several front ends on one engine: who gets what, and what one of them can do to the others."""

import asyncio
import gc
import os
import signal
import socket
from collections.abc import Callable, Iterable
from pathlib import Path

import uvloop

from app.processes.shared import SharedEngine
from app.processes.supervisor import Patience, ProcessEngine
from engine.links import Exchange, Link
from engine.messages import (
    Abort,
    EngineConfig,
    EngineState,
    EngineStats,
    Finish,
    Frame,
    ModelInfo,
    PromptLogprobs,
    Request,
    SamplingParams,
    Shutdown,
    Started,
    Submit,
    TokenLogprobs,
)
from tests.app.server_process import GOLDEN
from tests.app.test_supervisor import first_token, until, whole
from tests.app.test_worker import Pipe

CONFIG = EngineConfig(model=str(GOLDEN), device="cpu", dtype="float32", threads=1)


class Ledger:
    """As much of an engine as an exchange uses."""

    def __init__(self) -> None:
        self.on_frame: Callable[[Frame], None] | None = None
        self.info = ModelInfo(
            name="ledger",
            path="",
            generation="G1",
            vocab_size=512,
            max_model_len=64,
            terminal_ids=[],
            max_rows=8,
            block_size=16,
            num_blocks=64,
            device="cpu",
            dtype="float32",
            parameters=0,
        )
        self.queued: list[int] = []
        self.aborted: list[int] = []

    def enqueue(self, request: Request) -> None:
        self.queued.append(request.id)

    def abort(self, streams: Iterable[int]) -> None:
        self.aborted += streams

    def stats(self) -> EngineStats:
        return EngineStats()


def connected(exchange: Exchange) -> tuple[Link, Pipe]:
    link, pipe = Link(exchange), Pipe()
    link.connection_made(pipe)
    assert pipe.ready.pop()
    return link, pipe


def request(id: int, n: int = 1, tokens: int = 6) -> Request:
    params = SamplingParams(max_tokens=tokens, temperature=0.0, ignore_eos=True)
    return Request(id=id, prompt=[97, 98], params=params, n=n)


def open_exchange() -> tuple[Exchange, Ledger]:
    exchange, engine = Exchange(), Ledger()
    exchange.open(engine)
    return exchange, engine


async def test_each_link_gets_its_own_part() -> None:
    exchange, _ = open_exchange()
    (one, first), (two, second), (_, third) = (connected(exchange) for _ in range(3))
    one.take(Submit(request(1, n=2)))
    two.take(Submit(request(10)))
    stats = EngineStats(steps=7)
    marks = [TokenLogprobs(1, -0.1, [], []), TokenLogprobs(3, -0.3, [], [])]
    finished = [Finish(10, "length"), Finish(1, "stop")]
    exchange.push(Frame([1, 10, 99, 2, 10], [5, 6, 7, 8, 9], [3, 4], marks, finished, stats))
    moved = [TokenLogprobs(1, -0.3, [], [])]
    assert first.frames == [Frame([1, 2], [5, 8], [1], moved, [Finish(1, "stop")], stats)]
    moved = [TokenLogprobs(0, -0.1, [], [])]
    assert second.frames == [Frame([10, 10], [6, 9], [1], moved, [Finish(10, "length")], stats)]
    assert third.frames == []
    exchange.push(Frame([], [], [], [], [], EngineStats(steps=8)))
    assert [pipe.frames[-1].stats.steps for pipe in (first, second, third)] == [8, 8, 8]
    starts = [Started(2, 0.5, 0), Started(99, 0.5, 0)]
    exchange.push(Frame([], [], [], [], [], stats, started=starts))
    assert [pipe.frames[-1].started for pipe in (first, second, third)] == [starts[:1], [], []]
    exchange.push(Frame([10], [1], [], [], [], stats))  # late: the stream has ended
    assert len(second.frames) == 2


async def test_each_link_gets_the_scores_of_its_prompts() -> None:
    """Also in a frame without any token, and beside others' tokens."""
    exchange, _ = open_exchange()
    (one, first), (two, second) = connected(exchange), connected(exchange)
    one.take(Submit(request(1, n=2)))
    two.take(Submit(request(10)))
    stats = EngineStats(steps=7)
    mine, theirs = (PromptLogprobs(id, 1, [-0.5], [1], [[]], [[]]) for id in (1, 10))
    exchange.push(Frame([], [], [], [], [], stats, [mine]))
    assert first.frames == [Frame([], [], [], [], [], stats, [mine])] and second.frames == []
    exchange.push(Frame([2], [5], [], [], [], stats, [theirs]))
    assert first.frames[1:] == [Frame([2], [5], [], [], [], stats)]
    assert second.frames == [Frame([], [], [], [], [], stats, [theirs])]


async def test_a_link_can_neither_abort_nor_take_the_streams_of_others() -> None:
    exchange, engine = open_exchange()
    (one, _), (two, second) = connected(exchange), connected(exchange)
    one.take(Submit(request(1, n=2)))
    two.take(Abort([1, 2]))
    two.take(Submit(request(2)))
    two.take(Shutdown())
    assert (engine.queued, engine.aborted) == ([1], [])
    (refused,) = second.frames
    assert [(f.stream, f.reason) for f in refused.finished] == [(2, "error")]
    exchange.push(Frame([1, 2], [5, 6], [], [], [], EngineStats()))
    assert len(second.frames) == 1
    one.connection_lost(None)
    assert engine.aborted == [1, 2]


async def test_links_that_are_silent_hear_the_heart_beat() -> None:
    exchange, _ = open_exchange()
    (one, first), (_, second) = connected(exchange), connected(exchange)
    one.take(Submit(request(1)))
    exchange.push(Frame([1], [5], [], [], [], EngineStats()))
    exchange.beat()
    assert (len(first.frames), len(second.frames)) == (1, 1)
    exchange.beat()
    assert (len(first.frames), len(second.frames)) == (2, 2)


def test_the_listening_socket_lives_as_long_as_the_exchange(tmp_path: Path) -> None:
    async def connect() -> bytes:
        exchange, _ = open_exchange()
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(tmp_path / "engine"))
        listener.listen()
        await exchange.listen(listener)
        del listener
        gc.collect()
        await asyncio.sleep(0)
        reader, writer = await asyncio.open_unix_connection(str(tmp_path / "engine"))
        greeting = await reader.read(4)
        writer.close()
        return greeting

    assert len(uvloop.run(connect())) == 4


async def test_two_front_ends_on_the_real_worker(tmp_path: Path) -> None:
    """With the connection made before the model is loaded, and through a restart of the engine."""
    path = str(tmp_path / "engine")
    owner = ProcessEngine(CONFIG, patience=Patience(tick=0.05, backoff=(0.0,)))
    patience = Patience(tick=0.05)
    one, two = SharedEngine(path, 1, patience), SharedEngine(path, 2, patience)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        owner.share(listener)
        try:
            async with asyncio.timeout(60):
                await one.start()
                await owner.start()
                await two.start()
                await owner.ready()
                for _ in range(2):
                    for front in (owner, one, two):
                        await until(lambda front=front: front.state is EngineState.READY)
                    # A pair that is torn down half-way, and two whole answers beside it.
                    long = two.submit(request(two.next_id(1), tokens=400))[0]
                    await first_token(long)
                    streams = [front.submit(request(front.next_id(1)))[0] for front in (one, two)]
                    got = [(await whole(stream)).tokens for stream in streams]
                    assert got[0] == got[1] and len(got[0]) == 6
                    assert streams[1].id - streams[0].id > 2**39
                    two._link.close()  # type: ignore[union-attr]
                    assert (await whole(long)).finish is not None
                    await until(lambda: one.stats().running == 0)
                    await until(lambda: two.state is EngineState.READY)
                    pid = owner.pid
                    assert pid is not None
                    os.kill(pid, signal.SIGKILL)
                    await until(lambda: one.state is EngineState.DEAD)
        finally:
            await one.close()
            await two.close()
            await owner.close()
