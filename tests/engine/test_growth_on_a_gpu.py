"""Growth of the KV pool under the GPU's runner, on a device that is made up (tests.engine.made_up_gpu)."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import pytest
import torch

from engine import async_engine
from engine.gpu.cache import PagedKV
from engine.gpu.graphs import Buckets
from engine.gpu.memory import RESERVE
from engine.gpu.paths import Paths
from engine.gpu.runner import GpuRunner
from engine.messages import SamplingParams
from engine.model import GPT
from kernels.kv8 import Scales
from kernels.step_spec import StepPath
from tests.engine.made_up_gpu import CPU, ROWS, TOKENS, Kernels, made_up, network_of, serve_with, tiny_model
from tests.engine.serving import Ask, answers, started
from tests.seed.test_k_stubs import FiveMethods


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, int]]:
    with made_up(monkeypatch) as free:
        yield free


@pytest.fixture(scope="module")
def model() -> GPT:
    return tiny_model()


def ask(length: int, new: int, first: int) -> Ask:
    params = SamplingParams(max_tokens=new, ignore_eos=True)
    return Ask([(first + 7 * place) % 500 for place in range(length)], params)


ASKS = [ask(40, 60, 1), ask(5, 90, 2), ask(70, 40, 3), ask(20, 70, 4)]


@pytest.fixture
def runs(
    cuda: dict[str, int], model: GPT, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[list[list[int]], "async_engine.AsyncEngine"]]:
    """Serves all asks with a pool of so many blocks; the tokens, and the engine when all is over."""

    serve_with(monkeypatch)

    def run(**config: object) -> tuple[list[list[int]], async_engine.AsyncEngine]:
        async def serve() -> tuple[list[list[int]], async_engine.AsyncEngine]:
            engine = await started(model, FiveMethods(), **config)
            result = await answers(engine, ASKS, together=True)
            engine.core.scheduler.check()
            await engine.close()
            return [answer.tokens for (answer,) in result], engine

        return asyncio.run(serve())

    return run


@pytest.mark.parametrize("lookahead", [True, False])
def test_growth_forgets_every_graph_and_captures_what_is_used(
    runs: Callable[..., tuple[list[list[int]], "async_engine.AsyncEngine"]], lookahead: bool
) -> None:
    expected, engine = runs(num_blocks=200, max_num_blocks=400, lookahead=lookahead)
    assert [len(tokens) for tokens in expected] == [60, 90, 40, 70]
    shapes = set(Buckets.up_to(ROWS, TOKENS).shapes())
    network, stats = network_of(engine), engine.stats()
    assert len(network.captured) == len(shapes) and not network.eager
    assert (stats.kv_growths, stats.graph_recaptures) == (0, 0)

    tokens, engine = runs(num_blocks=12, max_num_blocks=400, lookahead=lookahead)
    network, stats = network_of(engine), engine.stats()
    assert tokens == expected
    assert (stats.kv_growths, stats.graph_recaptures, stats.preemptions) == (1, 1, 0)
    again = network.captured[len(shapes) :]
    assert not network.eager, "what was captured before is compiled"
    assert len(again) == len(set(again)) < len(shapes), "each once, and only those that were needed"
    assert network.cache.blocks == engine.core.scheduler.pool.num_blocks == 1 + 12 + 64


def test_a_graph_that_is_not_forgotten_would_be_noticed(
    runs: Callable[..., tuple[list[list[int]], "async_engine.AsyncEngine"]], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, _ = runs(num_blocks=200)
    monkeypatch.setattr(GpuRunner, "forget_graphs", lambda self: None)
    tokens, _ = runs(num_blocks=12, max_num_blocks=400)
    assert tokens != expected


def test_without_graphs_nothing_is_captured_again(
    runs: Callable[..., tuple[list[list[int]], "async_engine.AsyncEngine"]],
) -> None:
    expected, _ = runs(num_blocks=200)
    tokens, engine = runs(num_blocks=12, max_num_blocks=400, flags={"use_cuda_graphs": False})
    assert tokens == expected
    assert (engine.stats().kv_growths, engine.stats().graph_recaptures) == (1, 0)
    assert not network_of(engine).captured


@pytest.mark.parametrize("binds", [True, False])
@pytest.mark.parametrize("lookahead", [True, False])
def test_growth_binds_the_paths_again(
    runs: Callable[..., tuple[list[list[int]], "async_engine.AsyncEngine"]],
    monkeypatch: pytest.MonkeyPatch,
    lookahead: bool,
    binds: bool,
) -> None:
    """Kernels that stay with the old pages would be noticed."""
    expected, _ = runs(num_blocks=200)
    kernels = Kernels(most_binds=None if binds else 1)
    table: dict[int, StepPath] = {1: "persistent", 2: "chained", 4: "chained"}
    serve_with(monkeypatch, lambda: Paths(kernels.failed, kernels, table))
    tokens, engine = runs(num_blocks=12, max_num_blocks=400, lookahead=lookahead)
    stats = engine.stats()
    assert (tokens == expected) is binds and kernels.launches >= 10
    assert (stats.kv_growths, stats.graph_recaptures, stats.path_failures, kernels.binds) == (1, 1, 0, 2)


def test_paths_are_bound_on_the_stream_of_the_steps(
    runs: Callable[..., tuple[list[list[int]], "async_engine.AsyncEngine"]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What they write down of the pages must be there when the next step begins."""
    entered: list[object] = []
    seen: list[list[object]] = []

    @contextmanager
    def stream(entering: object) -> Iterator[None]:
        entered.append(entering)
        yield
        entered.pop()

    class Bound(Kernels):
        def bind(
            self, pages: Sequence[tuple[torch.Tensor, torch.Tensor]], scales: Sequence[Scales | None] = ()
        ) -> None:
            seen.append(list(entered))
            super().bind(pages, scales)

    monkeypatch.setattr(torch.cuda, "stream", stream)
    kernels = Bound()
    serve_with(monkeypatch, lambda: Paths(kernels.failed, kernels, {1: "persistent"}))
    _, engine = runs(num_blocks=12, max_num_blocks=400)
    runner = engine.core.runner
    assert isinstance(runner, GpuRunner) and engine.stats().kv_growths == 1
    assert [inside[-1:] for inside in seen] == [[runner._stream]] * 2


def test_too_little_memory_is_noticed_before_anything_moves(
    runs: Callable[..., tuple[list[list[int]], "async_engine.AsyncEngine"]], cuda: dict[str, int]
) -> None:
    expected, _ = runs(num_blocks=200)
    cuda["bytes"] = RESERVE + (1 << 12)
    tokens, engine = runs(num_blocks=12, max_num_blocks=400)
    network, stats = network_of(engine), engine.stats()
    assert tokens == expected
    assert (stats.kv_growths, stats.graph_recaptures) == (0, 0) and stats.preemptions > 0
    assert network.cache.moves == 0 and stats.blocks_total == 12


def test_memory_that_gives_out_half_way_harms_nobody(
    runs: Callable[..., tuple[list[list[int]], "async_engine.AsyncEngine"]], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, _ = runs(num_blocks=200)
    original = PagedKV._move

    def move(self: PagedKV, index: int, blocks: int) -> None:
        if index == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        original(self, index, blocks)

    monkeypatch.setattr(PagedKV, "_move", move)
    tokens, engine = runs(num_blocks=12, max_num_blocks=400)
    network, stats = network_of(engine), engine.stats()
    assert tokens == expected
    assert (stats.kv_growths, stats.graph_recaptures) == (0, 1) and stats.preemptions > 0
    assert (network.cache.moves, network.cache.blocks, stats.blocks_total) == (1, 13, 12)


def test_a_cache_moves_with_its_contents() -> None:
    cache = PagedKV(2, 3, 4, 2, 8, torch.float32, CPU)
    for keys, values in cache.layers:
        keys.normal_()
        values.normal_()
    before = [(keys.clone(), values.clone()) for keys, values in cache.layers]
    one_block = 2 * 4 * 2 * 8 * 4
    assert cache.bytes_to_grow(7) == (2 * 4 + 3) * one_block
    strides = cache.layers[0][0].stride()
    cache.grow(7)
    assert (cache.blocks, cache.moves) == (7, 2)
    for (keys, values), (keys_then, values_then) in zip(cache.layers, before, strict=True):
        assert keys.shape == values.shape == (7, 4, 2, 8) and keys.stride() == strides
        assert torch.equal(keys[:3], keys_then) and torch.equal(values[:3], values_then)
        assert not keys[3:].any() and not values[3:].any()
