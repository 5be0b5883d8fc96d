"""Row C1: a KV pool that grows. Rare, counted, and no answer depends on it.

Here on a CPU, where there are no graphs to capture again: that count stays 0, the other one tells.
tests/engine/test_growth_on_a_gpu.py and tests/gpu/test_growth.py are about graphs.
"""

import asyncio
import logging

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine import Engine
from engine.async_engine import AsyncEngine
from engine.memory import grown_pool
from engine.messages import EngineConfig, Request, SamplingParams
from engine.model import GPT
from engine.runner import ModelRunner
from kernels.attention import KVCache
from tests.app.server_process import GOLDEN, SERVER, finish, serving
from tests.e2e.api import connected, random_prompt
from tests.engine.checkpoints import make_model
from tests.engine.serving import Answer, Ask, answers, read, started
from tests.seed.test_k_stubs import FiveMethods

LARGE = {"max_rows": 4, "num_blocks": 512}


@pytest.fixture(scope="module")
def model() -> GPT:
    return make_model(
        "G3", 1, sequence_len=64, vocab_size=512, n_layer=3, n_head=4, n_kv_head=2, n_embd=64,
        window_pattern="SSL",
    )  # fmt: skip


def ask(length: int, new: int, first: int = 0, **params: object) -> Ask:
    values = {"temperature": 0, "ignore_eos": True, "logprobs": 2} | params
    prompt = [(first + 7 * place) % 500 for place in range(length)]
    return Ask(prompt, SamplingParams(max_tokens=new, **values))  # type: ignore[arg-type]


def content(result: list[list[Answer]]) -> list[tuple[object, ...]]:
    return [answer.content for choices in result for answer in choices]


async def run(
    model: GPT, asks: list[Ask], **config: object
) -> tuple[list[tuple[object, ...]], tuple[int, int, int]]:
    """The answers of an engine that gets all at once; growths, recaptures and preemptions."""
    engine = await started(model, FiveMethods(), **(LARGE | config))
    try:
        result = content(await answers(engine, asks, together=True))
        engine.core.scheduler.check()
        stats = engine.stats()
        assert (stats.running, stats.waiting, stats.blocks_used) == (0, 0, 0)
        return result, (stats.kv_growths, stats.graph_recaptures, stats.preemptions)
    finally:
        await engine.close()


ASKS = [ask(37, 40, 1), ask(5, 60, 2), ask(64, 30, 3, temperature=0.9, seed=5), ask(20, 50, 4)]
ENOUGH = sum(-(-(len(a.prompt) + a.params.max_tokens - 1) // 16) for a in ASKS)


@pytest.mark.parametrize("lookahead", [True, False])
async def test_c1_a_pool_that_holds_all_prompts_and_tokens_never_grows(model: GPT, lookahead: bool) -> None:
    """Not even where it holds just that."""
    expected, _ = await run(model, ASKS, lookahead=lookahead)
    result, counts = await run(model, ASKS, num_blocks=ENOUGH, max_num_blocks=512, lookahead=lookahead)
    assert result == expected
    assert counts == (0, 0, 0)


@pytest.mark.parametrize("lookahead", [True, False])
async def test_c1_forced_growth_happens_once_and_changes_no_answer(model: GPT, lookahead: bool) -> None:
    """Bit for bit, logprobs included; the smaller pool would have preempted."""
    expected, _ = await run(model, ASKS, lookahead=lookahead)
    _, (_, _, preemptions) = await run(model, ASKS, num_blocks=10, lookahead=lookahead)
    assert preemptions > 0
    result, counts = await run(model, ASKS, num_blocks=10, max_num_blocks=512, lookahead=lookahead)
    assert result == expected
    assert counts == (1, 0, 0)


async def test_c1_growth_in_the_middle_of_decoding(model: GPT) -> None:
    """Two prompts fit and their answers do not; tokens stream before, and go on behind it."""
    asks = [ask(30, 40, 1), ask(30, 40, 2)]
    expected, _ = await run(model, asks)
    engine = await started(model, FiveMethods(), max_rows=4, num_blocks=5, max_num_blocks=100)
    streams = [
        engine.submit(Request(id=engine.next_id(1), prompt=a.prompt, params=a.params))[0] for a in asks
    ]
    heads = [(await stream.next()).tokens for stream in streams]
    assert engine.stats().kv_growths == 0
    assert engine.stats().blocks_total == 5
    tails = [await read(stream) for stream in streams]
    stats = engine.stats()
    await engine.close()
    tokens = [tuple(head + tail.tokens) for head, tail in zip(heads, tails, strict=True)]
    assert tokens == [answer[0] for answer in expected]
    # Three blocks each do not fit five; a step is at least 1,024 tokens.
    assert (stats.kv_growths, stats.preemptions, stats.blocks_total) == (1, 0, 5 + 64)


async def test_c1_what_the_prefix_cache_knew_is_served_after_growth(model: GPT) -> None:
    engine = await started(model, FiveMethods(), max_rows=4, num_blocks=8, max_num_blocks=300)
    first = ask(64, 8, 3)
    try:
        before = await answers(engine, [first], together=False)
        await answers(engine, [ask(120, 40, 9)], together=False)  # larger than the whole pool
        assert engine.stats().kv_growths == 1
        again = await answers(engine, [first], together=False)
        assert content(again) == content(before)
        ends = [answer.finish for (answer,) in (*before, *again)]
        assert [end.cached_tokens for end in ends if end is not None] == [0, 48]
        engine.core.scheduler.check()
    finally:
        await engine.close()


async def test_c1_requests_beyond_the_first_pool_are_served_and_beyond_the_last_are_refused(
    model: GPT,
) -> None:
    engine = await started(model, FiveMethods(), max_rows=2, num_blocks=4, max_num_blocks=20)
    try:
        assert engine.info.num_blocks == 4 and engine.info.max_num_blocks == 20
        assert engine.info.max_model_len == 20 * 16 + 1
        rows = {name: row for name, *row in engine.info.features}
        assert rows["kv pool"] == ["4", "4 blocks", "grows to 20"]
        ((answer,),) = await answers(engine, [ask(200, 100)], together=False)
        assert len(answer.tokens) == 100
        stats = engine.stats()
        assert (stats.kv_growths, stats.blocks_total) == (1, 20)
        with pytest.raises(ValueError, match="at most 321"):
            engine.submit(Request(id=engine.next_id(1), prompt=[1] * 321, params=ASKS[0].params))
    finally:
        await engine.close()
    (plain,) = (row for row in (await _info(model, num_blocks=4)) if row[0] == "kv pool")
    assert plain == ("kv pool", "4", "4 blocks", "its size for good")


async def _info(model: GPT, **config: object) -> list[tuple[str, str, str, str]]:
    engine = await started(model, FiveMethods(), **config)
    await engine.close()
    return engine.info.features


def test_c1_a_pool_doubles_by_whole_pages_up_to_its_maximum() -> None:
    plain = {"block_size": 16, "page": None}
    assert grown_pool(1 + 500, 501, 1 + 9000, **plain) == 1 + 1000
    assert grown_pool(1 + 500, 3000, 1 + 9000, **plain) == 1 + 3000
    assert grown_pool(1 + 4, 5, 1 + 9000, **plain) == 1 + 4 + 64, "1,024 tokens"
    assert grown_pool(1 + 8000, 8001, 1 + 9000, **plain) == 1 + 9000
    assert grown_pool(1 + 4, 5, 1 + 9000, 16, 4096) == 1 + 512, "260 blocks are 4,160 tokens: two pages"
    assert grown_pool(1 + 1, 2, 1 + 9, 2048, None) == 1 + 2, "a block is a step, too"


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"num_blocks": 8, "max_num_blocks": 7}, "max_num_blocks 7 is less than num_blocks 8"),
        ({"max_num_blocks": 7}, "max_num_blocks 7 needs num_blocks"),
    ],
)
def test_c1_a_largest_pool_that_is_none_is_refused(model: GPT, config: dict[str, int], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        AsyncEngine(model, FiveMethods(), EngineConfig(**config))  # type: ignore[arg-type]


def test_c1_the_synchronous_engine_grows_too(model: GPT) -> None:
    def columns(**config: int) -> tuple[list[tuple[list[int], list[int]]], int]:
        settings = EngineConfig(profile="seed", max_rows=4, **config)
        with Engine(model, FiveMethods(), enable_batch_decode=True, config=settings) as engine:
            prompts = [[511, *range(40)], [511, 7, 9]]
            found = list(engine.generate_batched(prompts, max_tokens=60, temperature=0))
            return found, engine.stats().kv_growths

    expected, never = columns(num_blocks=512)
    result, growths = columns(num_blocks=4, max_num_blocks=512)
    assert result == expected
    assert (never, growths) == (0, 1)


# -- whatever comes


# prompt length, first token, new tokens, tokens after which the request is aborted
requests = st.lists(
    st.tuples(
        st.integers(1, 90),
        st.sampled_from([0, 1, 2]),
        st.integers(1, 60),
        st.sampled_from([None, None, 0, 3]),
    ),
    min_size=1,
    max_size=7,
)


async def _random(
    model: GPT, asks: list[tuple[int, int, int, int | None]], **config: object
) -> tuple[list[list[int] | None], tuple[int, int, int]]:
    engine = await started(model, FiveMethods(), **config)

    async def one(length: int, first: int, new: int, abort: int | None) -> list[int] | None:
        wanted = ask(length, new, first, logprobs=None)
        request = Request(id=engine.next_id(1), prompt=wanted.prompt, params=wanted.params)
        (stream,) = engine.submit(request)
        if abort is None:
            answer = await read(stream)
            assert answer.finish is not None and answer.finish.reason == "length", answer.finish
            return answer.tokens
        for _ in range(abort):
            if (await stream.next()).finish is not None:
                break
        engine.abort([stream.id])
        return None

    try:
        result = await asyncio.gather(*(one(*item) for item in asks))
        scheduler = engine.core.scheduler
        scheduler.check()
        stats = engine.stats()
        assert stats.blocks_used == 0 and scheduler.pool.free == scheduler.pool.usable == stats.blocks_total
        assert engine.core.runner.cache.keys.size(1) == scheduler.pool.num_blocks  # type: ignore[attr-defined]
        return result, (stats.kv_growths, stats.preemptions, stats.blocks_total)
    finally:
        await engine.close()


@settings(
    max_examples=40,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    asks=requests,
    start=st.integers(1, 12),
    block_size=st.sampled_from([4, 16]),
    most=st.sampled_from([60, 2000]),
    caching=st.booleans(),
    lookahead=st.booleans(),
)
@pytest.mark.slow
def test_c1_random_requests_over_a_tiny_pool(
    model: GPT,
    asks: list[tuple[int, int, int, int | None]],
    start: int,
    block_size: int,
    most: int,
    caching: bool,
    lookahead: bool,
) -> None:
    """The answers are those of a large pool; nobody is preempted before the maximum is reached, and with room
    for everybody there, never.
    """
    common = {
        "max_rows": 4, "block_size": block_size, "enable_prefix_caching": caching, "lookahead": lookahead,
    }  # fmt: skip
    expected, _ = asyncio.run(_random(model, asks, num_blocks=2000, **common))
    grown, (_, preemptions, total) = asyncio.run(
        _random(model, asks, num_blocks=start, max_num_blocks=most, **common)
    )
    assert grown == expected
    assert preemptions == 0 or total == most
    if most == 2000:
        assert preemptions == 0


# -- without memory


def failing(self: KVCache, blocks: int) -> None:
    raise RuntimeError(f"DefaultCPUAllocator: can't allocate memory for {blocks} blocks")


@pytest.mark.parametrize("why", ["can't allocate memory", "0.00 free"])
async def test_c1_growth_without_memory_leaves_the_pool_and_preemption(
    model: GPT, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, why: str
) -> None:
    """Whether the allocator fails, or would be given what the machine has not."""
    expected, _ = await run(model, ASKS)
    if "free" in why:
        monkeypatch.setattr("engine.runner.free_memory", lambda: 4096)
    else:
        monkeypatch.setattr(KVCache, "grow", failing)
    with caplog.at_level(logging.WARNING, "fastpath.engine"):
        result, (growths, recaptures, preemptions) = await run(model, ASKS, num_blocks=10, max_num_blocks=512)
    assert result == expected
    assert (growths, recaptures) == (0, 0) and preemptions > 0
    (record,) = [record for record in caplog.records if "could not grow" in record.message]
    assert "stays at 10" in record.message and why in record.message


async def test_c1_without_memory_only_what_does_not_fit_fails(
    model: GPT, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what is too long by its limit alone ends where the pool does, as in any pool of that size."""
    monkeypatch.setattr(KVCache, "grow", failing)
    engine = await started(model, FiveMethods(), max_rows=4, num_blocks=6, max_num_blocks=512)
    try:
        asks = [ask(20, 30, 1), ask(97, 5, 2), ask(90, 30, 3), ask(9, 9, 4)]
        small, long, cut, other = (choices[0] for choices in await answers(engine, asks, together=True))
        assert (len(small.tokens), len(cut.tokens), len(other.tokens)) == (30, 7, 9)
        assert long.finish is not None and long.finish.reason == "error"
        assert "could not grow" in (long.finish.message or "")
        with pytest.raises(ValueError, match="at most 97"):
            engine.submit(Request(id=engine.next_id(1), prompt=[1] * 97, params=asks[0].params))
        engine.core.scheduler.check()
        assert engine.stats().blocks_total == 6
    finally:
        await engine.close()


@pytest.mark.parametrize("close", [False, True])
async def test_c1_requests_may_come_and_go_while_the_pool_grows(
    model: GPT, monkeypatch: pytest.MonkeyPatch, close: bool
) -> None:
    """Who aborts meanwhile is gone, who comes is served behind it, and the engine can be closed."""
    engine = await started(model, FiveMethods(), max_rows=4, num_blocks=4, max_num_blocks=100)
    growing, go_on = asyncio.Event(), asyncio.Event()
    original = ModelRunner.grow

    async def slow(self: ModelRunner, blocks: int) -> None:
        growing.set()
        await go_on.wait()
        await original(self, blocks)

    monkeypatch.setattr(ModelRunner, "grow", slow)
    long = ask(90, 9)
    (stream,) = engine.submit(Request(id=engine.next_id(1), prompt=long.prompt, params=long.params))
    await growing.wait()
    if close:
        await engine.close()
        end = (await read(stream)).finish
        assert end is not None and end.reason == "error"
        return
    late = asyncio.ensure_future(answers(engine, [ask(5, 5)], together=True))
    await asyncio.sleep(0)
    engine.abort([stream.id])
    go_on.set()
    ((answer,),) = await late
    assert len(answer.tokens) == 5
    engine.core.scheduler.check()
    assert engine.stats().blocks_used == 0
    await engine.close()


def test_c1_a_cache_that_grows_keeps_its_contents() -> None:
    cache = KVCache.allocate(2, 3, 4, 1, 8, torch.float32, "cpu")
    cache.keys.normal_()
    cache.values.normal_()
    before = cache.keys.clone(), cache.values.clone()
    cache.grow(7)
    for now, then, slots in zip(
        (cache.keys, cache.values), before, zip(*cache.slots, strict=True), strict=True
    ):
        assert torch.equal(now[:, :3], then) and not now[:, 3:].any()
        assert [s.data_ptr() for s in slots] == [layer.data_ptr() for layer in now]
        assert all(s.shape == (28, 8) for s in slots)


# -- over HTTP


async def test_c1_a_server_serves_more_than_it_started_with() -> None:
    flags = ["--device", "cpu", "--dtype", "float32", "--threads", "1"]
    pool = ["--num-blocks", "4", "--max-num-blocks", "300"]
    prompt = random_prompt(100, 1)
    found: list[list[int]] = []
    for more in (["--num-blocks", "300"], pool):
        with serving(SERVER, str(GOLDEN), *flags, *more) as server:
            async with connected(server) as api:
                answer = await api.complete(prompt, max_tokens=30, temperature=0, ignore_eos=True)
                found.append(answer.tokens)
                growths = await api.metric("fastpath_kv_pool_growths_total")
                assert growths == (more is pool)
                assert await api.metric("fastpath_graph_recaptures_total") == 0
                blocks = 4 + 64 if more is pool else 300
                assert await api.metric("fastpath_kv_blocks") == blocks
                stats = await api.stats()
                assert (stats["kv_growths"], stats["blocks_total"]) == (growths, blocks)
                (card,) = (await api.http.get("/v1/models")).json()["data"]
                assert (card["meta"]["num_blocks"], card["meta"]["max_num_blocks"]) == (blocks, 300)
    assert len(found[0]) == 30 and found[0] == found[1]


@pytest.mark.parametrize(
    ("flags", "environment", "said"),
    [
        (
            ["--num-blocks", "8", "--max-num-blocks", "7"],
            {},
            "--max-num-blocks 7 is less than --num-blocks 8",
        ),
        (["--max-num-blocks", "7"], {}, "--max-num-blocks 7 needs --num-blocks"),
        ([], {"APP_MAX_NUM_BLOCKS": "0"}, "APP_MAX_NUM_BLOCKS: 0 is less than 1"),
    ],
)
def test_c1_a_server_refuses_bad_pools_before_it_listens(
    flags: list[str], environment: dict[str, str], said: str
) -> None:
    done = finish([*SERVER, str(GOLDEN), "--port", "0", *flags], **environment)
    assert done.returncode == 2, done.stderr
    assert said in done.stderr and "listening" not in done.stderr
