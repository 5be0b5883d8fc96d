"""The real engine process, through the supervisor: answers, bad requests, signals, leaving while it loads."""

import asyncio
import os
import signal

import pytest

from app.processes.supervisor import Patience, ProcessEngine
from engine.links import Outbox
from engine.messages import (
    EngineConfig,
    EngineState,
    EngineStats,
    Finish,
    Frame,
    Ready,
    Request,
    SamplingParams,
    TokenLogprobs,
)
from engine.messages.wire import Unframer, from_engine
from engine.worker import DeviceMissing, choose_device, failure
from tests.app.server_process import GOLDEN
from tests.app.test_supervisor import until, whole

CONFIG = EngineConfig(model=str(GOLDEN), device="cpu", dtype="float32", threads=1)


async def test_the_real_worker() -> None:
    engine = ProcessEngine(CONFIG)
    await engine.start()
    try:
        info = await engine.ready()
        assert (info.generation, info.vocab_size) == ("G1", 512)
        pid = engine.pid
        assert pid is not None
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(pid, number)  # the front end decides
        params = SamplingParams(max_tokens=6, temperature=0.0, ignore_eos=True)
        good = engine.submit(Request(id=engine.next_id(1), prompt=[97, 98], params=params))
        bad = engine.submit(Request(id=engine.next_id(2), prompt=[10**6], params=params, n=2))
        for stream in bad:
            finish = (await whole(stream)).finish
            assert finish is not None and finish.reason == "error" and finish.message
        got = await whole(good[0])
        assert len(got.tokens) == 6
        assert got.finish is not None and got.finish.reason == "length"
        assert engine.pid == pid and engine.state is EngineState.READY
    finally:
        await engine.close()


async def test_it_leaves_while_it_loads() -> None:
    engine = ProcessEngine(CONFIG, patience=Patience(leave=30.0))
    await engine.start()
    await until(lambda: engine.pid is not None)
    pid = engine.pid
    assert pid is not None
    loop = asyncio.get_running_loop()
    start = loop.time()
    await engine.close()
    assert loop.time() - start < 25, "it had to be killed"


class Pipe(asyncio.WriteTransport):
    """Keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.frames: list[Frame] = []
        self.ready: list[Ready] = []
        self.unframer = Unframer()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        for body in self.unframer.feed(bytes(data)):
            message = from_engine.decode(body)
            if isinstance(message, Ready):
                self.ready.append(message)
            else:
                assert isinstance(message, Frame)
                self.frames.append(message)


def test_frames_that_meet_a_full_socket_become_one() -> None:
    pipe = Pipe()
    outbox = Outbox(pipe)

    def frame(step: int) -> Frame:
        logprobs = [TokenLogprobs(1, -0.5, [step], [-0.5])]
        finished = [Finish(2, "stop")] if step == 3 else []
        return Frame([1, 2], [step, 10 * step], [0], logprobs, finished, EngineStats(steps=step))

    outbox.push(frame(1))
    outbox.pause()
    outbox.push(frame(2))
    outbox.push(frame(3))
    assert len(pipe.frames) == 1
    outbox.resume()
    outbox.push(frame(4))
    first, merged, last = pipe.frames
    assert (first, last) == (frame(1), frame(4))
    assert merged.streams == [1, 2, 1, 2]
    assert merged.tokens == [2, 20, 3, 30]
    assert merged.forced == [0, 2]
    assert [(item.index, item.top_ids) for item in merged.logprobs] == [(1, [2]), (3, [3])]
    assert merged.finished == [Finish(2, "stop")]
    assert merged.stats.steps == 3


def test_failures_are_one_line() -> None:
    failed = failure(ValueError("no model\nat x"))
    assert (failed.message, failed.exit_code) == ("no model at x", 3)
    failed = failure(RuntimeError("odd"))
    assert (failed.message, failed.exit_code) == ("RuntimeError: odd", 3)
    assert failure(DeviceMissing("--device cuda: none here")).exit_code == 2


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert choose_device("auto") == choose_device("cpu") == "cpu"
    for name, reason in (("mps", "float64"), ("cuda", "no such device")):
        with pytest.raises(DeviceMissing, match=reason):
            choose_device(name)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert choose_device("auto") == "cuda"
