"""A fault in one request's work fails that request alone, and a fault in a step only those that were in
it.
"""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from itertools import count

import pytest
import torch

from engine.async_engine import AsyncEngine
from engine.blocks import BlockId
from engine.core import MAX_FAILURES
from engine.estimator import PrefillRoom, StepLoad
from engine.faults import is_device_lost, is_out_of_memory
from engine.messages import EngineState, Request, SamplingParams
from engine.model import GPT
from engine.plan import Chunk, Plan
from engine.prefix import PrefixCache
from engine.runner import ModelRunner, StagedStep, StepResult
from engine.sampler import SamplingRow
from engine.scheduler import Scheduler
from engine.sequence import Sequence
from engine.steps import StepHandle
from engine.text import load_tokenizer
from kernels.sampling import SamplingBatch
from tests.engine.checkpoints import make_model
from tests.engine.golden import G1
from tests.engine.serving import Ask, answers, read, started

TOKENIZER = load_tokenizer(G1 / "tokenizer")
GREEDY = SamplingParams(max_tokens=24, temperature=0, ignore_eos=True)
MARKED = 0.625  # a temperature by which a test finds its victim


@pytest.fixture(scope="module")
def model() -> GPT:
    return make_model("G1", 3, n_layer=2)


@pytest.fixture
async def engine(model: GPT) -> AsyncIterator[AsyncEngine]:
    engine = await started(model, TOKENIZER)
    yield engine
    await engine.close()


def ask(first: int, **params: object) -> Ask:
    values = {"max_tokens": 24, "temperature": 0, "ignore_eos": True} | params
    return Ask(list(range(first, first + 40)), SamplingParams(**values))  # type: ignore[arg-type]


BAD = {
    "seed": 2**63,
    "logprobs": 1000,
    "temperature": float("nan"),
    "top_p": float("nan"),
    "min_p": 2.0,
    "top_k": -1,
    "repetition_penalty": 0.0,
    "presence_penalty": float("inf"),
    "logit_bias": {512: 1.0},
    "stop_token_ids": (512,),
    "max_tokens": 0,
    "prompt_logprobs": 21,
}


@pytest.mark.parametrize("name", BAD)
async def test_a_bad_parameter_is_refused_by_name(engine: AsyncEngine, name: str) -> None:
    request = Request(
        id=engine.next_id(1), prompt=[1], params=SamplingParams(**{"max_tokens": 4, name: BAD[name]})
    )  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=name if name != "max_tokens" else "max_tokens|sampled"):
        engine.submit(request)
    assert (engine.stats().running, engine.stats().waiting) == (0, 0)


async def test_more_stops_than_a_row_can_hold_are_refused(engine: AsyncEngine) -> None:
    params = SamplingParams(max_tokens=4, min_tokens=2, stop_token_ids=tuple(range(100)))
    with pytest.raises(ValueError, match="stop_token_ids"):
        engine.submit(Request(id=engine.next_id(1), prompt=[1], params=params))


async def test_a_fault_in_sampling_fails_one_row(
    engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = await answers(engine, [ask(0), ask(100)], together=False)
    import engine.runner as runner

    original: Callable[..., SamplingBatch] = runner.sampling_batch

    def faulty(rows: list[SamplingRow], *rest: object) -> SamplingBatch:
        if any(row.params.temperature == MARKED and row.position > 45 for row in rows):
            raise ArithmeticError("cannot sample this")
        return original(rows, *rest)

    monkeypatch.setattr(runner, "sampling_batch", faulty)
    good, bad, other = await answers(engine, [ask(0), ask(50, temperature=MARKED), ask(100)], together=True)
    assert [good[0].content, other[0].content] == [e[0].content for e in expected]
    finish = bad[0].finish
    assert finish is not None and finish.reason == "error" and "cannot sample this" in (finish.message or "")
    assert len(bad[0].tokens) == 6
    assert engine.stats().blocks_used == 0


async def test_a_row_that_is_not_finite_fails_alone(
    engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = await answers(engine, [ask(0)], together=False)
    original = GPT.logits

    def poisoned(self: GPT, hidden: torch.Tensor) -> torch.Tensor:
        logits = original(self, hidden)
        if logits.size(0) == 2:
            logits[1] = float("nan")
        return logits

    monkeypatch.setattr(GPT, "logits", poisoned)
    good, bad = await answers(engine, [ask(0), ask(50)], together=True)
    assert good[0].content == expected[0][0].content
    assert bad[0].finish is not None and bad[0].finish.reason == "error"
    assert "not finite" in (bad[0].finish.message or "")


@pytest.mark.parametrize("lookahead", [True, False])
async def test_a_failed_step_spoils_nobody_elses_tokens(
    model: GPT, monkeypatch: pytest.MonkeyPatch, lookahead: bool
) -> None:
    """B shares A's prompt and is planned behind A's prefill, whose step then fails before it wrote a
    block.
    """
    engine = await started(model, TOKENIZER, max_batched_tokens=48, lookahead=lookahead)
    prompt = list(range(80))
    expected = await answers(engine, [Ask([*prompt, 7], GREEDY, cache_salt=b"alone")], together=False)
    original = ModelRunner._execute
    failed: list[int] = []

    def execute(self: ModelRunner, step: StagedStep) -> StepResult:
        if not failed and len(step.ids) > 40:
            failed.append(len(step.ids))
            raise OSError("this step is broken")
        return original(self, step)

    monkeypatch.setattr(ModelRunner, "_execute", execute)
    requests = [Request(id=engine.next_id(1), prompt=p, params=GREEDY) for p in ([*prompt, 3], [*prompt, 7])]
    streams = [stream for request in requests for stream in engine.submit(request)]
    first, second = [await read(stream) for stream in streams]
    assert failed and first.finish is not None and "broken" in (first.finish.message or "")
    assert second.content == expected[0][0].content
    engine.core.scheduler.check()
    await engine.close()


# -- planning, launching, looking at tokens
# --------------------------------------------------------------------------------------------------------


async def test_a_request_that_cannot_be_planned_fails_alone(
    engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = await answers(engine, [ask(0)], together=False)
    original = PrefixCache.match

    def match(self: PrefixCache, sequence: Sequence) -> list[BlockId]:
        if sequence.request.params.temperature == MARKED:
            raise ArithmeticError("this one cannot be looked up")
        return original(self, sequence)

    monkeypatch.setattr(PrefixCache, "match", match)
    good, bad = await answers(engine, [ask(0), ask(50, temperature=MARKED)], together=True)
    assert good[0].content == expected[0][0].content
    assert bad[0].finish is not None and bad[0].finish.reason == "error"
    assert "cannot be looked up" in (bad[0].finish.message or "")
    engine.core.scheduler.check()
    assert engine.stats().blocks_used == 0


async def test_planning_that_fails_twice_ends_the_engine(model: GPT, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = await started(model, TOKENIZER)

    original = Scheduler._room

    def room(self: Scheduler, load: StepLoad, partial: int) -> PrefillRoom:
        if self.unfinished():
            raise ArithmeticError("no plan")
        return original(self, load, partial)

    monkeypatch.setattr(Scheduler, "_room", room)
    (answer,) = (await answers(engine, [ask(0)], together=True))[0]
    assert answer.finish is not None and answer.finish.reason == "error"
    with pytest.raises(ArithmeticError, match="no plan"):
        await engine.wait_closed()
    await engine.close()


def failing_launches(
    monkeypatch: pytest.MonkeyPatch, error: Exception, fails: Callable[[int, Plan], bool]
) -> list[int]:
    """Launches raise `error` where `fails(launch number, plan)`; returns the numbers of those that did."""
    original = ModelRunner.launch
    failed: list[int] = []
    numbers = count()

    def launch(self: ModelRunner, plan: Plan) -> StepHandle:
        number = next(numbers)
        if fails(number, plan):
            failed.append(number)
            raise error
        return original(self, plan)

    monkeypatch.setattr(ModelRunner, "launch", launch)
    return failed


async def test_without_memory_a_step_is_made_again_smaller(
    engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    asks = [ask(0), ask(50), ask(100, temperature=1.0, seed=3), ask(150)]
    expected = await answers(engine, asks, together=False)
    budget = engine.core.scheduler.budget.tokens
    failed = failing_launches(monkeypatch, MemoryError("no room"), lambda number, _: number == 8)
    got = await answers(engine, asks, together=True)
    assert failed == [8]
    assert [a[0].content for a in got] == [e[0].content for e in expected]
    assert engine.core.scheduler.budget.tokens == budget // 2
    engine.core.scheduler.check()


async def test_without_memory_again_the_newest_fails(
    engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = await answers(engine, [ask(0)], together=False)
    error = RuntimeError("CUDA error: out of memory")
    failed = failing_launches(monkeypatch, error, lambda number, _: number in (8, 9))
    first, second = await answers(engine, [ask(0), ask(50)], together=True)
    assert failed == [8, 9]
    assert first[0].content == expected[0][0].content
    finish = second[0].finish
    assert finish is not None and "out of memory" in (finish.message or "")
    assert (finish.reason, finish.code) == ("error", "out_of_memory") and second[0].tokens
    engine.core.scheduler.check()
    assert engine.stats().blocks_used == 0


@pytest.mark.parametrize("phase", ["prefill", "decode"])
@pytest.mark.parametrize("lookahead", [True, False])
@pytest.mark.parametrize("steps", [1, 2])
async def test_a_step_without_memory_costs_the_newest_at_most(
    model: GPT, monkeypatch: pytest.MonkeyPatch, phase: str, lookahead: bool, steps: int
) -> None:
    """The step itself fails, `steps` times in a row, not only its launch."""
    engine = await started(model, TOKENIZER, lookahead=lookahead)
    asks = [ask(0), ask(50), ask(100, temperature=1.0, seed=3)]
    expected = await answers(engine, asks, together=False)
    engine.core.scheduler.prefix.clear()
    original = ModelRunner._execute
    failed: list[int] = []

    def execute(self: ModelRunner, step: StagedStep) -> StepResult:
        if len(failed) < steps and (failed or (len(step.ids) > len(asks)) == (phase == "prefill")):
            failed.append(len(step.ids))
            raise torch.OutOfMemoryError("no room")
        return original(self, step)

    monkeypatch.setattr(ModelRunner, "_execute", execute)
    got = [answer[0] for answer in await answers(engine, asks, together=True)]
    assert len(failed) == steps
    lost = [k for k, answer in enumerate(got) if answer.content != expected[k][0].content]
    # With lookahead the second failure may be that of a step which had been launched behind the first.
    assert lost == ([] if steps == 1 else [2]) or (lookahead and not lost)
    for k in lost:
        finish = got[k].finish
        assert finish is not None and finish.code == "out_of_memory"
    engine.core.scheduler.check()
    assert engine.stats().blocks_used == 0
    await engine.close()


async def test_waiting_for_a_step_shows(engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    assert engine.stats().step_age_seconds == 0
    original = ModelRunner._execute
    held, go = threading.Event(), threading.Event()

    def execute(self: ModelRunner, step: StagedStep) -> StepResult:
        held.set()
        assert go.wait(60)
        return original(self, step)

    monkeypatch.setattr(ModelRunner, "_execute", execute)
    (stream,) = engine.submit(Request(id=engine.next_id(1), prompt=[1, 2], params=GREEDY))
    await asyncio.to_thread(held.wait, 60)
    first = engine.stats().step_age_seconds
    await asyncio.sleep(0.01)
    assert engine.stats().step_age_seconds >= first + 0.01
    go.set()
    await read(stream)
    assert engine.stats().step_age_seconds == 0


async def test_a_launch_that_fails_takes_only_its_sequences_along(
    model: GPT, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = await started(model, TOKENIZER, max_rows=1)
    expected = await answers(engine, [ask(50)], together=False)
    failed = failing_launches(monkeypatch, ValueError("cannot be staged"), lambda number, _: number == 4)
    first, second = await answers(engine, [ask(0), ask(50)], together=True)
    assert failed == [4]
    assert first[0].finish is not None and "cannot be staged" in (first[0].finish.message or "")
    assert second[0].content == expected[0][0].content
    await engine.close()


LOST = [
    RuntimeError("CUDA error: an illegal memory access was encountered"),
    RuntimeError("Triton Error [CUDA]: unspecified launch failure"),
    type("AcceleratorError", (RuntimeError,), {})("CUDA error: device-side assert triggered"),
]


@pytest.mark.parametrize("where", ["launch", "step"])
@pytest.mark.parametrize("error", LOST, ids=lambda error: type(error).__name__)
async def test_a_lost_device_ends_the_engine(
    model: GPT, monkeypatch: pytest.MonkeyPatch, where: str, error: Exception
) -> None:
    engine = await started(model, TOKENIZER)
    if where == "launch":
        failing_launches(monkeypatch, error, lambda number, _: number == 3)
    else:

        def execute(self: ModelRunner, step: StagedStep) -> StepResult:
            raise error

        monkeypatch.setattr(ModelRunner, "_execute", execute)
    (answer,) = (await answers(engine, [ask(0)], together=True))[0]
    assert answer.finish is not None and answer.finish.reason == "error"
    with pytest.raises(type(error)):
        await engine.wait_closed()
    assert engine.state is EngineState.DEAD
    await engine.close()


async def test_steps_that_never_succeed_end_the_engine(model: GPT, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = await started(model, TOKENIZER)

    def execute(self: ModelRunner, step: StagedStep) -> StepResult:
        raise OSError("broken")

    monkeypatch.setattr(ModelRunner, "_execute", execute)
    for _ in range(MAX_FAILURES + 1):  # with lookahead two steps fail for each request
        if engine.state is EngineState.READY:
            (answer,) = (await answers(engine, [ask(0)], together=True))[0]
            assert answer.finish is not None and answer.finish.reason == "error"
    with pytest.raises(OSError, match="broken"):
        await engine.wait_closed()
    await engine.close()


async def test_a_token_that_cannot_be_used_fails_its_request(
    engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = await answers(engine, [ask(0)], together=False)
    original = Scheduler.token

    def token(self: Scheduler, chunk: Chunk, id: int) -> bool:
        if chunk.sequence.request.params.temperature == MARKED and chunk.start > 45:
            raise ArithmeticError("what a token")
        return original(self, chunk, id)

    monkeypatch.setattr(Scheduler, "token", token)
    good, bad = await answers(engine, [ask(0), ask(50, temperature=MARKED)], together=True)
    assert good[0].content == expected[0][0].content
    assert bad[0].finish is not None and "what a token" in (bad[0].finish.message or "")
    assert len(bad[0].tokens) == 7
    assert engine.stats().blocks_used == 0


def test_kinds_of_faults() -> None:
    memory = [MemoryError(), torch.OutOfMemoryError("x"), RuntimeError("CUDA error: out of memory")]
    assert all(is_out_of_memory(error) and not is_device_lost(error) for error in memory)
    assert all(is_device_lost(error) and not is_out_of_memory(error) for error in LOST)
    for other in (ValueError("CUDA error"), RuntimeError("shape mismatch"), KeyError(3)):
        assert not is_out_of_memory(other) and not is_device_lost(other)


async def test_the_engine_tells_whom_it_works_on(model: GPT) -> None:
    """Who holds a row has been told so before its first token; who waits for one has not."""
    engine = await started(model, TOKENIZER, max_rows=1)
    try:
        params = SamplingParams(max_tokens=3, ignore_eos=True)
        (first,), (second,) = (
            engine.submit(Request(id=engine.next_id(1), prompt=[1, 2, 3], params=params)) for _ in range(2)
        )
        called: list[bool] = []
        first.on_admission = lambda: called.append(first.held is None)
        await first.next()
        assert called == [True] and first.admitted_at > 0
        assert not second.admitted_at
        while (await second.next()).finish is None:
            pass
        assert second.admitted_at >= first.admitted_at
    finally:
        await engine.close()
