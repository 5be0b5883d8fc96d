"""What the engine measures: when a choice got its row, how long it computed, steps by size and duration."""

import asyncio
import threading
import time

import msgspec
import pytest

from engine.async_engine import AsyncEngine
from engine.messages import EngineStats, Finish, Frame, Request, SamplingParams, Started, TokenStream
from engine.messages.wire import STEP_SECONDS, STEP_TOKENS, encode, from_engine, merge
from engine.model import GPT
from engine.plan import Plan
from engine.runner import ModelRunner, StagedStep
from engine.scheduling import SchedulerStats
from engine.steps import StepResult
from engine.text import load_tokenizer
from tests.engine.checkpoints import make_model
from tests.engine.golden import G1
from tests.engine.serving import read, started

STATS = EngineStats.__struct_fields__
TOKENIZER = load_tokenizer(G1 / "tokenizer")


def request(engine: AsyncEngine, prompt: list[int], max_tokens: int, n: int = 1) -> Request:
    params = SamplingParams(max_tokens=max_tokens, temperature=0, ignore_eos=True)
    return Request(id=engine.next_id(n), prompt=prompt, params=params, n=n)


def measured(stream: TokenStream, finish: Finish | None) -> tuple[float, float, float]:
    assert stream.started is not None and stream.started.stream == stream.id
    assert finish is not None and finish.prefill_seconds is not None and finish.decode_seconds is not None
    return stream.started.queue_seconds, finish.prefill_seconds, finish.decode_seconds


async def test_times_add_up_and_steps_are_counted() -> None:
    """One row only, so that the second request waits for the first, whose chunks leave one last position."""
    engine = await started(make_model("G1", 3, n_layer=2), TOKENIZER, max_rows=1, max_chunk=20)
    try:
        begin = time.monotonic()
        (one,) = engine.submit(request(engine, list(range(41)), 12))
        (two,) = engine.submit(request(engine, list(range(100, 130)), 1))
        ends = [await read(stream) for stream in (one, two)]
        elapsed = time.monotonic() - begin
        first, second = (measured(s, end.finish) for s, end in zip((one, two), ends, strict=True))
        for times in (first, second):
            assert all(seconds >= 0 for seconds in times) and sum(times) <= elapsed
        assert first[1] > 0 and first[2] > 0, "a prompt and twelve tokens take time"
        assert second[0] >= first[1] + first[2], "it got the row behind the first one's last token"
        assert second[2] < first[2], "one token takes no time to decode"
        stats = engine.stats()
        seen = stats.step_histograms
        assert sum(seen.tokens) == sum(seen.seconds) == stats.steps
        # A step that ran ahead of an end computed for nothing; beyond that, every position once.
        assert 41 + 11 + 30 <= seen.token_total <= 41 + 11 + 30 + 2
        assert 0 < seen.second_total <= elapsed
        assert all(end.finish is not None and end.finish.batch_rows == 1 for end in ends)
        assert (stats.oldest_wait_seconds, stats.deferred, stats.nonfinite) == (0, 0, 0)
    finally:
        await engine.close()


async def test_the_company_of_a_choice_is_measured() -> None:
    engine = await started(make_model("G1", 3, n_layer=2), TOKENIZER, enable_prefix_caching=True)
    try:
        streams = engine.submit(request(engine, list(range(48)), 16, n=4))
        ends = [await read(stream) for stream in streams]
        rows = [end.finish.batch_rows for end in ends if end.finish is not None]
        assert all(number is not None and 2 < number <= 4 for number in rows), rows
        cached = [stream.started.cached_tokens for stream in streams if stream.started is not None]
        assert cached[0] == 0 and cached[1:] == [end.finish.cached_tokens for end in ends[1:] if end.finish]
        assert all(number > 0 for number in cached[1:])
    finally:
        await engine.close()


async def test_who_waits_is_told_apart() -> None:
    """An idle engine gathers: then who waits is deferred, and its age is that of the head of the queue."""
    engine = await started(make_model("G1", 3, n_layer=2), TOKENIZER, batch_timeout_ms=60_000.0)
    try:
        streams = engine.submit(request(engine, [1, 2, 3], 4, n=2))
        frames: list[Frame] = []
        engine.on_frame = frames.append
        engine.core.launch()
        stats = engine.stats()
        assert (stats.waiting, stats.deferred) == (2, 2)
        assert 0 < stats.oldest_wait_seconds < 60
        assert stats.step_age_seconds == 0, "it waits for company, and for no step"
        engine.abort(stream.id for stream in streams)
        ends = engine.core.take_frame()
        assert ends is not None
        assert [(e.reason, e.prefill_seconds, e.batch_rows) for e in ends.finished] == [
            ("abort", None, None)
        ] * 2
    finally:
        await engine.close()


async def test_a_step_that_hangs_is_told_by_its_age(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also the first one, and one that was launched when a batch had been gathered."""
    engine = await started(make_model("G1", 3, n_layer=2), TOKENIZER, batch_timeout_ms=30.0)
    begun, go_on = threading.Event(), threading.Event()
    execute = ModelRunner._execute

    def hangs(self: ModelRunner, step: StagedStep) -> StepResult:
        begun.set()
        go_on.wait()
        return execute(self, step)

    monkeypatch.setattr(ModelRunner, "_execute", hangs)
    try:
        (stream,) = engine.submit(request(engine, [1, 2, 3], 1))
        await asyncio.sleep(0)  # the loop looks, and gathers
        assert engine.stats().step_age_seconds == 0
        await asyncio.to_thread(begun.wait)
        launched = time.monotonic()
        first = engine.stats().step_age_seconds
        while time.monotonic() == launched:
            pass
        assert engine.stats().step_age_seconds > first >= 0
        go_on.set()
        await read(stream)
        assert engine.stats().step_age_seconds == 0
    finally:
        go_on.set()
        await engine.close()


async def test_counters_have_their_own_names() -> None:
    """They are put together by their order."""
    engine = await started(make_model("G1", 3, n_layer=2), TOKENIZER, batch_timeout_ms=60_000.0)
    try:
        core = engine.core
        core._measures.steps, core._generated, core._growths = 11, 12, 13
        core._nonfinite, core.resident_bytes = 14, 15
        core._measures.last_seconds, core.runner.graph_recaptures = 0.5, 16
        core.runner.path_failures = 18
        core._measures.last_plan = Plan((), (), (), (), 17)
        scheduled = SchedulerStats(21, 22, 22, None, 23, 24, 25, 26, 27, 28, 29, 30)
        core.scheduler.stats = lambda: scheduled  # type: ignore[method-assign]
        assert msgspec.structs.asdict(core.stats()) == {
            **{name: getattr(scheduled, name) for name in scheduled._fields if name in STATS},
            **{"blocks_total": core.scheduler.pool.usable, "steps": 11, "generated_tokens": 12},
            **{"batch_rows": 0, "batch_tokens": 17, "step_seconds": 0.5, "kv_growths": 13},
            **{"graph_recaptures": 16, "oldest_wait_seconds": 0.0, "nonfinite": 14, "resident_bytes": 15},
            **{"step_histograms": core._measures.histograms, "step_age_seconds": 0.0, "path_failures": 18},
        }
    finally:
        await engine.close()


def test_starts_survive_the_wire_and_merging() -> None:
    one, two = (
        Frame([], [], [], [], [], EngineStats(steps=step), started=[Started(step, 0.5 * step, step)])
        for step in (1, 2)
    )
    merged = merge(one, two)
    assert [item.stream for item in merged.started] == [1, 2] and merged.stats.steps == 2
    decoded = from_engine.decode(encode(merged)[4:])
    assert decoded == merged
    assert len(merged.stats.step_histograms.tokens) == len(STEP_TOKENS) + 1
    assert len(merged.stats.step_histograms.seconds) == len(STEP_SECONDS) + 1


async def test_a_row_that_is_not_finite_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = await started(make_model("G1", 3, n_layer=2), TOKENIZER)
    try:
        original = GPT.logits
        monkeypatch.setattr(GPT, "logits", lambda self, hidden: original(self, hidden) * float("nan"))
        (stream,) = engine.submit(request(engine, [1, 2, 3], 4))
        end = (await read(stream)).finish
        assert end is not None and end.reason == "error"
        assert engine.stats().nonfinite == 1
    finally:
        await engine.close()
