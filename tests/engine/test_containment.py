"""A fault in one request's work fails that request alone, and a fault in a step only those that were in
it.
"""

from collections.abc import AsyncIterator, Callable

import pytest
import torch

from engine.async_engine import AsyncEngine
from engine.messages import Request, SamplingParams
from engine.model import GPT
from engine.runner import ModelRunner, StagedStep, StepResult
from engine.sampler import SamplingRow
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
}


@pytest.mark.parametrize("name", BAD)
async def test_a_bad_parameter_is_refused_by_name(engine: AsyncEngine, name: str) -> None:
    request = Request(
        id=engine.next_id(1), prompt=[1], params=SamplingParams(**{"max_tokens": 4, name: BAD[name]})
    )  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=name if name != "max_tokens" else "max_tokens|sampled"):
        engine.submit(request)
    assert (engine.stats().running, engine.stats().waiting) == (0, 0)


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
            raise MemoryError("no memory for this step")
        return original(self, step)

    monkeypatch.setattr(ModelRunner, "_execute", execute)
    requests = [Request(id=engine.next_id(1), prompt=p, params=GREEDY) for p in ([*prompt, 3], [*prompt, 7])]
    streams = [stream for request in requests for stream in engine.submit(request)]
    first, second = [await read(stream) for stream in streams]
    assert failed and first.finish is not None and "no memory" in (first.finish.message or "")
    assert second.content == expected[0][0].content
    engine.core.scheduler.check()
    await engine.close()
