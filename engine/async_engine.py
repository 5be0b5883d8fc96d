"""The engine on an event loop: a request queue, and a step loop that never blocks on the device.

    plan N+1, launch N+1   |   await N   |   look at N's tokens, emit its frame   |   plan N+2 ...

Used in the engine process (frames go to a socket through `on_frame`) and directly in any loop (`submit`,
`generate`).
"""

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable, Iterable

import torch

from engine.blocks import BlockPool
from engine.checkpoint import CheckpointMeta
from engine.core import EngineCore
from engine.memory import pool_blocks
from engine.messages import (
    Delta,
    EngineConfig,
    EngineState,
    EngineStats,
    EngineUnavailable,
    Frame,
    ModelInfo,
    Request,
    StreamRouter,
    TokenStream,
)
from engine.model import GPT, pack_for_serving
from engine.prefix import PrefixCache
from engine.runner import ModelRunner, StepHandle
from engine.scheduler import Scheduler, SchedulerConfig
from engine.terminals import NanochatTokenizer, terminal_ids
from kernels.attention import KVCache

MIN_MODEL_LEN = 1024
DEFAULT_BLOCK_SIZE = 16
ROWS_ON_CPU = 8
ROWS_ON_CUDA = 256


class AsyncEngine:
    """Serves one model. Implements EngineClient for its own loop.

    model: its projections are copied into a packed form, so the caller may drop it. tokenizer: anything with
    nanochat's five methods. meta: what the loader knows beyond the weights. Call `start` before the first
    request and `close` at the end, both on the loop.
    """

    def __init__(
        self,
        model: GPT,
        tokenizer: NanochatTokenizer,
        config: EngineConfig | None = None,
        meta: CheckpointMeta | None = None,
    ) -> None:
        self.config = config = config or EngineConfig()
        weight = next(model.parameters())
        device, dtype = weight.device, weight.dtype
        max_rows = config.max_rows or (ROWS_ON_CUDA if device.type == "cuda" else ROWS_ON_CPU)
        max_model_len = _max_model_len(model, config)
        block_size = config.block_size or model.config.kv_block_size or DEFAULT_BLOCK_SIZE
        blocks = pool_blocks(model.config, config, block_size, max_rows, max_model_len, dtype, device)
        # A sequence can never be longer than the pool; its last token is not read back and needs no place.
        max_model_len = min(max_model_len, (blocks - 1) * block_size + 1)
        terminals = tuple(meta.terminal_ids) if meta and meta.terminal_ids else terminal_ids(tokenizer)
        served = pack_for_serving(model)
        shape = model.config
        cache = KVCache.allocate(
            shape.n_layer, blocks, block_size, shape.n_kv_head, shape.head_dim, dtype, device
        )
        pool = BlockPool(blocks, block_size, spread=-(-max_model_len // block_size))
        scheduler = Scheduler(
            SchedulerConfig(
                max_rows=max_rows,
                max_batched_tokens=max(config.max_batched_tokens, max_rows),
                max_model_len=max_model_len,
                batching=config.batching,
                max_chunk=config.max_chunk,
                batch_timeout=config.batch_timeout_ms / 1000,
            ),
            pool,
            PrefixCache(pool, enabled=config.enable_prefix_caching),
        )
        threads = config.threads or torch.get_num_threads()
        runner = ModelRunner(served, cache, max_rows, terminals, threads)
        self.core = EngineCore(scheduler, runner, tokenizer, terminals)
        self.on_frame: Callable[[Frame], None] | None = None
        self.info = self._describe(model, served, meta, threads)
        self._router = StreamRouter()
        self._ids = itertools.count(1)
        self._state = EngineState.LOADING
        self._work = asyncio.Event()
        self._emit_scheduled = False
        self._task: asyncio.Task[None] | None = None

    def _describe(self, model: GPT, served: GPT, meta: CheckpointMeta | None, threads: int) -> ModelInfo:
        """What the front end is told; call it when `core` stands."""
        scheduler, cache = self.core.scheduler, self.core.runner.cache
        limits, pool = scheduler.config, scheduler.pool
        return ModelInfo(
            name=self.config.served_name or (meta.name if meta else "fastpath"),
            path=str(meta.path) if meta else "",
            generation=model.config.generation,
            vocab_size=model.config.vocab_size,
            max_model_len=limits.max_model_len,
            terminal_ids=list(self.core.terminal_ids),
            max_rows=limits.max_rows,
            block_size=pool.block_size,
            num_blocks=pool.usable,
            device=str(cache.keys.device),
            dtype=str(cache.keys.dtype).removeprefix("torch."),
            parameters=model.parameter_count(),
            weights_bytes=sum(p.numel() * p.element_size() for p in model.parameters()),
            sampling_defaults=meta.sampling_defaults if meta else {},
            features=_features(self.config, served, limits.max_rows, threads),
            created=int(time.time()),
        )

    # -- EngineClient
    # ------------------------------------------------------------------------------------------

    @property
    def state(self) -> EngineState:
        return self._state

    async def start(self) -> None:
        """Starts the step loop on the running event loop."""
        self._task = asyncio.create_task(self._run(), name="step loop")
        self._state = EngineState.READY

    async def close(self) -> None:
        """Stops the step loop; open streams end with an error."""
        self._state = EngineState.DEAD
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await asyncio.to_thread(self.core.runner.close)  # a step may still run
        self._router.fail_all("the engine was closed")

    async def wait_closed(self) -> None:
        """Returns when the step loop has ended; raises what ended it. A step's failure does not."""
        if self._task is not None:
            await asyncio.shield(self._task)

    def next_id(self, n: int) -> int:
        first = next(self._ids)
        for _ in range(n - 1):
            next(self._ids)
        return first

    def submit(self, request: Request) -> list[TokenStream]:
        """Queues a request. Raises EngineUnavailable, or ValueError for a request that can never be
        served.
        """
        if self._state is not EngineState.READY:
            raise EngineUnavailable(f"the engine is {self._state}")
        streams = self._router.open(request)
        try:
            self.enqueue(request)
        except ValueError:
            self._router.close(stream.id for stream in streams)
            raise
        return streams

    def enqueue(self, request: Request) -> None:
        """Queues a request whose tokens go to `on_frame`. Raises ValueError, naming the field."""
        self.core.add(request)
        self._emit_soon()
        self._work.set()

    def abort(self, streams: Iterable[int]) -> None:
        ids = list(streams)
        self._router.close(ids)
        self.core.abort(ids)
        self._emit_soon()
        self._work.set()

    def stats(self) -> EngineStats:
        return self.core.stats()

    async def generate(self, request: Request) -> AsyncIterator[Delta]:
        """The deltas of a request with one choice, the last one with its finish. Leaving early aborts it."""
        if request.n != 1:
            raise ValueError("generate serves one choice; use submit for n > 1")
        (stream,) = self.submit(request)
        try:
            while True:
                delta = await stream.next()
                yield delta
                if delta.finish is not None:
                    return
        finally:
            self.abort([stream.id])

    # -- the loop
    # ----------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        in_flight: StepHandle | None = None
        try:
            while True:
                launched = self.core.launch() if self.config.lookahead or in_flight is None else None
                if in_flight is not None:
                    await self._collect(in_flight)
                elif launched is None:
                    await self._wait_for_work()
                in_flight = launched
        except Exception:
            self._state = EngineState.DEAD
            self._router.fail_all("the engine's step loop failed")
            raise

    async def _collect(self, handle: StepHandle) -> None:
        try:
            result = await self.core.runner.collect(handle)
        except Exception as error:  # the step's own failure ends its sequences, not the engine
            self.core.fail(handle.plan, error)
        else:
            self.core.process(handle.plan, result)
        self._emit()

    async def _wait_for_work(self) -> None:
        """Sleeps until a request or abort comes, or the gather window closes."""
        wake_at = self.core.scheduler.wake_at()
        self._work.clear()
        if wake_at is None:
            await self._work.wait()
            return
        delay = wake_at - time.monotonic()
        if delay > 0:
            try:
                async with asyncio.timeout(delay):
                    await self._work.wait()
            except TimeoutError:
                pass

    def _emit_soon(self) -> None:
        """Changes without a step are told too, once per turn of the loop."""
        if not self._emit_scheduled:
            self._emit_scheduled = True
            asyncio.get_running_loop().call_soon(self._emit)

    def _emit(self) -> None:
        self._emit_scheduled = False
        frame = self.core.take_frame()
        if frame is None:
            return
        if self.on_frame is not None:
            self.on_frame(frame)
        else:
            self._router.dispatch(frame)


def _max_model_len(model: GPT, config: EngineConfig) -> int:
    """A model trained on little context is served with 1,024 all the same: its rotary table covers ten times
    that of its training. Raises ValueError for more than the table.
    """
    covered = model.config.rope_len
    if config.max_model_len is None:
        return max(model.config.sequence_len, min(MIN_MODEL_LEN, covered))
    if not 2 <= config.max_model_len <= covered:
        raise ValueError(
            f"max_model_len {config.max_model_len} is outside 2..{covered}, the model's rotary table"
        )
    return config.max_model_len


def _features(
    config: EngineConfig, served: GPT, max_rows: int, threads: int
) -> list[tuple[str, str, str, str]]:
    """The start-up table: feature, asked for, used, why."""
    packed = getattr(served.lm_head, "packed", False)
    return [
        ("attention", "auto", "paged reference (torch)", "no faster kernel for this device yet"),
        (
            "linear",
            "auto",
            "oneDNN packed" if packed else "torch",
            "rows are bit-equal in any batch" if packed else "no packed layout for this device or dtype",
        ),
        ("batching", config.batching, config.batching, f"up to {max_rows} rows"),
        ("prefix cache", str(config.enable_prefix_caching), str(config.enable_prefix_caching), "as asked"),
        ("lookahead", str(config.lookahead), str(config.lookahead), "as asked"),
        ("cpu threads", str(config.threads or "auto"), str(threads), "torch's intra-op threads"),
    ]
