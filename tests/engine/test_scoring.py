"""Logprobs of prompt tokens: those of the whole text at once, told once, whatever happens meanwhile."""

import math
import random

import pytest
import torch

from engine import scoring
from engine.core import EngineCore
from engine.loader import load_model
from engine.messages import EngineStats, Frame, PromptLogprobs, SamplingParams
from engine.messages.wire import encode, from_engine, merge
from engine.model import GPT
from engine.plan import Plan
from engine.steps import NOT_FINITE
from engine.text import load_tokenizer
from tests.engine.checkpoints import make_model
from tests.engine.golden import G1, GOLDEN
from tests.engine.serving import Answer, Ask, answers, started

TOKENIZER = load_tokenizer(G1 / "tokenizer")


def scored(prompt: list[int], count: int = 3, **params: object) -> Ask:
    values = {"max_tokens": 2, "temperature": 0, "ignore_eos": True, "prompt_logprobs": count} | params
    return Ask(prompt, SamplingParams(**values))  # type: ignore[arg-type]


def prompts(*lengths: int) -> list[list[int]]:
    rng = random.Random(len(lengths))
    return [rng.choices(range(503), k=length) for length in lengths]


@pytest.fixture(scope="module")
def model() -> GPT:
    return make_model("G3", 3, n_layer=2)


@pytest.mark.parametrize("name", ["g1", "g5"])
async def test_scores_are_those_of_the_whole_text(name: str) -> None:
    model = load_model(GOLDEN / name, dtype="float32")[0]
    texts = prompts(1, 2, 40, 130)
    engine = await started(model, TOKENIZER, max_chunk=16, dtype="float32")
    result = await answers(engine, [scored(text) for text in texts], together=True)
    await engine.close()
    for text, (answer,) in zip(texts, result, strict=True):
        with torch.inference_mode():
            wanted = torch.log_softmax(model(torch.tensor([text]))[0], -1)  # type: ignore[operator]
        assert len(answer.prompt) == len(text) - 1
        for place, (logprob, rank, ids, values) in enumerate(answer.prompt):
            line, target = wanted[place], text[place + 1]
            assert logprob == pytest.approx(float(line[target]), abs=1e-5)
            assert abs(rank - 1 - int((line > line[target]).sum())) <= int(
                (line - line[target]).abs().lt(1e-5).sum()
            )
            assert list(values) == pytest.approx(line.topk(3).values.tolist(), abs=1e-5)
            assert list(values) == pytest.approx(line[list(ids)].tolist(), abs=1e-5)
            assert (rank == 1) == (ids[0] == target)


@pytest.mark.parametrize("kind", ["auto", "int8"])
async def test_what_is_computed_twice_is_told_once(model: GPT, kind: str) -> None:
    """Prompts that push each other out of a small pool, in small chunks; and one logit at a time."""
    asks = [scored(text, max_tokens=40) for text in prompts(60, 90, 50, 70, 30)]
    quiet = await started(model, TOKENIZER, weight_dtype=kind, enable_prefix_caching=False)
    expected = await answers(quiet, asks, together=False)
    await quiet.close()
    engine = await started(
        model,
        TOKENIZER,
        weight_dtype=kind,
        num_blocks=11,
        max_chunk=7,
        max_batched_tokens=24,
        enable_prefix_caching=False,
    )
    again: list[bool] = []
    original = EngineCore._add_scores

    def add(core: EngineCore, chunk: object, scores: PromptLogprobs) -> None:
        again.append(scores.first < chunk.sequence.unscored)  # type: ignore[attr-defined]
        original(core, chunk, scores)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EngineCore, "_add_scores", add)
        patch.setattr(scoring, "LOGITS_AT_ONCE", 1)
        result = await answers(engine, asks, together=True)
        # And all are thrown out in the middle of their prompts, some while their first chunk is computed.
        scheduler = engine.core.scheduler
        planned, thrown_out = scheduler.plan, set[int]()

        def plan(now: float) -> Plan | None:
            for sequence in scheduler.unfinished():
                known, row = sequence.unscored, sequence.row
                halfway = 20 < known < sequence.prompt_length if sequence.id % 2 else known == 1
                if halfway and row is not None and sequence.num_computed and sequence.id not in thrown_out:
                    thrown_out.add(sequence.id)
                    scheduler._preempt(sequence)
            return planned(now)

        patch.setattr(scheduler, "plan", plan)
        disturbed = await answers(engine, asks, together=True)
    assert engine.stats().preemptions > len(thrown_out) == 5 and any(again)
    await engine.close()
    for got in (result, disturbed):
        assert [a[0].content for a in got] == [e[0].content for e in expected]


async def test_the_cache_is_filled_but_not_read(model: GPT) -> None:
    engine = await started(model, TOKENIZER)
    (text,) = prompts(64)
    plain = Ask(text, SamplingParams(max_tokens=2, temperature=0, ignore_eos=True))
    asks = [scored(text), plain, scored(text)]
    result = [choices[0] for choices in await answers(engine, asks, together=False)]
    many = (await answers(engine, [Ask(text, asks[0].params, n=3)], together=False))[0]
    queries = engine.stats().prefix_queries
    await engine.close()

    def cached(answer: Answer) -> int:
        assert answer.finish is not None
        return answer.finish.cached_tokens

    assert [cached(answer) for answer in result] == [0, 48, 0]
    assert [len(answer.prompt) for answer in result] == [63, 0, 63]
    assert result[0].content == result[2].content
    # Other choices take what the first one computes.
    assert [cached(answer) for answer in many] == [0, 48, 48]
    assert [len(answer.prompt) for answer in many] == [63, 0, 0]
    assert queries == 3 * 64  # of those that looked


async def test_choices_wait_for_the_scores(model: GPT) -> None:
    """Also where they share nothing: no token of any choice comes before the prompt's last score."""
    engine = await started(model, TOKENIZER, enable_prefix_caching=False, max_chunk=8)
    seen: list[tuple[int, int]] = []
    publish = engine.on_frame
    original = engine.core.take_frame

    def take(*, always: bool = False) -> Frame | None:
        frame = original(always=always)
        if frame is not None:
            seen.append((sum(len(scores.logprobs) for scores in frame.prompts), len(frame.tokens)))
        return frame

    assert publish is None
    engine.core.take_frame = take  # type: ignore[method-assign]
    await answers(engine, [Ask(prompts(50)[0], scored([1]).params, n=3)], together=False)
    await engine.close()
    first = next(place for place, (_, tokens) in enumerate(seen) if tokens)
    assert sum(scores for scores, _ in seen[: first + 1]) == 49
    assert sum(scores for scores, _ in seen) == 49


async def test_numbers_that_are_none_fail_their_request_alone() -> None:
    model = make_model("G1", 3, n_layer=2)
    weight = model.transformer["wte"].weight
    assert isinstance(weight, torch.Tensor)
    with torch.no_grad():
        weight[7] = math.nan
    good = [id for id in prompts(50)[0] if id != 7]
    engine = await started(model, TOKENIZER, max_chunk=8)
    fine, spoilt = await answers(engine, [scored(good), scored([*good[:20], 7, *good[20:]])], together=True)
    stats = engine.stats()
    await engine.close()
    assert len(fine[0].prompt) == len(good) - 1 and fine[0].finish is not None
    assert fine[0].finish.reason == "length"
    assert spoilt[0].finish is not None
    assert (spoilt[0].finish.reason, spoilt[0].finish.message) == ("error", NOT_FINITE)
    assert not spoilt[0].tokens and len(spoilt[0].prompt) <= 20
    assert (stats.running, stats.blocks_used) == (0, 0)


async def test_logits_are_made_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    most = 0
    model = make_model("G1", 3, n_layer=2)
    original = GPT.logits

    def logits(self: GPT, hidden: torch.Tensor) -> torch.Tensor:
        nonlocal most
        most = max(most, len(hidden))
        return original(self, hidden)

    asks = [scored(text) for text in prompts(300, 200)]
    expected = []
    for at_once in (scoring.LOGITS_AT_ONCE, 10 * model.config.vocab_size):
        monkeypatch.setattr(scoring, "LOGITS_AT_ONCE", at_once)
        monkeypatch.setattr(GPT, "logits", logits)
        engine = await started(model, TOKENIZER, max_model_len=512)
        most = 0
        expected.append([a[0].content for a in await answers(engine, asks, together=True)])
        await engine.close()
        assert most == (10 if at_once < scoring.LOGITS_AT_ONCE or len(expected) == 2 else 299)
    assert expected[0] == expected[1]


def test_records_on_the_wire() -> None:
    def record(stream: int, first: int) -> PromptLogprobs:
        return PromptLogprobs(stream, first, [-0.5, -math.inf], [1, 9], [[3], [4]], [[-0.5], [-1.0]])

    frame = Frame([], [], [], [], [], EngineStats(), [record(5, 1)])
    other = Frame([5], [7], [], [], [], EngineStats(steps=2), [record(5, 3), record(6, 1)])
    merged = merge(frame, other)
    assert merged.prompts == [record(5, 1), record(5, 3), record(6, 1)] and merged.stats.steps == 2
    assert from_engine.decode(encode(merged)[4:]) == merged
    old = Frame([], [], [], [], [], EngineStats())
    assert old.prompts == [] and old.prompts is not Frame([], [], [], [], [], EngineStats()).prompts
    assert record(5, 3).since(4) == PromptLogprobs(5, 4, [-math.inf], [9], [[4]], [[-1.0]])
    assert record(5, 3).since(2) == record(5, 3)
