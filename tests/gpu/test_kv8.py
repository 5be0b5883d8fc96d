"""Keys and values of eight bits on the device: attention over them, and the whole engine.

Answers are compared with those of a request that is alone, over keys and values of eight bits as well: what
is kept of a token must not depend on chunks, company, the prefix cache, preemption or growth. How far they
are from answers over keys and values in full is asked separately.
"""

import msgspec
import pytest
import torch

from engine.async_engine import AsyncEngine
from engine.messages import EngineConfig, SamplingParams
from engine.model import GPT
from kernels.backends import AttentionSpec
from kernels.backends.selftest import fault
from kernels.backends.triton import TritonBackend
from kernels.registry import Unavailable
from kernels.triton.decode_config import config_for
from tests.engine.checkpoints import make_model
from tests.engine.serving import Answer, Ask, answers, started
from tests.gpu.test_engine import (
    AXES,
    BEST,
    EAGER,
    POOL,
    TOKENIZER,
    VOCAB,
    agree,
    asks,
    loose,
    without_logprobs,
)
from tests.gpu.test_growth import ASKS, BLOCKS, COMMON, LARGE

# Rounded to three bits, a number that is off by a step of bfloat16 is now and then off by a sixteenth.
TOLERANCE = 0.25
# Of decode paths, which take time to choose at each start, tests/gpu/test_paths.py has more.
KV8: dict[str, object] = {"kv_dtype": "fp8", "decode_path": "graph"}
# The models: heads, kv heads, generation. Where groups make no difference one of them has an axis.
EACH, GROUPS = (4, 4, "G1"), (4, 2, "G3")
FOR_BOTH = (
    "graphs",
    "growth",
    "clusters",
    "rotation inside of attention",
    "rotation in front of attention",
)
FOR_EACH = (
    "no graphs",
    "chunks of 7, blocks of 1",
    "no prefix cache",
    "preemption",
    "growth, no graphs",
    "the reference's attention",
)
FOR_GROUPS = ("chunks of 64, blocks of 32",)
CASES = [
    *((EACH, axis) for axis in (*FOR_BOTH, *FOR_EACH)),
    *((GROUPS, axis) for axis in (*FOR_BOTH, *FOR_GROUPS)),
]
AXES8 = {name: AXES[name] for name in (*FOR_BOTH, *FOR_EACH, *FOR_GROUPS) if name in AXES}
AXES8["the reference's attention"] = {"attention_backend": "torch"}
for name in ("graphs", "growth"):
    AXES8[name] = AXES8[name] | {"decode_path": "auto"}
# Those where requests also come one by one, which takes longest.
ONE_BY_ONE = ("graphs", "chunks of 7, blocks of 1")
# Heads, kv heads, channels of a head, keys of a block, rows that decode is cut up for.
KERNELS = [
    (16, 16, 128, 16, 3),
    (16, 16, 128, 16, 16),
    (16, 16, 128, 16, 256),
    (16, 16, 64, 64, 64),
    (32, 8, 128, 16, 64),
    (20, 4, 64, 32, 3),
    (8, 1, 128, 256, 16),
]
# In full, a shape of each of the two kernels: the others are tests/kernels/triton's.
PROBLEMS = [*((shape, True) for shape in KERNELS), (KERNELS[1], False), (KERNELS[4], False)]
LONGEST = (70, 1100)  # keys of a problem's longest row


@pytest.fixture(scope="module", autouse=True)
def converts(cuda: None) -> None:
    if torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("needs compute capability 8.9")


def made(heads: int, kv_heads: int, generation: str = "G3") -> GPT:
    model = make_model(
        generation,
        1,
        sequence_len=64,
        vocab_size=VOCAB,
        n_layer=3,
        n_head=heads,
        n_kv_head=kv_heads,
        n_embd=64 * heads,
        window_pattern="L" if generation == "G1" else "SSL",
    )
    return model.to("cuda", torch.bfloat16).requires_grad_(False).eval()


Kind = tuple[int, int, str]


class Models:
    """Each made when it is first asked for, as are its answers."""

    def __init__(self) -> None:
        self._models: dict[Kind, GPT] = {}
        self._alone: dict[Kind, list[list[Answer]]] = {}

    def __getitem__(self, kind: Kind) -> GPT:
        if kind not in self._models:
            self._models[kind] = made(*kind)
        return self._models[kind]

    async def alone(self, kind: Kind) -> list[list[Answer]]:
        """Each request by itself: no cache, no lookahead, no graphs, one row."""
        if kind not in self._alone:
            plain = {"enable_prefix_caching": False, "lookahead": False, "flags": EAGER, "max_rows": 1}
            engine = await started(self[kind], TOKENIZER, **plain, **POOL, **KV8)
            self._alone[kind] = await answers(engine, asks(0), together=False)
            await engine.close()
        return self._alone[kind]


@pytest.fixture(scope="module")
def models() -> Models:
    return Models()


# ---- attention


def ours(shape: tuple[int, int, int, int, int], fp8_kv: bool) -> tuple[TritonBackend, AttentionSpec]:
    heads, kv_heads, head_dim, block_size, rows = shape
    device = torch.device("cuda")
    spec = AttentionSpec(heads, kv_heads, head_dim, block_size, torch.bfloat16, rows, 4096, device, fp8_kv)
    # A problem has three rows.
    config = config_for(heads // kv_heads, head_dim, rows, 1 if fp8_kv else 2)
    return TritonBackend(spec, lambda _: config), spec


@pytest.mark.parametrize(("shape", "fp8_kv"), PROBLEMS, ids=str)
def test_our_kernels_agree_with_the_reference(shape: tuple[int, int, int, int, int], fp8_kv: bool) -> None:
    backend, spec = ours(shape, fp8_kv)
    for longest in LONGEST:
        assert fault(backend, spec, longest) is None


# ---- the engine


def wrong(
    result: list[list[Answer]], expected: list[list[Answer]], wanted: list[Ask]
) -> list[tuple[object, ...]]:
    trios = zip(result, expected, wanted, strict=True)
    return [
        (index, a.tokens, b.tokens, a.logprobs, b.logprobs)
        for index, (choices, right, ask) in enumerate(trios)
        for a, b in zip(choices, right, strict=True)
        if not agree(a, b, TOLERANCE, loose(ask))
    ]


@pytest.mark.parametrize(("kind", "axis"), CASES, ids=str)
async def test_answers_do_not_depend_on_company(models: Models, kind: Kind, axis: str) -> None:
    if axis == "clusters" and torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("needs compute capability 9.0")
    alone = await models.alone(kind)
    engine = await started(models[kind], TOKENIZER, **({"max_rows": 16} | POOL | KV8 | AXES8[axis]))
    try:
        rows = {name: used for name, _, used, _ in engine.info.features}
        assert rows["kv dtype"] == "fp8"
        orders = [(True, -1, False), (True, 1, True)]
        for together, order, plain in ([(False, 1, False)] if axis in ONE_BY_ONE else []) + orders:
            wanted = [without_logprobs(ask) if plain else ask for ask in asks(0)[::order]]
            result = await answers(engine, wanted, together=together)
            assert not wrong(result[::order], alone, asks(0)), (together, order, plain)
            engine.core.scheduler.check()
            stats = engine.stats()
            assert (stats.running, stats.waiting, stats.blocks_used) == (0, 0, 0)
        if "preemption" in axis:
            assert engine.stats().preemptions > 0
        if "growth" in axis:
            assert engine.stats().kv_growths > 0 and engine.stats().preemptions == 0
    finally:
        await engine.close()


async def test_streams_go_on_while_the_pool_moves(models: Models) -> None:
    """All eight decode when blocks run out, after some tokens and long before their last ones; then the same
    over a warm prefix cache.
    """

    async def run(**config: object) -> tuple[list[list[Answer]], list[list[Answer]], AsyncEngine]:
        engine = await started(models[GROUPS], TOKENIZER, **(COMMON | KV8 | config))
        try:
            first = await answers(engine, ASKS, together=True)
            return first, await answers(engine, ASKS, together=True), engine
        finally:
            await engine.close()

    expected, _, _ = await run(**LARGE)
    cold, warm, engine = await run(num_blocks=24, max_num_blocks=2048)
    stats = engine.stats()
    assert stats.kv_growths >= 1 and stats.graph_recaptures == stats.kv_growths and stats.preemptions == 0
    assert len(ASKS) * BLOCKS > 24 and stats.cached_tokens > 0
    assert not wrong(cold, expected, ASKS) and not wrong(warm, expected, ASKS)


@pytest.mark.parametrize("kind", [EACH, GROUPS], ids=str)
async def test_answers_are_nearly_those_over_keys_and_values_in_full(models: Models, kind: Kind) -> None:
    """Teacher-forced: the same tokens are scored by both."""
    common = {"max_rows": 16, "flags": EAGER} | POOL | KV8
    texts = [[(first + 7 * place) % 500 for place in range(60)] for first in range(16)]
    params = SamplingParams(max_tokens=1, temperature=0, ignore_eos=True, prompt_logprobs=0)
    scores: dict[str, torch.Tensor] = {}
    for kept in ("bf16", "fp8"):
        engine = await started(models[kind], TOKENIZER, **(common | {"kv_dtype": kept}))
        try:
            result = await answers(engine, [Ask(text, params) for text in texts], together=True)
        finally:
            await engine.close()
        scores[kept] = torch.tensor([[item[0] for item in choices[0].prompt] for choices in result])
    difference = scores["fp8"] - scores["bf16"]
    assert scores["bf16"].shape == (16, 59) and difference.abs().max() > 0
    assert difference.abs().mean() < 0.05 and abs(float(difference.mean())) < 0.01


async def test_the_pool_holds_nearly_twice_the_tokens(models: Models) -> None:
    blocks: dict[str, int] = {}
    common = {"max_rows": 16, "max_batched_tokens": 256, "kv_bytes": 32 << 20, "flags": EAGER} | KV8
    for kept in ("auto", "fp8"):
        engine = await started(models[GROUPS], TOKENIZER, **(common | {"kv_dtype": kept}))
        blocks[kept] = engine.stats().blocks_total
        await engine.close()
    assert 1.9 < blocks["fp8"] / blocks["auto"] < 2.0  # 64 channels: 128 bytes against 66


def test_what_cannot_be_had(models: Models) -> None:
    served = models[GROUPS]

    def engine(**config: object) -> AsyncEngine:
        settings = {"max_rows": 4, "num_blocks": 64, "kv_dtype": "fp8"} | config
        return AsyncEngine(served, TOKENIZER, msgspec.convert(settings, EngineConfig))

    with pytest.raises(Unavailable, match=r"--attention-backend fa2: "):
        engine(attention_backend="fa2")
    with pytest.raises(ValueError, match="kv_dtype is fp8, but kernels of your own"):
        engine(
            flags={
                "use_clustered_attention_kernel": True,
                "clustered_attention_impl": "kernels.clustered_attention",
            }
        )
    whole = GPT(served.config).to("cuda", torch.float32)
    with pytest.raises(ValueError, match="kv_dtype is fp8, but the model is in float32"):
        AsyncEngine(whole, TOKENIZER, EngineConfig(kv_dtype="fp8", num_blocks=64))


async def test_a_key_that_is_no_number_ends_its_own_row_only() -> None:
    """A token's embedding is spoilt, so its keys are, too; the rows beside it go on."""
    model = made(*EACH)
    model.transformer.wte.weight.data[501] = float("nan")  # type: ignore[union-attr, operator, index]
    good = Ask([3, 4, 5, 6], SamplingParams(max_tokens=12, temperature=0, ignore_eos=True, logprobs=BEST))
    bad = Ask([3, 501, 5], SamplingParams(max_tokens=12, temperature=0, ignore_eos=True))
    engine = await started(model, TOKENIZER, max_rows=16, **POOL, **KV8)
    try:
        ((expected,),) = await answers(engine, [good], together=False)
        (ours,), (failed,) = await answers(engine, [good, bad], together=True)
        assert failed.finish is not None and failed.finish.reason == "error" and not failed.tokens
        assert agree(ours, expected, TOLERANCE)
        # Its blocks are somebody else's now.
        results = await answers(engine, [good] * 4, together=True)
        assert all(agree(choice, expected, TOLERANCE) for (choice,) in results)
    finally:
        await engine.close()
