"""The GPU's runner on a device that is made up.

A step is some arithmetic over the real paged cache. Its graphs do what real ones do: they hold the tensors
that they were captured with, and a replay reads and writes those, wherever the cache has gone meanwhile.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
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
from engine.gpu.paths import Paths
from engine.gpu.runner import MAX_LOGPROBS, GpuRunner, Landing
from engine.gpu.staging import StepStaging
from engine.messages import EngineConfig
from engine.model import GPT
from engine.plan import Plan
from kernels.kv8 import Scales
from kernels.step_spec import StepPath
from kernels.triton.step import LOST
from tests.engine.checkpoints import make_model

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


@dataclass
class Kernels:
    """Of the decode paths: they know the pages that they are bound to, and fail at one step, counted from 0.

    launches: of which each is a step by a path, replays included. most_binds: after so many they stay with
    what they know.
    """

    fails_at: int | None = None
    most_binds: int | None = None
    failed: torch.Tensor = field(default_factory=lambda: torch.zeros(1, dtype=torch.int32))
    max_rows: dict[StepPath, int] = field(default_factory=dict)
    pages: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)
    binds: int = 0
    launches: int = 0

    def prepare(self, path: StepPath, rows: int) -> None: ...

    def bind(
        self, pages: Sequence[tuple[torch.Tensor, torch.Tensor]], scales: Sequence[Scales | None] = ()
    ) -> None:
        if self.most_binds is None or self.binds < self.most_binds:
            self.pages = list(pages)
        self.binds += 1

    def step(self, path: StepPath, **inputs: torch.Tensor) -> None:
        raise AssertionError("the made-up network runs the step")

    def launch(self) -> None:
        if self.launches == self.fails_at:
            self.failed.fill_(1)
        self.launches += 1


class Network:
    """The next token is a weighted sum over everything that the cache holds of a sequence.

    From the step on at which the kernels of a path fail, what paths compute is wrong: keys, values, tokens.
    """

    def __init__(self, cache: PagedKV, paths: Paths | None = None) -> None:
        self.cache = cache
        self.paths = paths or Paths.none(CPU)
        self.rows = Rows()
        self.weights = SimpleNamespace(vocab_size=VOCAB)
        self.results = torch.zeros(RING, 2, ROWS, dtype=torch.int32)
        self.steps = 0
        self.eager: list[StepShape] = []
        self.captured: list[StepShape] = []

    def step(self, shape: StepShape, inputs: StepInputs, full: bool) -> None:
        layers = list(self.cache.layers)  # the addresses that a graph keeps
        self._queue(shape, lambda: self.compute(inputs, layers))

    def step_by_path(self, shape: StepShape, inputs: StepInputs, full: bool) -> None:
        kernels = self.paths.kernels
        assert isinstance(kernels, Kernels) and shape.tokens in self.paths.table
        layers = list(kernels.pages)

        def call() -> None:
            kernels.launch()
            self.compute(inputs, layers, wrong=bool(kernels.failed))

        self._queue(shape, call)

    def _queue(self, shape: StepShape, call: Callable[[], None]) -> None:
        if Graph.capturing is not None:
            self.captured.append(shape)
            Graph.capturing.calls.append(call)
        else:
            self.eager.append(shape)
            call()

    def compute(
        self, inputs: StepInputs, layers: list[tuple[torch.Tensor, torch.Tensor]], wrong: bool = False
    ) -> None:
        rows, places = self.rows, {}
        columns = (inputs.token_rows, inputs.token_ids, inputs.token_positions)
        for token, (row, id, position) in enumerate(zip(*(c.tolist() for c in columns), strict=True)):
            if row < 0:
                continue
            position = rows.lengths[row] if position < 0 else position
            id = (rows.last[row] if id < 0 else id) + 100 * wrong
            block, place = rows.tables[row][position // BLOCK], position % BLOCK
            for layer, (keys, values) in enumerate(layers):
                keys[block, place], values[block, place] = id + layer, id + 1
            places[token] = row, position
        result = self.results[self.steps % RING]
        result[1] = LOST.value * bool(self.paths.failed)
        self.steps += 1
        for entry, token in enumerate(inputs.entry_tokens.tolist()):
            if token >= 0:
                row, position = places[token]
                sampled = self.sample(rows.tables[row], position, layers)
                result[0, entry] = sampled
                result[1, entry] += 1
                rows.last[row], rows.lengths[row] = sampled, position + 1

    def sample(self, table: list[int], position: int, layers: list[tuple[torch.Tensor, torch.Tensor]]) -> int:
        weights = torch.arange(1, position + 2, dtype=torch.float64)
        total = 0
        for keys, values in layers:
            for pool in (keys, values):
                flat = pool[torch.tensor(table)].flatten(0, 1)[: position + 1, 0, 0].double()
                total += int((flat * weights).sum())
        return total * 31 % (VOCAB - 10)


@contextmanager
def made_up(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, int]]:
    """As much of torch.cuda as the runner calls. The dict says how many bytes are free."""
    free = {"bytes": FREE}

    class Stream:
        device = CPU

        def __init__(self, device: object = None) -> None: ...
        def wait_event(self, event: object) -> None: ...

    class Event:
        def record(self) -> None: ...
        def synchronize(self) -> None: ...
        def query(self) -> bool:
            return True

        def elapsed_time(self, other: object) -> float:
            return 1.0

    def landing(entries: int) -> Landing:
        def ints(*shape: int) -> torch.Tensor:
            return torch.zeros(shape, dtype=torch.int32)

        tops = ints(entries, MAX_LOGPROBS), torch.zeros(entries, MAX_LOGPROBS)
        return Landing(ints(2, entries), torch.zeros(entries), *tops, Event(), Event(), Event())  # type: ignore[arg-type]

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


def tiny_model() -> GPT:
    """Its weights do nothing here."""
    return make_model(
        "G1", 1, sequence_len=256, vocab_size=VOCAB, n_layer=1, n_head=1, n_kv_head=1, n_embd=16
    )


def serve_with(monkeypatch: pytest.MonkeyPatch, paths: Callable[[], Paths | None] = lambda: None) -> None:
    """Engines that are built from now on have the made-up network, with these paths."""

    def build(model: GPT, tokenizer: object, config: EngineConfig, *rest: object) -> Backend:
        blocks = 1 + (config.num_blocks or 0)
        network = Network(PagedKV(LAYERS, blocks, BLOCK, 1, 2, torch.float32, CPU), paths())
        staging = StepStaging(Buckets.up_to(ROWS, TOKENS), CPU)
        graphs = config.flags.get("use_cuda_graphs", True)
        runner = GpuRunner(network, staging, (), torch.cuda.Stream(), bool(graphs))  # type: ignore[arg-type]
        runner.capture()
        most = 1 + (config.max_num_blocks or blocks - 1)
        return Backend(runner, CPU, torch.float32, blocks, most, BLOCK, ROWS, TOKENS, 256, 1, [])

    monkeypatch.setattr(async_engine, "_build", build)


def network_of(engine: async_engine.AsyncEngine) -> Network:
    network = engine.core.runner.network  # type: ignore[attr-defined]
    assert isinstance(network, Network)
    return network
