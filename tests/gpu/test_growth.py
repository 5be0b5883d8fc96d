"""Row C1 on a GPU: the KV pool moves while streams run, and no graph replays where it has been.

The answers are compared with those of a pool that is large enough, as tests/gpu/test_engine.py does.
"""

import asyncio
from collections.abc import Iterator

import pytest
import torch

from engine.async_engine import AsyncEngine
from engine.core import EngineCore
from engine.gpu.cache import PagedKV
from engine.gpu.runner import GpuRunner
from engine.messages import EngineConfig, Request, SamplingParams
from engine.model import GPT
from tests.engine.checkpoints import make_model
from tests.engine.serving import Answer, Ask, answers, read, started
from tests.gpu.test_engine import BEST, TOKENIZER, TOLERANCE, VOCAB, agree, apart, without_logprobs

COMMON = {"max_rows": 16, "max_batched_tokens": 256}
LARGE = {"num_blocks": 2048}
PROMPT, NEW = 30, 120  # two blocks each at the start, ten at the end
BLOCKS = -(-(PROMPT + NEW - 1) // 16)


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=str)
def served(request: pytest.FixtureRequest) -> Iterator[GPT]:
    model = make_model(
        "G3",
        1,
        sequence_len=64,
        vocab_size=VOCAB,
        n_layer=3,
        n_head=4,
        n_kv_head=2,
        n_embd=256,
        window_pattern="SSL",
    )
    copy = GPT(model.config)
    copy.load_state_dict(model.state_dict())
    yield copy.to("cuda", request.param).requires_grad_(False).eval()


def ask(first: int, length: int = PROMPT, new: int = NEW) -> Ask:
    prompt = [(first + 7 * place) % 500 for place in range(length)]
    params = SamplingParams(max_tokens=new, temperature=0, ignore_eos=True, logprobs=BEST)
    return Ask(prompt, params)


ASKS = [ask(first) for first in range(8)]


def gpu_runner(engine: AsyncEngine) -> GpuRunner:
    runner = engine.core.runner
    assert isinstance(runner, GpuRunner)
    return runner


def assert_agree(served: GPT, result: list[list[Answer]], expected: list[list[Answer]]) -> None:
    tolerance = TOLERANCE[next(served.parameters()).dtype]
    far = {
        index: apart(ours, theirs, tolerance)
        for index, ((ours,), (theirs,)) in enumerate(zip(result, expected, strict=True))
        if not agree(ours, theirs, tolerance)
    }
    assert not far


async def run(
    served: GPT, asks: list[Ask], **config: object
) -> tuple[list[list[Answer]], tuple[int, int, int]]:
    """The answers; growths, recaptures and preemptions."""
    engine = await started(served, TOKENIZER, **(COMMON | config))
    try:
        result = await answers(engine, asks, together=True)
        engine.core.scheduler.check()
        stats = engine.stats()
        assert (stats.running, stats.waiting, stats.blocks_used) == (0, 0, 0)
        return result, (stats.kv_growths, stats.graph_recaptures, stats.preemptions)
    finally:
        await engine.close()


@pytest.fixture(scope="module")
def expected(served: GPT) -> list[list[Answer]]:
    result, _ = asyncio.run(run(served, ASKS, **LARGE))
    return result


async def test_c1_a_pool_that_holds_everything_never_moves(served: GPT, expected: list[list[Answer]]) -> None:
    result, counts = await run(served, ASKS, num_blocks=len(ASKS) * BLOCKS, max_num_blocks=2048)
    assert_agree(served, result, expected)
    assert counts == (0, 0, 0)


@pytest.mark.parametrize("plain", [True, False], ids=["plain", "logprobs"])
@pytest.mark.parametrize("lookahead", [True, False])
async def test_c1_growth_in_the_middle_of_decoding(
    served: GPT,
    expected: list[list[Answer]],
    lookahead: bool,
    plain: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All eight decode when blocks run out, after some tokens and long before their last ones."""
    before: list[tuple[int, int]] = []  # steps and tokens at the growth
    original = EngineCore.grown

    def grown(self: EngineCore, blocks: int, seconds: float) -> None:
        stats = self.stats()
        before.append((stats.steps, stats.generated_tokens))
        original(self, blocks, seconds)

    monkeypatch.setattr(EngineCore, "grown", grown)
    engine = await started(
        served, TOKENIZER, num_blocks=24, max_num_blocks=2048, lookahead=lookahead, **COMMON
    )
    runner = gpu_runner(engine)
    captured = runner.graphs
    wanted = [without_logprobs(a) if plain else a for a in ASKS]
    try:
        streams = [
            engine.submit(Request(id=engine.next_id(1), prompt=a.prompt, params=a.params))[0] for a in wanted
        ]
        result = [[answer] for answer in await asyncio.gather(*map(read, streams))]
        stats = engine.stats()
        assert_agree(served, result, expected)
        ((begun, generated),) = before
        assert 0 < generated < len(ASKS) * NEW, "in the middle of the answers"
        assert stats.steps - begun >= 6, "and steps ran behind it"
        assert (stats.kv_growths, stats.graph_recaptures, stats.preemptions) == (1, 1, 0)
        assert stats.blocks_total == 24 + 64
        assert 0 < runner.graphs < captured, "only what is used is captured again"
        engine.core.scheduler.check()
        # The same again, over a warm prefix cache and graphs that stay.
        graphs = runner.graphs
        assert_agree(served, await answers(engine, wanted, together=True), expected)
        assert engine.stats().graph_recaptures == engine.stats().kv_growths
        assert runner.graphs >= graphs or engine.stats().kv_growths > 1
    finally:
        await engine.close()


async def test_c1_growth_again_and_again_while_streams_come_and_go(
    served: GPT, expected: list[list[Answer]]
) -> None:
    """Large blocks, so that a step of growth is small: as many recaptures as growths, nobody preempted."""
    config = {"block_size": 128, "num_blocks": 1, "max_num_blocks": 64, "enable_prefix_caching": False}
    engine = await started(served, TOKENIZER, **(COMMON | config))
    try:
        for count in (1, 2, 5, 8):
            result = await answers(engine, ASKS[:count], together=True)
            assert_agree(served, result, expected[:count])
        result = await answers(engine, ASKS * 2, together=True)
        assert_agree(served, result, expected * 2)
        stats = engine.stats()
        assert stats.kv_growths >= 2 and stats.preemptions == 0
        assert stats.graph_recaptures == stats.kv_growths
        engine.core.scheduler.check()
    finally:
        await engine.close()


async def test_c1_a_cached_prefix_is_good_after_growth(served: GPT) -> None:
    prompt = ask(3, 64, 8)
    engine = await started(served, TOKENIZER, num_blocks=10, max_num_blocks=2048, **COMMON)
    try:
        before = await answers(engine, [prompt], together=False)
        await answers(engine, [ask(9, 150, 40)], together=False)  # longer than the whole pool
        assert engine.stats().kv_growths == engine.stats().graph_recaptures == 1
        cached = engine.stats().cached_tokens
        after = await answers(engine, [prompt], together=False)
        assert_agree(served, after, before)
        assert engine.stats().cached_tokens - cached == 48
    finally:
        await engine.close()


@pytest.mark.parametrize("moved", [0, 1])
async def test_c1_growth_without_memory_harms_nobody(
    served: GPT, expected: list[list[Answer]], monkeypatch: pytest.MonkeyPatch, moved: int
) -> None:
    """Memory gives out at the first layer, or when one has moved: then the graphs go, and the pool stays."""
    original = PagedKV._move

    def move(self: PagedKV, index: int, blocks: int) -> None:
        if index == moved:
            raise torch.OutOfMemoryError("CUDA out of memory")
        original(self, index, blocks)

    monkeypatch.setattr(PagedKV, "_move", move)
    result, (growths, recaptures, preemptions) = await run(served, ASKS, num_blocks=24, max_num_blocks=2048)
    assert_agree(served, result, expected)
    assert (growths, recaptures) == (0, moved) and preemptions > 0


def test_c1_a_largest_pool_beyond_memory_is_refused(served: GPT) -> None:
    config = EngineConfig(num_blocks=16, max_num_blocks=1 << 31, max_rows=4, max_batched_tokens=64)
    with pytest.raises(ValueError, match=r"max_num_blocks: 2147483648 KV blocks.*memory holds \d+ in"):
        AsyncEngine(served, TOKENIZER, config)
