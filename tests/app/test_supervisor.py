"""The supervised child process: messages, death, silence, restarts, the end; with a stand-in engine."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from app.processes.supervisor import EngineFailed, Patience, ProcessEngine
from engine.messages import (
    Delta,
    EngineConfig,
    EngineState,
    EngineUnavailable,
    Request,
    SamplingParams,
    TokenStream,
)
from tests.app.echo_worker import CRASH, FREEZE, HOLD, STUCK

ECHO = str(Path(__file__).with_name("echo_worker.py"))
EAGER = Patience(tick=0.05, backoff=(0.0, 0.0, 0.0))
DEADLINE = 20.0  # generous: the machine may be busy


@contextlib.asynccontextmanager
async def running(*flags: str, patience: Patience = EAGER) -> AsyncIterator[ProcessEngine]:
    engine = ProcessEngine(EngineConfig(), command=[sys.executable, ECHO, *flags], patience=patience)
    await engine.start()
    try:
        async with asyncio.timeout(4 * DEADLINE):
            yield engine
    finally:
        await engine.close()


async def until(condition: Callable[[], bool], seconds: float = DEADLINE) -> float:
    """Waits for a condition; how long that took."""
    loop = asyncio.get_running_loop()
    start = loop.time()
    while not condition():
        assert loop.time() - start < seconds, "the condition did not come true in time"
        await asyncio.sleep(0.005)
    return loop.time() - start


def ask(engine: ProcessEngine, *prompt: int) -> TokenStream:
    request = Request(id=engine.next_id(1), prompt=list(prompt), params=SamplingParams(max_tokens=100))
    return engine.submit(request)[0]


async def whole(stream: TokenStream) -> Delta:
    """All that the stream still gives."""
    total = Delta()
    while total.finish is None:
        delta = await stream.next()
        total.tokens += delta.tokens
        total.finish = delta.finish
    return total


async def first_token(stream: TokenStream) -> None:
    assert (await stream.next()).tokens


async def test_requests_go_through_and_streams_come_back() -> None:
    async with running() as engine:
        assert engine.state is EngineState.LOADING
        with pytest.raises(EngineUnavailable):
            ask(engine, 1)
        info = await engine.ready()
        assert (info.name, engine.info.max_rows) == ("echo", 8)
        streams = [ask(engine, k, k + 1, k + 2) for k in (1, 11, 21)]
        for k, stream in zip((1, 11, 21), streams, strict=True):
            got = await whole(stream)
            assert got.tokens == [k, k + 1, k + 2]
            assert got.finish is not None and got.finish.reason == "stop"


async def test_abort_reaches_the_child() -> None:
    async with running() as engine:
        await engine.ready()
        stream = ask(engine, HOLD)
        await first_token(stream)
        assert engine.stats().running == 1
        engine.abort([stream.id, 12345])
        await until(lambda: engine.stats().running == 0)


async def test_a_killed_child_fails_its_streams_and_comes_back() -> None:
    async with running() as engine:
        await engine.ready()
        streams = [ask(engine, HOLD) for _ in range(3)]
        for stream in streams:
            await first_token(stream)
        pid = engine.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        seen: list[EngineState] = []

        def dead() -> bool:
            seen.append(engine.state)
            return engine.state is EngineState.DEAD

        assert await until(dead) < 2.0
        for stream in streams:
            finish = (await whole(stream)).finish
            assert finish is not None and finish.reason == "error"
            assert "signal 9" in (finish.message or "")
        await until(lambda: engine.state is EngineState.READY)
        assert engine.pid != pid
        assert engine.restarts == 1
        assert engine.stats().running == 0
        assert (await whole(ask(engine, 5))).tokens == [5]


async def test_a_frozen_child_is_not_ready_soon_and_replaced_later() -> None:
    patience = Patience(tick=0.05, stale=0.8, hang=1.6, backoff=(0.0,))
    async with running(patience=patience) as engine:
        await engine.ready()
        stream = ask(engine, FREEZE)
        await first_token(stream)
        await until(lambda: engine.state is EngineState.DEAD)
        assert not stream.finished, "silence alone must not end streams"
        finish = (await whole(stream)).finish
        assert finish is not None and "silent" in (finish.message or "")
        await until(lambda: engine.state is EngineState.READY)


async def test_a_step_without_end_is_cut_and_a_long_one_is_not() -> None:
    patience = Patience(tick=0.05, step=1.5, backoff=(0.0,))
    async with running(patience=patience) as engine:
        await engine.ready()
        pid = engine.pid
        stuck = ask(engine, STUCK)
        await first_token(stuck)
        finish = (await whole(stuck)).finish
        assert finish is not None and "step" in (finish.message or "")
        await until(lambda: engine.state is EngineState.READY)
        assert engine.pid != pid
    async with running() as engine:
        await engine.ready()
        stuck = ask(engine, STUCK)
        await first_token(stuck)
        with pytest.raises(TimeoutError):  # three heartbeats and more
            await asyncio.wait_for(stuck.next(), 2.0)
        assert engine.state is EngineState.READY


async def test_restarts_are_counted_and_end() -> None:
    async with running(patience=Patience(tick=0.05, backoff=(0.0, 0.0))) as engine:
        await engine.ready()
        for restarts in (1, 2):
            await whole(ask(engine, CRASH))
            await until(lambda: engine.state is EngineState.READY)
            assert engine.restarts == restarts
        await whole(ask(engine, CRASH))
        failure = await engine.failed()
        assert failure.exit_code == 1
        assert engine.state is EngineState.DEAD
        with pytest.raises(EngineUnavailable):
            ask(engine, 1)


async def test_a_restart_that_cannot_load_is_a_fault_too(tmp_path: Path) -> None:
    async with running("--once", str(tmp_path / "started")) as engine:
        await engine.ready()
        await whole(ask(engine, CRASH))
        assert (await engine.failed()).exit_code == 1
        assert engine.restarts == 3


async def test_no_restart_while_draining() -> None:
    async with running() as engine:
        await engine.ready()
        engine.retire()
        await whole(ask(engine, CRASH))
        await engine.failed()
        assert engine.restarts == 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [(["--fail", "no such model"], "no such model"), (["--die"], "ended with exit code 9 while it loaded")],
)
async def test_a_model_that_cannot_be_loaded_is_final(flags: list[str], message: str) -> None:
    async with running(*flags) as engine:
        with pytest.raises(EngineFailed, match=message) as caught:
            await engine.ready()
        assert caught.value.exit_code == 3
        assert engine.restarts == 0


async def test_close_ends_the_child_and_open_streams() -> None:
    async with running() as engine:
        await engine.ready()
        stream = ask(engine, HOLD)
        await first_token(stream)
        pid = engine.pid
        assert pid is not None
        await engine.close()
        assert (await whole(stream)).finish is not None
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


async def test_a_child_that_loads_for_ever_is_ended_by_close() -> None:
    async with running("--never-ready") as engine:
        await until(lambda: engine.pid is not None)
        pid = engine.pid
        assert pid is not None
        await engine.close()
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
        with pytest.raises(EngineFailed):
            await engine.ready()


async def test_a_command_that_does_not_exist() -> None:
    engine = ProcessEngine(EngineConfig(), command=["/does/not/exist"])
    await engine.start()
    with pytest.raises(EngineFailed, match="could not be started"):
        await engine.ready()
    await engine.close()
