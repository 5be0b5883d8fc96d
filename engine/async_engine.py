"""The engine on an event loop: a request queue, and a step loop that never blocks on the device.

    plan N+1, launch N+1   |   await N   |   look at N's tokens, emit its frame   |   plan N+2 ...

Used in the engine process (frames go to a socket through `on_frame`) and directly in any loop (`submit`,
`generate`).
"""

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path

import msgspec

from engine.backend import Backend, Feature, short
from engine.blocks import BlockPool
from engine.calibration import passages
from engine.checkpoint import CheckpointMeta
from engine.core import EngineCore
from engine.decoder import Decoder, weight_of
from engine.estimator import default_stretch
from engine.fastpath import FlagUnavailable, named, refuse, refuse_path, resident_path
from engine.flags import Resolved, Setting, check_weights, resolve
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
    check_pool,
)
from engine.prefix import PrefixCache
from engine.scheduler import Scheduler, SchedulerConfig
from engine.steps import StepHandle
from engine.terminals import NanochatTokenizer, terminal_ids
from engine.trace import Tracer


class AsyncEngine:
    """Serves one model. Implements EngineClient for its own loop.

    model: its projections are copied into a packed form, so the caller may drop it. consume: nobody else
    needs the model any more; on a GPU what is copied of a Llama is freed before memory is shared out.
    tokenizer: anything with nanochat's five methods. meta: what the loader knows beyond the weights. Call
    `start` before the first request and `close` at the end, both on the loop.
    """

    def __init__(
        self,
        model: Decoder,
        tokenizer: NanochatTokenizer,
        config: EngineConfig | None = None,
        meta: CheckpointMeta | None = None,
        *,
        consume: bool = False,
    ) -> None:
        self.config = config = config or EngineConfig()
        terminals = tuple(meta.terminal_ids) if meta and meta.terminal_ids else terminal_ids(tokenizer)
        hints = meta.hints if meta is not None else {}
        flags = resolve(model.config, config.profile, _asked(config), hints)
        check_weights(config.weight_dtype, flags.values)
        check_pool(config.num_blocks, config.max_num_blocks)
        config = msgspec.structs.replace(
            config, block_size=flags.values.kv_block_size, kv_page_size=flags.values.kv_page_size
        )
        stored = meta.stored if meta is not None else ""
        self.backend = backend = _build(model, tokenizer, config, flags, terminals, consume, stored)
        pool = BlockPool(backend.blocks, backend.block_size, backend.spread, backend.max_blocks)
        scheduler = Scheduler(
            SchedulerConfig(
                max_rows=backend.max_rows,
                max_batched_tokens=max(backend.max_batched_tokens, backend.max_rows),
                # A sequence can never be longer than the largest pool; its last token is not read back and
                # needs no place.
                max_model_len=min(backend.max_model_len, (pool.max_blocks - 1) * pool.block_size + 1),
                batching=config.batching,
                max_chunk=config.max_chunk,
                batch_timeout=config.batch_timeout_ms / 1000,
                prefill_stretch=default_stretch(config.prefill_stretch, backend.device.type),
            ),
            pool,
            PrefixCache(pool, enabled=config.enable_prefix_caching),
        )
        tracer = Tracer(Path(config.trace)) if config.trace is not None else None
        page = config.kv_page_size or model.config.kv_page_size
        self.core = EngineCore(scheduler, backend.runner, tokenizer, terminals, tracer, page)
        self.on_frame: Callable[[Frame], None] | None = None
        self.info = self._describe(model, meta)
        self._router = StreamRouter()
        self._ids = itertools.count(1)
        self._state = EngineState.LOADING
        self.fault: Exception | None = None  # why the step loop ended
        self._work = asyncio.Event()
        self._emit_scheduled = False
        self._task: asyncio.Task[None] | None = None

    def _describe(self, model: Decoder, meta: CheckpointMeta | None) -> ModelInfo:
        """What the front end is told; call it when `core` stands."""
        scheduler, backend = self.core.scheduler, self.backend
        limits, pool = scheduler.config, scheduler.pool
        return ModelInfo(
            name=self.config.served_name or (meta.name if meta else "fastpath"),
            path=str(meta.path) if meta and meta.path else "",
            generation=model.config.generation,
            vocab_size=model.config.vocab_size,
            max_model_len=limits.max_model_len,
            terminal_ids=list(self.core.terminal_ids),
            max_rows=limits.max_rows,
            block_size=pool.block_size,
            num_blocks=pool.usable,
            max_num_blocks=pool.max_blocks - 1,
            device=str(backend.device),
            dtype=backend.kept or short(backend.dtype),
            parameters=model.parameter_count(),
            weights_bytes=backend.weights_bytes
            or sum(p.numel() * p.element_size() for p in model.parameters()),
            sampling_defaults=meta.sampling_defaults if meta else {},
            features=[*backend.features, *_features(self.config, limits, pool)],
            memory=backend.memory,
            created=int(time.time()),
        )

    # -- EngineClient
    # ------------------------------------------------------------------------------------------

    @property
    def state(self) -> EngineState:
        return self._state

    async def start(self) -> None:
        """Starts the step loop on the running event loop."""
        loop = asyncio.get_running_loop()

        def wake() -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(self._work.set)

        self.core.forms.wake = wake
        self._task = asyncio.create_task(self._run(), name="step loop")
        self._state = EngineState.READY

    async def close(self) -> None:
        """Stops the step loop; open streams end with an error."""
        self._state = EngineState.DEAD
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await asyncio.to_thread(self.core.runner.close)  # a step may still run
        await asyncio.to_thread(self.core.forms.close)
        if self.core.tracer is not None:
            self.core.tracer.close()
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
                if in_flight is None and self.core.wants_blocks:
                    await self._grow()
                # Nothing may be in flight when the pool moves, so nothing is launched ahead of that.
                ahead = self.config.lookahead and not self.core.wants_blocks
                launched = self.core.launch() if ahead or in_flight is None else None
                if launched is not None and launched.plan.admitted:
                    self._emit_soon()  # who got a row is told while the step runs
                if in_flight is not None:
                    await self._collect(in_flight)
                elif launched is None and not self.core.wants_blocks:
                    self._emit()  # what could not be launched has ended
                    await self._wait_for_work()
                in_flight = launched
        except Exception as error:
            self._state, self.fault = EngineState.DEAD, error
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

    async def _grow(self) -> None:
        """Between two steps. Requests may come and go meanwhile, but nothing is launched."""
        blocks = self.core.next_size()
        started = time.perf_counter()
        try:
            await self.core.runner.grow(blocks)
        except Exception as error:  # most likely there is no memory: then the pool is as it was
            self.core.growth_failed(blocks, error)
        else:
            self.core.grown(blocks, time.perf_counter() - started)
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
        started = time.perf_counter()
        if self.on_frame is not None:
            self.on_frame(frame)
        else:
            self._router.dispatch(frame)
        if self.core.tracer is not None:
            self.core.tracer.emitted(started, time.perf_counter(), len(frame.tokens))


def _asked(config: EngineConfig) -> dict[str, Setting]:
    """The flags that were asked for, those with a setting of their own among them. Raises ValueError where
    the two disagree.
    """
    asked = dict(config.flags)
    for name, value in (("kv_block_size", config.block_size), ("kv_page_size", config.kv_page_size)):
        if value is None:
            continue
        if asked.get(name, value) != value:
            raise ValueError(f"{name} is asked for twice, as {asked[name]} and as {value}")
        asked[name] = value
    return asked


def _build(
    model: Decoder,
    tokenizer: NanochatTokenizer,
    config: EngineConfig,
    flags: Resolved,
    terminal_ids: tuple[int, ...],
    consume: bool,
    stored: str,
) -> Backend:
    """Kernels of the user's own are called by the plain runner, on whatever device."""
    weight = weight_of(model)
    refuse(flags, weight.device.type, weight.dtype)
    config = msgspec.structs.replace(
        config, decode_path=resident_path(flags, weight.device.type, config.decode_path)
    )
    if config.decode_path in ("chained", "persistent"):
        refuse_path(config.decode_path, flags, weight.device.type)
    if weight.device.type == "cuda" and not flags.hooked("cuda"):
        from engine.gpu.build import build as build_gpu  # triton is loaded only where it is used

        prompts = passages(tokenizer, model.config.vocab_size) if flags.values.use_te_weight_only else []
        try:
            return build_gpu(model, config, flags, terminal_ids, consume, prompts)
        except FlagUnavailable as error:
            raise named(flags, "cuda", error) from error
    from engine.cpu import build as build_cpu

    return build_cpu(model, config, flags, terminal_ids, stored)


def _features(config: EngineConfig, limits: SchedulerConfig, pool: BlockPool) -> list[Feature]:
    """The part of the start-up table that is about scheduling."""
    stretch, most = limits.prefill_stretch, pool.max_blocks - 1
    asked = "auto" if config.prefill_stretch is None else f"{config.prefill_stretch:g}"
    return [
        (
            "prefill stretch",
            asked,
            f"{stretch:g}" if stretch else "off",
            f"{limits.max_batched_tokens} tokens a step",
        ),
        ("batching", config.batching, config.batching, f"up to {limits.max_rows} rows"),
        ("prefix cache", str(config.enable_prefix_caching), str(config.enable_prefix_caching), "as asked"),
        (
            "kv pool",
            str(config.num_blocks or "auto"),
            f"{pool.usable} blocks",
            f"grows to {most}" if pool.may_grow else "its size for good",
        ),
        ("lookahead", str(config.lookahead), str(config.lookahead), "as asked"),
    ]
