"""A request's tokens and logprobs do not depend on its company: the project's backbone.

Every axis on which an engine may treat the same work differently is turned, and every answer compared bit for
bit with the one that the request gets alone, in one chunk, without cache. New features join the axes.
"""

import asyncio
import random
import re
from collections.abc import Iterator

import pytest

from engine.llama import Llama
from engine.llama_config import llama_config
from engine.messages import SamplingParams
from engine.messages.config import WeightName
from engine.model import GPT
from engine.text import load_tokenizer
from tests.engine.checkpoints import make_model
from tests.engine.golden import G1
from tests.engine.serving import Ask, answers, started

VOCAB = 512
# Enough for the longest sequence below and little more, so that eight of them must take turns.
FEW_TOKENS = 176

AXES: dict[str, dict[str, object]] = {
    "one chunk": {},
    "chunks of 1": {"max_chunk": 1},
    "chunks of 7, blocks of 1": {"max_chunk": 7, "block_size": 1},
    "chunks of 64, blocks of 32": {"max_chunk": 64, "block_size": 32},
    "a step budget of 24": {"max_batched_tokens": 24},
    "no prefix cache": {"enable_prefix_caching": False},
    "no lookahead": {"lookahead": False},
    "three rows": {"max_rows": 3},
    "preemption": {"num_blocks": FEW_TOKENS // 16},
    "preemption, blocks of 1, chunks of 7": {
        "num_blocks": FEW_TOKENS,
        "block_size": 1,
        "max_chunk": 7,
        "enable_prefix_caching": False,
    },
    "preemption without lookahead": {"num_blocks": FEW_TOKENS // 8, "block_size": 8, "lookahead": False},
    "growth": {"num_blocks": 2, "max_num_blocks": 512},
    "growth, blocks of 1, chunks of 7": {
        "num_blocks": 3,
        "max_num_blocks": 8192,
        "block_size": 1,
        "max_chunk": 7,
    },
    "static batches": {"batching": "static", "batch_timeout_ms": 1.0},
    "single": {"batching": "single"},
    "three threads": {"threads": 3},
}
# Each of these is also turned together with another: in "growth" and "preemption" with blocks of 1 and chunks
# of 7, the latter without a prefix cache, and in "preemption without lookahead".
SLOW_AXES = ("chunks of 7, blocks of 1", "no prefix cache", "no lookahead")


def asks(seed: int) -> list[Ask]:
    """Requests that differ in everything: length, sharing, sampling, penalties, ends, choices, tools."""
    rng = random.Random(seed)

    def prompt(length: int) -> list[int]:
        return [rng.randrange(503) for _ in range(length)]

    shared = prompt(70)
    return [
        Ask(prompt(2), SamplingParams(max_tokens=20, temperature=0, ignore_eos=True)),
        Ask(shared, SamplingParams(max_tokens=30, temperature=0.9, seed=1, top_k=40, logprobs=3)),
        Ask(shared + prompt(5), SamplingParams(max_tokens=12, temperature=1.3, seed=2, top_p=0.8), n=3),
        # Prompts that are scored: one whose blocks the others may have left in the cache, one with choices.
        Ask(shared + [7, 8, 9] * 3, SamplingParams(max_tokens=3, temperature=0, prompt_logprobs=2)),
        Ask(shared[:50], SamplingParams(max_tokens=12, temperature=1.0, seed=9, prompt_logprobs=0), n=3),
        Ask(shared[:48], SamplingParams(max_tokens=25, temperature=0.7, seed=3, min_p=0.02, logprobs=0)),
        Ask(
            prompt(33),
            SamplingParams(
                max_tokens=30,
                temperature=0.8,
                seed=4,
                repetition_penalty=1.3,
                presence_penalty=0.5,
                frequency_penalty=0.4,
                logit_bias={7: 3.0, 9: -100.0},
            ),
        ),
        Ask(prompt(17), SamplingParams(max_tokens=40, temperature=1.0, seed=5, ignore_eos=True), tools=True),
        Ask(prompt(120), SamplingParams(max_tokens=10, min_tokens=6, temperature=1.1, seed=6, logprobs=2)),
        Ask(
            prompt(9),
            SamplingParams(
                max_tokens=60,
                min_tokens=3,
                temperature=1.0,
                seed=7,
                stop_token_ids=tuple(range(40, 60)),
                logit_bias=dict.fromkeys(range(40, 60), 4.0),
            ),
        ),
        # Its bias makes the model call the calculator again and again, so that forced tokens join in.
        Ask(
            prompt(12),
            SamplingParams(
                max_tokens=50,
                temperature=1.0,
                seed=8,
                ignore_eos=True,
                logprobs=1,
                logit_bias={TOOL_START: 9.0, TOOL_END: 9.0} | {ord(c): 8.0 for c in "0123456789"},
            ),
            tools=True,
        ),
        Ask(
            shared[:50],
            SamplingParams(max_tokens=40, temperature=1.0, seed=9, logprobs=1, grammar=NUMBERS),
            n=2,
        ),
        Ask(prompt(6), SamplingParams(max_tokens=20, temperature=0, min_tokens=9, grammar=NUMBERS)),
    ]


NUMBERS = r'start: "[" /[0-9]{1,7}/ ("," /-?[1-9]{2}\.[0-9]+/){1,4} "]"'
TOKENIZER = load_tokenizer(G1 / "tokenizer")
TOOL_START, TOOL_END = (TOKENIZER.encode_special(f"<|python_{side}|>") for side in ("start", "end"))


LLAMAS: dict[str, dict[str, object]] = {
    "llama": {"model_type": "llama", "num_key_value_heads": 2, "attention_bias": True, "mlp_bias": True},
    "qwen3": {
        "model_type": "qwen3",
        "num_key_value_heads": 1,
        "head_dim": 64,
        "tie_word_embeddings": True,
        "use_sliding_window": True,
        "sliding_window": 22,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
}


def llama(name: str) -> Llama:
    sizes: dict[str, object] = {
        "vocab_size": VOCAB,
        "hidden_size": 64,
        "intermediate_size": 160,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": 640,
    }
    config = llama_config(name, sizes | LLAMAS[name])  # type: ignore[arg-type]
    model = Llama(config)
    model.randomize(2)
    return model.requires_grad_(False).eval()


# A model and what its weights are kept in: torch's float32, or one of the compiled paths of a CPU.
MODELS: dict[str, tuple[str, WeightName]] = {
    **{name: (name, "auto") for name in ("G1", "G2", "G3", "G4", "G5", *LLAMAS)},
    **{f"{name} int8": (name, "int8") for name in ("G1", "G3", "G4", "G5")},
    **{f"{name} bf16": (name, "bf16") for name in ("G2", "G5")},
}
# The compiled paths have quick twins: G1 and G4 in eight bits (as many heads for keys as for queries, and one
# for all), G5 in sixteen; and every model is here in float32.
SLOW_MODELS = ("G3 int8", "G5 int8", "G2 bf16")


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=pytest.mark.slow if name in SLOW_MODELS else ()) for name in MODELS],
)
def named(request: pytest.FixtureRequest) -> tuple[str, WeightName]:
    return MODELS[request.param]


@pytest.fixture(scope="module")
def weights(named: tuple[str, WeightName]) -> WeightName:
    return named[1]


@pytest.fixture(scope="module")
def model(named: tuple[str, WeightName]) -> Iterator[GPT | Llama]:
    name, _ = named
    if name in LLAMAS:
        yield llama(name)
        return
    heads = {"G1": (2, 2), "G2": (2, 2), "G3": (4, 2), "G4": (4, 1), "G5": (2, 2)}[name]
    pattern = "L" if name == "G1" else "SSL"
    yield make_model(
        name,  # type: ignore[arg-type]
        1,
        sequence_len=64,  # so that the short windows of 22 to 128 keys matter
        vocab_size=VOCAB,
        n_layer=3,
        n_head=heads[0],
        n_kv_head=heads[1],
        n_embd=64,
        window_pattern=pattern,
    )


@pytest.fixture(scope="module")
def reference(model: GPT | Llama, weights: WeightName) -> "list[list[tuple[object, ...]]]":
    """Each ask alone in an engine of its own kind: no cache, no lookahead, one row, one chunk."""

    async def run() -> list[list[tuple[object, ...]]]:
        engine = await started(
            model,
            TOKENIZER,
            weight_dtype=weights,
            enable_prefix_caching=False,
            lookahead=False,
            max_rows=1,
            threads=1,
        )
        result = await answers(engine, asks(0), together=False)
        await engine.close()
        return [[answer.content for answer in choices] for choices in result]

    return asyncio.run(run())


QUICK_AXES = [axis for axis in AXES if axis not in SLOW_AXES]
PARTS = 8
QUICK_TURNS = -(-len(QUICK_AXES) // PARTS)


@pytest.fixture
def axis(named: tuple[str, WeightName], turn: int) -> str:
    """Each model goes along every axis, and begins with every eighth one; its neighbours begin with the
    others."""
    first = list(MODELS.values()).index(named)
    parts = [QUICK_AXES[(first + part) % PARTS :: PARTS] for part in range(PARTS)]
    return [*(axis for part in parts for axis in part), *SLOW_AXES][turn]


@pytest.mark.parametrize(
    "turn",
    [pytest.param(turn, marks=pytest.mark.slow if turn >= QUICK_TURNS else ()) for turn in range(len(AXES))],
)
async def test_answers_do_not_depend_on_company(
    model: GPT | Llama,
    weights: WeightName,
    reference: list[list[tuple[object, ...]]],
    axis: str,
    turn: int,
) -> None:
    engine = await started(model, TOKENIZER, **{"weight_dtype": weights, **AXES[axis]})
    try:
        # Cold and alone, all at once with a warm cache, and all at once in another order. Where requests run
        # singly in any case, the first is the second. The quick turns go without the second: what it sees the
        # third does, which comes upon the first one's cache then.
        rounds = ((False, 1), (True, 1), (True, -1))
        if turn < QUICK_TURNS:
            rounds = rounds[::2]
        for together, order in rounds[axis == "single" :]:
            result = await answers(engine, asks(0)[::order], together=together)
            for index, (choices, expected) in enumerate(zip(result[::order], reference, strict=True)):
                assert [answer.content for answer in choices] == expected, (axis, together, order, index)
            engine.core.scheduler.check()
            stats = engine.stats()
            assert (stats.running, stats.waiting, stats.blocks_used) == (0, 0, 0)
        if "preemption" in axis:
            assert engine.stats().preemptions > 0
        if "growth" in axis:
            assert engine.stats().kv_growths > 0 and not engine.stats().preemptions
    finally:
        await engine.close()


def test_the_asks_reach_what_they_are_meant_to(reference: list[list[tuple[object, ...]]]) -> None:
    """Tool calls forced tokens in, ends of every kind occurred, choices differ."""
    contents = [content for choices in reference for content in choices]
    assert any(forced for _, _, forced, *_ in contents)
    assert {reason for _, _, _, reason, *_ in contents} == {"stop", "length"}
    assert len({content[0] for content in reference[2]}) == 3
    assert [[len(content[-1]) for content in choices] for choices in reference[3:5]] == [[78], [49, 0, 0]]  # type: ignore[arg-type]
    formed = [TOKENIZER.decode(content[0][:-1]) for choices in reference[-2:] for content in choices]  # type: ignore[index]
    assert any(re.fullmatch(r"\[[0-9]{1,7}(,-?[1-9]{2}\.[0-9]+){1,4}\]", text) for text in formed), formed


async def test_choice_zero_of_many_equals_the_only_one(model: GPT | Llama, weights: WeightName) -> None:
    engine = await started(model, TOKENIZER, weight_dtype=weights)
    params = SamplingParams(max_tokens=20, temperature=1.0, seed=11, ignore_eos=True, logprobs=2)
    prompt = list(range(40, 75))
    (alone,), many = await answers(engine, [Ask(prompt, params), Ask(prompt, params, n=4)], together=True)
    await engine.close()
    assert many[0].content == alone.content
    assert len({tuple(answer.tokens) for answer in many}) == 4


async def test_salts_keep_caches_apart(model: GPT | Llama, weights: WeightName) -> None:
    engine = await started(model, TOKENIZER, weight_dtype=weights)
    params = SamplingParams(max_tokens=2, temperature=0, ignore_eos=True)
    prompt = list(range(64))
    salted = [Ask(prompt, params, cache_salt=salt) for salt in (b"", b"a", b"", b"a", b"b")]
    cached = [(await answers(engine, [ask], together=False))[0][0].finish.cached_tokens for ask in salted]  # type: ignore[union-attr]
    await engine.close()
    assert cached == [0, 0, 48, 48, 0]
