"""Growth of the KV pool under the GPU's runner, on a device that is made up.

A step is some arithmetic over the real paged cache. Its graphs do what real ones do: they hold the tensors
that they were captured with, and a replay reads and writes those, wherever the cache has gone meanwhile.
"""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch

from engine import async_engine
from engine.backend import Backend
from engine.gpu import runner as gpu_runner
from engine.gpu.cache import PagedKV
from engine.gpu.graphs import Buckets
from engine.gpu.inputs import RING, StepInputs, StepShape
from engine.gpu.memory import RESERVE
from engine.gpu.runner import GpuRunner, Landing
from engine.gpu.staging import StepStaging
from engine.messages import EngineConfig, SamplingParams
from engine.model import GPT
from engine.plan import Plan
from tests.engine.checkpoints import make_model
from tests.engine.serving import Ask, answers, started
from tests.seed.test_k_stubs import FiveMethods

CPU, ROWS, TOKENS, BLOCK, LAYERS, VOCAB = torch.device("cpu"), 4, 64, 16, 3, 512
FREE = 1 << 40


class Graph:
    """A list of what was called between its capture's begin and end."""

    capturing: ClassVar["Graph | None"] = None

    def __init__(self) -> None:
        self.calls: list[Callable[[], None]] = []

    def capture_begin(self, pool: object, capture_error_mode: str) -> None:
        assert Graph.capturing is None
        Graph.capturing = self

    def capture_end(self) -> None:
        Graph.capturing = None

    def replay(self) -> None:
        assert self.calls, "the graph was reset"
        for call in self.calls:
            call()

    def reset(self) -> None:
        self.calls = []


class Rows:
    """Per row: its block table as launched steps know it, its length, its last token."""

    def __init__(self) -> None:
        self.tables: list[list[int]] = [[] for _ in range(ROWS)]
        self.lengths, self.last = [0] * ROWS, [0] * ROWS

    def stage(self, plan: Plan, terminal_ids: tuple[int, ...]) -> None:
        for chunk in plan.chunks:
            self.tables[chunk.row] = list(chunk.block_table)

    def needs_full(self, plan: Plan) -> bool:
        return False


class Network:
    """The next token is a weighted sum over everything that the cache holds of a sequence."""

    def __init__(self, cache: PagedKV) -> None:
        self.cache = cache
        self.rows = Rows()
        self.weights = SimpleNamespace(vocab_size=VOCAB)
        self.results = torch.zeros(RING, 2, ROWS, dtype=torch.int32)
        self.steps = 0
        self.eager: list[StepShape] = []
        self.captured: list[StepShape] = []

    def step(self, shape: StepShape, inputs: StepInputs, full: bool) -> None:
        layers = list(self.cache.layers)  # the addresses that a graph keeps

        def call() -> None:
            self.compute(inputs, layers)

        if Graph.capturing is not None:
            self.captured.append(shape)
            Graph.capturing.calls.append(call)
        else:
            self.eager.append(shape)
            call()

    def compute(self, inputs: StepInputs, layers: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
        rows, places = self.rows, {}
        columns = (inputs.token_rows, inputs.token_ids, inputs.token_positions)
        for token, (row, id, position) in enumerate(zip(*(c.tolist() for c in columns), strict=True)):
            if row < 0:
                continue
            position = rows.lengths[row] if position < 0 else position
            id = rows.last[row] if id < 0 else id
            block, place = rows.tables[row][position // BLOCK], position % BLOCK
            for layer, (keys, values) in enumerate(layers):
                keys[block, place], values[block, place] = id + layer, id + 1
            places[token] = row, position
        result = self.results[self.steps % RING]
        self.steps += 1
        for entry, token in enumerate(inputs.entry_tokens.tolist()):
            if token >= 0:
                row, position = places[token]
                sampled = self.sample(rows.tables[row], position, layers)
                result[:, entry] = torch.tensor([sampled, 1], dtype=torch.int32)
                rows.last[row], rows.lengths[row] = sampled, position + 1

    def sample(self, table: list[int], position: int, layers: list[tuple[torch.Tensor, torch.Tensor]]) -> int:
        weights = torch.arange(1, position + 2, dtype=torch.float64)
        total = 0
        for keys, values in layers:
            for pool in (keys, values):
                flat = pool[torch.tensor(table)].flatten(0, 1)[: position + 1, 0, 0].double()
                total += int((flat * weights).sum())
        return total * 31 % (VOCAB - 10)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, int]]:
    """As much of torch.cuda as the runner calls. The dict says how many bytes are free."""
    free = {"bytes": FREE}

    class Stream:
        device = CPU

        def __init__(self, device: object = None) -> None: ...
        def wait_event(self, event: object) -> None: ...

    class Event:
        def record(self) -> None: ...
        def synchronize(self) -> None: ...
        def elapsed_time(self, other: object) -> float:
            return 1.0

    def landing(entries: int) -> Landing:
        ints, floats = torch.zeros(2, entries, dtype=torch.int32), torch.zeros(entries)
        return Landing(ints, floats, ints, floats, Event(), Event(), Event())  # type: ignore[arg-type]

    monkeypatch.setattr(gpu_runner.Landing, "allocate", landing)
    for name, value in {
        "Stream": Stream,
        "Event": Event,
        "CUDAGraph": Graph,
        "stream": lambda stream: nullcontext(),
        "graph_pool_handle": lambda: (0, 1),
        "synchronize": lambda device=None: None,
        "set_device": lambda device: None,
        "empty_cache": lambda: None,
        "mem_get_info": lambda device: (free["bytes"], FREE),
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    yield free
    Graph.capturing = None


@pytest.fixture(scope="module")
def model() -> GPT:
    return make_model(
        "G1", 1, sequence_len=256, vocab_size=VOCAB, n_layer=1, n_head=1, n_kv_head=1, n_embd=16
    )


def ask(length: int, new: int, first: int) -> Ask:
    params = SamplingParams(max_tokens=new, ignore_eos=True)
    return Ask([(first + 7 * place) % 500 for place in range(length)], params)


ASKS = [ask(40, 60, 1), ask(5, 90, 2), ask(70, 40, 3), ask(20, 70, 4)]


@pytest.fixture
def runs(
    cuda: dict[str, int], model: GPT, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[list[list[int]], "async_engine.AsyncEngine"]]:
    """Serves all asks with a pool of so many blocks; the tokens, and the engine when all is over."""

    def build(model: GPT, tokenizer: object, config: EngineConfig, *rest: object) -> Backend:
        blocks = 1 + (config.num_blocks or 0)
        network = Network(PagedKV(LAYERS, blocks, BLOCK, 1, 2, torch.float32, CPU))
        staging = StepStaging(Buckets.up_to(ROWS, TOKENS), CPU)
        graphs = config.flags.get("use_cuda_graphs", True)
        runner = GpuRunner(network, staging, (), torch.cuda.Stream(), bool(graphs))  # type: ignore[arg-type]
        runner.capture()
        most = 1 + (config.max_num_blocks or blocks - 1)
        return Backend(runner, CPU, torch.float32, blocks, most, BLOCK, ROWS, TOKENS, 256, 1, [])

    monkeypatch.setattr(async_engine, "_build", build)

    def run(**config: object) -> tuple[list[list[int]], async_engine.AsyncEngine]:
        async def serve() -> tuple[list[list[int]], async_engine.AsyncEngine]:
            engine = await started(model, FiveMethods(), **config)
            result = await answers(engine, ASKS, together=True)
            engine.core.scheduler.check()
            await engine.close()
            return [answer.tokens for (answer,) in result], engine

        return asyncio.run(serve())

    return run


def network_of(engine: "async_engine.AsyncEngine") -> Network:
    network = engine.core.runner.network  # type: ignore[attr-defined]
    assert isinstance(network, Network)
    return network


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
