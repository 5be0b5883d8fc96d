"""Captured steps: one CUDA graph per step shape, replayed with whatever the device buffers hold.

Shapes are bucketed: a step runs in the smallest bucket that holds it, and the rest of the bucket is padding
that reads and writes nothing. Below 32 rows decoding is bound by the weights, so padding is free there.
"""

import bisect
import contextlib
import gc
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import torch

from engine.gpu.inputs import StepInputs, StepShape, device_inputs

DECODE_BUCKETS = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 80, 96, 112, 128, 160, 192, 224, 256)
# At most a quarter of a bucket is padding, an eighth on average: prefill is bound by arithmetic.
SMALL_STEPS = (16, 32, 64, 96, 128, 192, 256, 320, 384, 448, 512, 640, 768, 896, 1024, 1280, 1536, 1792, 2048)
LARGE_STEPS = (2560, 3072, 3584, 4096, 5120, 6144, 7168, 8192)
TOKEN_BUCKETS = (*SMALL_STEPS, *LARGE_STEPS)


@dataclass(frozen=True, slots=True)
class Buckets:
    """Sizes of steps that graphs exist for: `decode` rows of pure decode steps, `tokens` of the others.
    short: of those decode sizes that have a second graph, how many keys a row of its steps has at most.
    """

    decode: tuple[int, ...]
    tokens: tuple[int, ...]
    max_rows: int
    short: Mapping[int, int] = field(default_factory=dict)

    @classmethod
    def up_to(
        cls, max_rows: int, max_tokens: int, short_keys: Callable[[int], int] = lambda rows: 0
    ) -> "Buckets":
        """short_keys: see kernels.backends.base.short_keys."""
        decode = [size for size in DECODE_BUCKETS if size < max_rows]
        decode += range(320, max_rows, 64)
        tokens = [size for size in TOKEN_BUCKETS if size < max_tokens]
        tokens += range(10240, max_tokens, 2048)
        short = {size: keys for size in (*decode, max_rows) if (keys := short_keys(size))}
        return cls((*decode, max_rows), (*tokens, max_tokens), max_rows, short)

    def decode_shape(self, rows: int, keys: Callable[[], int] | None = None) -> StepShape:
        """keys: what the longest row has, if that is known; asked where it matters."""
        size = self.decode[bisect.bisect_left(self.decode, rows)]
        short = keys is not None and size in self.short and keys() <= self.short[size]
        return StepShape(size, size, size, 0, short)

    def mixed_shape(self, tokens: int) -> StepShape:
        size = self.tokens[bisect.bisect_left(self.tokens, tokens)]
        rows = min(size, self.max_rows)
        return StepShape(size, rows, rows, rows)

    def shapes(self) -> list[StepShape]:
        """Largest first, the order of capture: later ones then fit into what the first took."""
        mixed = [self.mixed_shape(size) for size in reversed(self.tokens)]
        decode = [
            self.decode_shape(size, keys)
            for size in reversed(self.decode)
            for keys in ((None, lambda: 0) if size in self.short else (None,))
        ]
        return [*mixed, *decode]


Step = Callable[[StepShape, StepInputs, bool], None]


class GraphPool:
    """Runs `step` for a shape: as a graph's replay where there is one.

    A shape that was not captured at start runs eagerly the first time, which compiles what is still missing,
    and is captured the second time. One whose graph was forgotten is captured again when it is next needed:
    what it needs is compiled, and nobody waits for shapes that nobody uses. enabled False: everything runs
    eagerly.
    """

    def __init__(self, step: Step, buffer: torch.Tensor, enabled: bool) -> None:
        """buffer: the packed inputs of this pool's steps (engine.gpu.inputs)."""
        self._step = step
        self._buffer = buffer
        self.enabled = enabled
        self._inputs: dict[StepShape, StepInputs] = {}
        self._graphs: dict[tuple[StepShape, bool], torch.cuda.CUDAGraph] = {}
        self._warm: set[tuple[StepShape, bool]] = set()
        self._pool = torch.cuda.graph_pool_handle() if enabled else None

    def __len__(self) -> int:
        return len(self._graphs)

    def run(self, shape: StepShape, full: bool) -> None:
        """Queues the step on the current stream, which must not be the default one."""
        graph = self._graphs.get((shape, full))
        if graph is None and self.enabled and (shape, full) in self._warm:
            graph = self._capture(shape, full)
        if graph is not None:
            graph.replay()
            return
        self._warm.add((shape, full))
        self._step(shape, self.inputs_of(shape), full)

    def prepare(self, shapes: list[StepShape]) -> None:
        """Captures these shapes without special parameters, if enabled. What they need must be compiled."""
        for shape in shapes if self.enabled else ():
            if (shape, False) not in self._graphs:
                self._capture(shape, full=False)

    def clear(self) -> None:
        """Forgets every graph: the addresses baked into them change."""
        self._warm.update(self._graphs)
        for graph in self._graphs.values():
            graph.reset()
        self._graphs.clear()
        if self.enabled:
            self._pool = torch.cuda.graph_pool_handle()  # the old one went with its last graph

    def inputs_of(self, shape: StepShape) -> StepInputs:
        inputs = self._inputs.get(shape)
        if inputs is None:
            inputs = self._inputs[shape] = device_inputs(self._buffer, shape)
        return inputs

    def _capture(self, shape: StepShape, full: bool) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        with _collector_paused():
            # Thread-local: the thread that waits for results may go on with its calls meanwhile.
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                self._step(shape, self.inputs_of(shape), full)
            except BaseException:
                with contextlib.suppress(RuntimeError):  # it would hide what went wrong
                    graph.capture_end()
                raise
            graph.capture_end()
        self._graphs[(shape, full)] = graph
        return graph


@contextlib.contextmanager
def _collector_paused() -> Iterator[None]:
    """Garbage may hold graphs, events and pinned memory, and to free those ends a capture with an error."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
