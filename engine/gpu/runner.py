"""Runs steps on a GPU: everything is queued from the loop, nothing waits there.

`launch` stages what changed, replays the step's graph and queues the copy of its tokens on a second stream;
one thread waits for that copy and wakes the loop. A row's last token and length stay on the device, so a step
that continues the same rows sends nothing at all.
"""

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import torch

from engine.faults import PathFailed
from engine.gpu.graphs import GraphPool
from engine.gpu.inputs import RING, StepShape
from engine.gpu.memory import check_room
from engine.gpu.network import Network
from engine.gpu.scoring import PromptScores, ScoreBuffers, queue_scores
from engine.gpu.staging import Staged, StepStaging
from engine.plan import Chunk, Plan
from engine.steps import NOT_FINITE, SampledToken, StepHandle, StepResult
from kernels.step_spec import StepPath
from kernels.triton.precompile import CAN_NOTE, compile_all, missing
from kernels.triton.step import LOST

MAX_LOGPROBS = 20

_LOST = int(LOST.value)
_log = logging.getLogger("fastpath.engine")


@dataclass(slots=True)
class Landing:
    """Pinned memory and events of one step's results; a ring of them is used in turn.

    tokens: [2, entries] int32, the sampled ids and whether they are valid; LOST on top of that where the step
    counts for nothing. began: the end of the step before where that still ran, for each event holds the
    device up a little; else `started`.
    """

    tokens: torch.Tensor
    logprobs: torch.Tensor
    top_ids: torch.Tensor
    top_logprobs: torch.Tensor
    started: torch.cuda.Event
    ended: torch.cuda.Event
    landed: torch.cuda.Event
    began: torch.cuda.Event = field(init=False)

    def __post_init__(self) -> None:
        self.began = self.started

    @classmethod
    def allocate(cls, entries: int) -> "Landing":
        def pinned(*shape: int, dtype: torch.dtype) -> torch.Tensor:
            return torch.zeros(shape, dtype=dtype, pin_memory=True)

        return cls(
            pinned(2, entries, dtype=torch.int32),
            pinned(entries, dtype=torch.float32),
            pinned(entries, MAX_LOGPROBS, dtype=torch.int32),
            pinned(entries, MAX_LOGPROBS, dtype=torch.float32),
            torch.cuda.Event(enable_timing=True),  # type: ignore[no-untyped-call]
            torch.cuda.Event(enable_timing=True),  # type: ignore[no-untyped-call]
            torch.cuda.Event(),  # type: ignore[no-untyped-call]
        )

    def begin_behind(self, previous: torch.cuda.Event) -> None:
        """Before anything of this step is queued. previous: behind the step in front."""
        self.began = self.started if previous.query() else previous  # type: ignore[no-untyped-call]
        if self.began is self.started:
            self.started.record()


class GpuRunner:
    """One model on one GPU. All methods but those named otherwise run on the loop's thread."""

    def __init__(
        self,
        network: Network,
        staging: StepStaging,
        terminal_ids: tuple[int, ...],
        stream: torch.cuda.Stream,
        use_graphs: bool,
    ) -> None:
        self.network = network
        self.vocab_size = network.weights.vocab_size
        self._staging = staging
        self._terminal_ids = terminal_ids
        self._stream = stream
        self._copies = torch.cuda.Stream(stream.device)  # type: ignore[no-untyped-call]
        self._decode_graphs = GraphPool(network.step, staging.decode, use_graphs)
        self._path_graphs = GraphPool(network.step_by_path, staging.decode, use_graphs)
        self._mixed_graphs = GraphPool(network.step, staging.mixed, use_graphs)
        self._landings = [Landing.allocate(staging.buckets.max_rows) for _ in range(RING)]
        self._scores = [ScoreBuffers(network) for _ in range(RING)]
        self._launched = 0
        self.graph_recaptures = self.path_failures = 0
        self.early_masks = True  # they are uploaded in front of the step
        self._plain: dict[int, SampledToken] = {}  # most results are a bare token: one object for each
        self._waiter = ThreadPoolExecutor(1, "results", torch.cuda.set_device, (stream.device,))

    def launch(self, plan: Plan) -> StepHandle:
        network, slot = self.network, self._launched % RING
        landing, before = self._landings[slot], self._landings[slot - 1]
        with torch.cuda.stream(self._stream), torch.inference_mode():
            landing.begin_behind(before.ended)
            network.rows.stage(plan, self._terminal_ids)
            staged = self._staging.stage(plan)
            full = network.rows.needs_full(plan)
            self._run(staged, plan, full)
            self._launched += 1  # as the device's own counter: what fails later must not put them apart
            landing.ended.record()
            if full:
                self._land_logprobs(landing, staged.entries)
            scores = None
            if plan.scored:
                scores = queue_scores(network, plan, self._scores[slot])
                landing.ended.record()
        self._land_tokens(landing, slot)
        return StepHandle(plan, self._waiter.submit(self._await, landing, staged.entries, scores))

    def _graphs_for(self, staged: Staged, plan: Plan) -> GraphPool:
        if not staged.decode:
            return self._mixed_graphs
        # The paths write logits for every token in order, and nothing that prompts could be scored with.
        in_order = len(staged.entries) == len(plan.chunks) and not plan.scored
        return self._path_graphs if in_order and self._by_path(staged.shape) else self._decode_graphs

    def _run(self, staged: Staged, plan: Plan, full: bool) -> None:
        graphs, shape = self._graphs_for(staged, plan), staged.shape
        if shape.short and graphs is self._path_graphs:  # that form of attention is none of the paths'
            shape = shape._replace(short=False)
        graphs.run(shape, full)

    def path_of(self, rows: int) -> StepPath:
        """What steps of so many decoding rows go by now."""
        return self.network.paths.table.get(self._staging.buckets.decode_shape(rows).tokens, "graph")

    def _by_path(self, shape: StepShape) -> bool:
        return shape.tokens in self.network.paths.table

    async def collect(self, handle: StepHandle) -> StepResult:
        try:
            return await asyncio.wrap_future(handle.future)
        except PathFailed as error:
            error.known = not self.leave_paths()
            raise

    def leave_paths(self) -> bool:
        """Nothing goes by the paths any more. False where that has been so before.

        Their graphs stay until the pool grows: one of them may be running.
        """
        with torch.cuda.stream(self._stream), torch.inference_mode():
            first = self.network.paths.leave()
        if first:
            self.path_failures += 1
            _log.warning(
                "the kernels of a decode path gave up: every step goes by the plain kernels from now on, and "
                "what was under way is computed again"
            )
        return first

    async def grow(self, blocks: int) -> None:
        """On the waiter thread: memory is given out and copied without the loop."""
        await asyncio.wrap_future(self._waiter.submit(self._grow, blocks))

    def _grow(self, blocks: int) -> None:
        cache, device = self.network.cache, self._stream.device
        assert cache is not None
        check_room(device, cache.bytes_to_grow(blocks))
        moves, graphs = cache.moves, self.graphs
        try:
            with torch.cuda.stream(self._stream):
                cache.grow(blocks)
        finally:
            if cache.moves > moves:  # all layers or, where memory gave out after all, some
                self.forget_graphs()
                with torch.cuda.stream(self._stream):  # in front of the next step, and not beside it
                    self.network.paths.bind(cache)
                self.graph_recaptures += graphs > 0
            torch.cuda.empty_cache()  # old layers, and what the graphs took

    def close(self) -> None:
        self._waiter.shutdown(wait=True, cancel_futures=True)
        torch.cuda.synchronize(self._stream.device)

    def compile(self) -> int:
        """Compiles what steps of any shape need, all at once, and returns how many kernels that were.

        Call it before the first capture, in which nothing can be compiled or loaded, and the first step.
        """
        mixed, decode = self._shapes()
        with torch.cuda.stream(self._stream), torch.inference_mode():
            self._staging.clear()
            with missing() as found:
                for graphs, shapes in ((self._mixed_graphs, mixed), (self._decode_graphs, decode)):
                    for shape in shapes:
                        self.network.rehearse(shape, graphs.inputs_of(shape))
            torch.cuda.synchronize(self._stream.device)
            count = compile_all(found, self._stream.device)
            if count < len(found) or not CAN_NOTE:
                # One by one then, each where it is first launched; what cannot be compiled says so there.
                for graphs, shapes in ((self._mixed_graphs, mixed), (self._decode_graphs, decode)):
                    for shape in shapes:
                        self.network.step(shape, graphs.inputs_of(shape), False)
                torch.cuda.synchronize(self._stream.device)
            self.network.step_counter.zero_()
        return count

    def force(self, plan: Plan) -> None:
        """Runs a step outside of any graph and waits for it. Its results go nowhere; call it while no other
        step is on its way.
        """
        network = self.network
        with torch.cuda.stream(self._stream), torch.inference_mode():
            network.rows.stage(plan, self._terminal_ids)
            staged = self._staging.stage(plan)
            graphs = self._decode_graphs if staged.decode else self._mixed_graphs
            network.step(staged.shape, graphs.inputs_of(staged.shape), False)
            network.step_counter.sub_(1)  # it is not one of the steps that were launched
        self._stream.synchronize()

    def capture(self, largest_only: bool = False) -> None:
        """Captures every bucket, or the largest of both kinds. Call it before the first step."""
        mixed, decode = self._shapes()
        by_path = decode
        if largest_only:
            mixed, decode = mixed[:1], decode[:1]
        with torch.cuda.stream(self._stream), torch.inference_mode():
            self._staging.clear()
            torch.cuda.synchronize(self._stream.device)
            assert self.network.cache is not None
            self.network.paths.bind(self.network.cache)
            self._mixed_graphs.prepare(mixed)
            self._decode_graphs.prepare(decode)
            self._path_graphs.prepare([s for s in by_path if self._by_path(s) and not s.short])
        torch.cuda.synchronize(self._stream.device)

    def _shapes(self) -> tuple[list[StepShape], list[StepShape]]:
        """Of mixed and of pure decode steps."""
        shapes = self._staging.buckets.shapes()
        return [shape for shape in shapes if shape.chunks], [shape for shape in shapes if not shape.chunks]

    def forget_graphs(self) -> None:
        """For when an address that is baked into the graphs changes; no step may be in flight."""
        torch.cuda.synchronize(self._stream.device)
        self._decode_graphs.clear()
        self._path_graphs.clear()
        self._mixed_graphs.clear()

    @property
    def graphs(self) -> int:
        return len(self._decode_graphs) + len(self._path_graphs) + len(self._mixed_graphs)

    # -- results
    # -----------------------------------------------------------------------------------------------

    def _land_tokens(self, landing: Landing, slot: int) -> None:
        """Copies the step's tokens to the host behind it, on a stream of their own."""
        self._copies.wait_event(landing.ended)
        with torch.cuda.stream(self._copies):
            landing.tokens.copy_(self.network.results[slot], non_blocking=True)
            landing.landed.record()

    def _land_logprobs(self, landing: Landing, chunks: list[Chunk]) -> None:
        """On the step's own stream: the next step writes the same buffers. Few requests ask for this."""
        if all(chunk.sequence.request.params.logprobs is None for chunk in chunks):
            return
        sampled, entries = self.network.sampled, len(chunks)
        landing.logprobs[:entries].copy_(sampled.logprobs[:entries], non_blocking=True)
        landing.top_ids[:entries].copy_(sampled.top_ids[:entries], non_blocking=True)
        landing.top_logprobs[:entries].copy_(sampled.top_logprobs[:entries], non_blocking=True)
        landing.ended.record()

    def _await(self, landing: Landing, entries: list[Chunk], scores: PromptScores | None) -> StepResult:
        """On the waiter thread: blocks until the step's results have landed."""
        landing.landed.synchronize()
        seconds = landing.began.elapsed_time(landing.ended) / 1e3
        # Every step has an entry, if only of padding, that says whether it counts.
        tokens, valid = landing.tokens[:, : len(entries) or 1].tolist()
        if valid[0] >= _LOST:
            raise PathFailed
        results: list[SampledToken] = []
        for index, (chunk, token) in enumerate(zip(entries, tokens, strict=False)):
            if not valid[index]:
                results.append(SampledToken(0, NOT_FINITE))
            elif (count := chunk.sequence.request.params.logprobs) is not None:
                ids, values = (
                    landing.top_ids[index, :count].tolist(),
                    landing.top_logprobs[index, :count].tolist(),
                )
                results.append(SampledToken(token, None, float(landing.logprobs[index]), ids, values))
            else:
                results.append(self._bare(token))
        return StepResult(results, seconds, seconds, () if scores is None else scores.results())

    def _bare(self, token: int) -> SampledToken:
        known = self._plain.get(token)
        if known is None:
            known = self._plain[token] = SampledToken(token)
        return known
