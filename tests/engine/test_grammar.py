"""Answers with a form: what ends by itself has it, and nobody else notices.

A model with random weights and the vocabulary of the embedded one, whose logits reach beyond the tokenizer.
"""

import asyncio
import json
import random
import re
import threading
from collections.abc import AsyncIterator

import jsonschema
import numpy as np
import pytest
from llguidance import LLMatcher

from app.requests.constraints import Constraint, grammar_text
from engine.async_engine import AsyncEngine
from engine.checkpoint import embedded_folder
from engine.grammar import GrammarError, Grammars, allowed_ids
from engine.messages import Request, SamplingParams
from engine.text import load_tokenizer
from tests.engine.checkpoints import make_model
from tests.engine.serving import Answer, Ask, answers, read, started

TOKENIZER = load_tokenizer(embedded_folder())
PADDED = TOKENIZER.get_vocab_size() + 64
END, BOS = TOKENIZER.encode_special("<|assistant_end|>"), TOKENIZER.get_bos_token_id()
PROMPT = TOKENIZER.encode("Once upon a time")
MODEL = make_model("G5", 3, vocab_size=PADDED, n_layer=2, n_embd=32, n_head=1, n_kv_head=1)
BROKEN = "start: /(?=x)/"


@pytest.fixture
async def engine() -> AsyncIterator[AsyncEngine]:
    engine = await started(MODEL, TOKENIZER, max_rows=16, threads=1)
    yield engine
    engine.core.scheduler.check()
    assert len(engine.core.forms) == 0 and engine.stats().running == 0
    await engine.close()


def ask(grammar: str | None, **params: object) -> Ask:
    return Ask(PROMPT, SamplingParams(**{"max_tokens": 100, "grammar": grammar} | params))  # type: ignore[arg-type]


def text_of(answer: Answer) -> str:
    """Without the token that ended it."""
    assert answer.finish is not None
    ended = answer.finish.reason == "stop"
    assert not ended or answer.tokens[-1] in (END, BOS)
    tokens = answer.tokens[:-1] if ended else answer.tokens
    assert not TOKENIZER.special_ids & set(tokens) and max(tokens, default=0) < TOKENIZER.get_vocab_size()
    return TOKENIZER.decode(tokens)


def random_schema(rng: random.Random, depth: int = 0) -> dict[str, object]:
    """Every keyword has its turn; short enough to come to an end."""
    leaves: list[dict[str, object]] = [
        {"type": "integer", "minimum": rng.randrange(-50, 0), "exclusiveMaximum": rng.randrange(1, 900)},
        {"type": "number", "exclusiveMinimum": -5, "maximum": 7.5},
        {"type": "integer", "multipleOf": 7, "minimum": 0, "maximum": 999},
        {"type": "string", "minLength": rng.randrange(3), "maxLength": rng.randrange(3, 9)},
        {"type": "string", "pattern": "^[a-f]{2,4}-?[0-9]$"},
        {"type": "string", "format": rng.choice(["date", "uuid", "ipv4", "time", "date-time"])},
        {"enum": ["red", 7, None, {"a": [1, 2]}, 'a"b\\ü']},
        {"const": [True, {"k": "v"}]},
        {"type": ["boolean", "null"]},
        {"$ref": "#/$defs/leaf"},
    ]
    if depth == 3 or rng.random() < 0.3:
        return rng.choice(leaves)

    def below() -> dict[str, object]:
        return random_schema(rng, depth + 1)

    names = rng.sample(["name", "größe", "a b", "n", 'x"y'], 3)
    members: list[dict[str, object]] = [
        {
            "type": "object",
            "properties": {name: below() for name in names},
            "required": names[: rng.randrange(4)],
            "additionalProperties": False,
        },
        {
            "type": "object",
            "patternProperties": {"^k[0-9]{1,2}$": below()},
            "additionalProperties": False,
            "maxProperties": 2,
        },
        {"type": "array", "items": below(), "minItems": rng.randrange(2), "maxItems": 3},
        {"type": "array", "prefixItems": [below(), below()], "items": False, "minItems": 2},
        {"anyOf": [below(), below()]},
        {"allOf": [{"type": "integer", "minimum": 3}, {"type": "integer", "maximum": 90}]},
        {
            "oneOf": [
                {"type": "object", "properties": {"t": {"const": name}}, "required": ["t"]}
                | {"additionalProperties": False}
                for name in names
            ]
        },
    ]
    return rng.choice(members)


def grammar_of(schema: dict[str, object]) -> str:
    return grammar_text(Constraint("schema", "json_schema", schema))


async def test_all_that_ends_by_itself_is_valid(engine: AsyncEngine) -> None:
    rng = random.Random(7)
    schemas = [random_schema(rng) | {"$defs": {"leaf": {"enum": ["leaf", 1]}}} for _ in range(48)]
    asks = [
        ask(grammar_of(schema), seed=k, temperature=temperature, top_p=0.95)
        for k, schema in enumerate(schemas)
        for temperature in (0.0, 0.5, 1.0)
    ]
    ended = 0
    given = await answers(engine, asks, together=True)
    for k, (answer,) in enumerate(given):
        schema, text = schemas[k // 3], text_of(answer)
        assert answer.finish is not None and answer.finish.reason != "error", (schema, answer.finish)
        if answer.finish.reason == "stop":
            ended += 1
            checker = jsonschema.Draft202012Validator.FORMAT_CHECKER
            jsonschema.validate(json.loads(text), schema, format_checker=checker)
    assert ended > 0.8 * len(asks)


@pytest.mark.parametrize(
    "pattern",
    [
        r"[a-z]{1,8}@[a-z]{1,8}\.(com|org)",
        r"\d{4}-\d{2}",
        "yes|no|maybe",
        r"(ab?c){2,5}/[^a-y/]{1,6}",
        r"[\u4e00-\u9fff]{1,3}|🌤️?",
    ],
)
async def test_answers_match_a_regex(engine: AsyncEngine, pattern: str) -> None:
    grammar = LLMatcher.grammar_from_regex(pattern)
    asks = [ask(grammar, seed=seed, temperature=0.3 * seed) for seed in range(6)]
    for (answer,) in await answers(engine, asks, together=True):
        assert answer.finish is not None and answer.finish.reason == "stop"
        assert re.fullmatch(pattern, text_of(answer)), text_of(answer)


async def test_choices_are_drawn_and_penalties_do_not_break_them(engine: AsyncEngine) -> None:
    """Biases for other ids, bans of the end and strong penalties: the grammar wins. Many answers differ."""
    grammar = 'start: "left" | "right" | "straight on"'
    hard = {
        "logit_bias": {END: -100.0, 5: 100.0, BOS: -100.0},
        "min_tokens": 90,
        "repetition_penalty": 3.0,
        "frequency_penalty": 2.0,
        "top_k": 2,
    }
    asks = [ask(grammar, seed=seed, **(hard if seed % 2 else {})) for seed in range(20)]
    texts = [text_of(answer) for (answer,) in await answers(engine, asks, together=True)]
    assert set(texts) <= {"left", "right", "straight on"} and len(set(texts)) > 1


async def test_logprobs_are_the_models_own(engine: AsyncEngine) -> None:
    """Before the mask: the best alternatives are those of the free answer, and stay finite."""
    free, formed = ask(None, temperature=0, logprobs=5, max_tokens=1), ask("start: /[0-9]{3}/", temperature=0)
    formed = Ask(PROMPT, SamplingParams(max_tokens=9, temperature=0, logprobs=5, grammar="start: /[0-9]{3}/"))
    ((one,), (other,)) = await answers(engine, [free, formed], together=True)
    first, second = one.logprobs[0], other.logprobs[0]
    assert first is not None and second is not None
    assert first[1:] == second[1:] and one.tokens[0] != other.tokens[0]
    assert -50 < second[0] < first[0]


async def test_the_others_keep_their_tokens_and_their_pace(engine: AsyncEngine) -> None:
    """A free row takes a step for each of its tokens, although rows with a grammar take every other one."""
    free = [ask(None, seed=seed, max_tokens=60, ignore_eos=True, logprobs=1) for seed in range(3)]
    formed = [ask("start: /[a-z ]{200}/", seed=seed, max_tokens=60) for seed in range(3)]
    alone = [[a.content for a in choices] for choices in await answers(engine, free, together=False)]
    before = engine.stats().steps
    together = await answers(engine, [*formed, *free], together=True)
    steps = engine.stats().steps - before
    assert [[a.content for a in choices] for choices in together[3:]] == alone
    assert steps < 60 * 2.3
    before = engine.stats().steps
    again = await answers(engine, formed, together=True)
    assert engine.stats().steps - before <= 62  # among themselves they take all of them
    assert [a.content for (a,) in again] == [a.content for (a,) in together[:3]]


async def test_masks_may_have_to_be_there_before_the_launch(engine: AsyncEngine) -> None:
    """As on a GPU: rows wait for their masks, the loop is woken when one comes, the answers are the same."""
    asks = [ask("start: /[a-z ]{20,40}[.]/", seed=seed, max_tokens=60) for seed in range(6)]
    asks += [ask(None, seed=9, max_tokens=15), ask(BROKEN)]
    late = await answers(engine, asks, together=True)
    engine.core.forms.early = True
    for together in (False, True):
        early = await answers(engine, asks, together=together)
        assert [[a.content for a in choices] for choices in early] == [
            [a.content for a in choices] for choices in late
        ]


async def test_a_grammar_that_fails_fails_alone(engine: AsyncEngine) -> None:
    good = ask('start: "fine"')
    asks = [good, ask(BROKEN), ask(None, max_tokens=9), Ask(PROMPT, ask(BROKEN).params, n=3)]
    fine, broken, free, all_broken = await answers(engine, asks, together=True)
    assert text_of(fine[0]) == "fine" and free[0].finish is not None and free[0].finish.reason != "error"
    for answer in [*broken, *all_broken]:
        assert answer.finish is not None and answer.finish.reason == "error" and not answer.tokens
        assert "look-ahead" in (answer.finish.message or "") and answer.finish.code == "grammar_failed"


async def test_a_matcher_that_gives_up_on_the_way_ends_its_row_only(
    engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the limits of a step do."""
    computed = Grammars._mask
    calls = 0

    def gives_up(self: Grammars, matcher: LLMatcher) -> object:
        nonlocal calls
        calls += 1
        if calls == 5:
            raise GrammarError("too much work")
        return computed(self, matcher)

    monkeypatch.setattr(Grammars, "_mask", gives_up)
    (failed,), (free,) = await answers(
        engine, [ask("start: /[a-z]{50}/"), ask(None, max_tokens=20, ignore_eos=True)], together=True
    )
    assert failed.finish is not None and failed.finish.reason == "error" and len(failed.tokens) == 4
    assert "too much work" in (failed.finish.message or "")
    assert len(free.tokens) == 20


async def test_masks_come_while_other_grammars_are_compiled(
    engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever answers already goes on, however many grammars are long in the making."""
    compiled, go_on = Grammars._matcher, threading.Event()

    def waits(self: Grammars, text: str) -> LLMatcher:
        if "heavy" in text:
            go_on.wait()
        return compiled(self, text)

    monkeypatch.setattr(Grammars, "_matcher", waits)
    params = ask("start: /[a-z]{30}/").params
    (early,) = engine.submit(Request(id=engine.next_id(1), prompt=PROMPT, params=params))
    await early.next()
    heavy = [asyncio.ensure_future(answers(engine, [ask('start: "heavy"')], together=True)) for _ in range(9)]
    try:
        async with asyncio.timeout(60):
            assert (await read(early)).finish is not None
        assert not any(task.done() for task in heavy)
    finally:
        go_on.set()
        for task in heavy:
            assert text_of((await task)[0][0]) == "heavy"


async def test_choices_share_the_making_of_their_grammar(
    engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[str] = []
    made = Grammars._compile

    def counts(self: Grammars, text: str) -> LLMatcher:
        built.append(text)
        return made(self, text)

    monkeypatch.setattr(Grammars, "_compile", counts)
    heavy = grammar_of({"type": "integer", "multipleOf": 9973})
    many = Ask(PROMPT, ask(heavy, max_tokens=4).params, n=9)
    given = await answers(engine, [many, many], together=True)
    assert all(a.finish is not None and a.finish.reason != "error" for choices in given for a in choices)
    assert built == [heavy]
    (broken,) = await answers(engine, [Ask(PROMPT, ask(BROKEN).params, n=4)], together=True)
    assert all("look-ahead" in ((a.finish and a.finish.message) or "") for a in broken)
    assert BROKEN not in engine.core.forms._grammars._compiled  # type: ignore[union-attr]


async def test_requests_leave_while_their_grammar_is_compiled(engine: AsyncEngine) -> None:
    heavy = grammar_of({"type": "integer", "multipleOf": 9973})
    request = Request(id=engine.next_id(1), prompt=PROMPT, params=ask(heavy).params)
    (stream,) = engine.submit(request)
    engine.abort([stream.id])
    (answer,) = (await answers(engine, [ask('start: "ok"')], together=True))[0]
    assert text_of(answer) == "ok"


async def test_the_loop_stays_free_while_a_grammar_is_compiled(engine: AsyncEngine) -> None:
    heavy = grammar_of({"type": "integer", "multipleOf": 99991})
    loop, gaps = asyncio.get_running_loop(), []
    request = Request(id=engine.next_id(1), prompt=PROMPT, params=ask(heavy, max_tokens=3).params)
    began = last = loop.time()
    reading = asyncio.ensure_future(read(engine.submit(request)[0]))
    while not reading.done():
        await asyncio.sleep(0)
        gaps.append(loop.time() - last)
        last = loop.time()
    assert last - began > 0.05, "it was not heavy"
    # A thread that kept the interpreter for itself would leave one gap that is about as long as its work.
    assert max(gaps) < 0.25 * (last - began)


@pytest.mark.parametrize(
    ("params", "tools"), [({"ignore_eos": True}, False), ({}, True)], ids=["ignore_eos", "tools"]
)
async def test_what_cannot_go_together(engine: AsyncEngine, params: dict[str, object], tools: bool) -> None:
    request = Request(id=1, prompt=PROMPT, params=ask('start: "x"', **params).params, tools=tools)
    with pytest.raises(ValueError, match="grammar"):
        engine.submit(request)


class Plain:
    """nanochat's five methods and no more."""

    encode, decode = TOKENIZER.encode, TOKENIZER.decode
    encode_special, get_bos_token_id = TOKENIZER.encode_special, TOKENIZER.get_bos_token_id
    get_vocab_size = TOKENIZER.get_vocab_size


async def test_a_tokenizer_must_tell_its_bytes() -> None:
    engine = await started(MODEL, Plain(), threads=1)
    with pytest.raises(ValueError, match="bytes"):
        engine.submit(Request(id=1, prompt=PROMPT, params=ask('start: "x"').params))
    await engine.close()


def test_a_mask_is_what_the_bytes_of_the_tokens_say() -> None:
    """Against each token by itself, for a vocabulary with ids that stand for nothing."""
    grammars = Grammars(TOKENIZER, PADDED, [END, BOS], early=False, wake=lambda: None)
    state = grammars.open("start: /[0-9]{1,3}|the( end)?/")
    allowed = set(np.flatnonzero(allowed_ids([state.mask.result()], PADDED)[0]).tolist())
    begins = [f"{n:0{w}}" for w in (1, 2, 3) for n in range(10**w)]
    begins += ["the end"[:k] for k in range(1, 8)]
    assert allowed == {
        id for id in range(8183) if TOKENIZER.token_bytes(id).decode("utf-8", "replace") in begins
    }
    state.accept(TOKENIZER.encode("the")[0])
    assert {END, BOS} < set(np.flatnonzero(allowed_ids([state.mask.result()], PADDED)[0]).tolist())
    state.accept(TOKENIZER.encode("9")[0])
    with pytest.raises(GrammarError):
        state.mask.result()
    grammars.close()
