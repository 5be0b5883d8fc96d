"""One engine without its loop: what happens when a request comes, when a step's tokens are seen, when it
fails.

`AsyncEngine` drives it: launch step N+1, await step N, hand its result to `process`. All methods run on the
loop and return at once. Whatever they produce for the outside goes into the outgoing frame, which
`take_frame` hands over.
"""

import logging
import math
import time
from collections.abc import Iterable
from dataclasses import dataclass

from engine.faults import PathFailed, is_device_lost, is_out_of_memory
from engine.forms import Forms
from engine.measures import Measures
from engine.memory import grown_pool
from engine.messages import (
    EngineStats,
    Finish,
    Frame,
    PromptLogprobs,
    Request,
    TokenLogprobs,
)
from engine.messages.wire import FaultCode, FinishReason
from engine.plan import Chunk, Plan
from engine.sampler import check_params, stop_ids
from engine.scheduler import Scheduler
from engine.sequence import Sequence, State
from engine.steps import NOT_FINITE, Runner, SampledToken, StepHandle, StepResult
from engine.tools import ToolMachine, ToolTokenizer
from engine.trace import Tracer
from kernels.sampling import MAX_BIASES, MAX_STOP_IDS

LAUNCH_ATTEMPTS = 3
MAX_FAILURES = 8  # steps in a row that failed: the engine gives up, and is started again

_UNTOLD = EngineStats()  # of a frame under way: what it tells is counted when it goes

_log = logging.getLogger("fastpath.engine")


@dataclass(slots=True)
class Overhead:
    """Seconds spent since the start, by what they were spent on; benchmarks read it."""

    plan: float = 0.0  # scheduling and staging, on the loop
    process: float = 0.0  # looking at tokens and building frames, on the loop
    step: float = 0.0  # everything on the step thread, the forward included
    forward: float = 0.0


class EngineCore:
    """Scheduler, runner and the outgoing frame. page: tokens of a KV page; the pool is a multiple of it."""

    def __init__(
        self,
        scheduler: Scheduler,
        runner: Runner,
        tokenizer: ToolTokenizer,
        terminal_ids: tuple[int, ...],
        tracer: Tracer | None = None,
        page: int | None = None,
    ) -> None:
        self.scheduler = scheduler
        self.runner = runner
        self.terminal_ids = terminal_ids
        self.overhead = Overhead()
        self.tracer = tracer
        self._tokenizer = tokenizer
        self._tools: dict[int, ToolMachine] = {}
        self.forms = Forms(tokenizer, runner.vocab_size, terminal_ids, runner.early_masks)
        self._terminals = frozenset(terminal_ids)
        self._stops: dict[int, frozenset[int]] = {}  # by stream id: the ids that end it
        self._failures = 0  # in a row
        self._short_at: tuple[int, int] | None = None  # the newest stream and its tokens when memory ran out
        self._frame = Frame([], [], [], [], [], _UNTOLD)
        self._changed = False
        self._generated = self._growths = self._nonfinite = 0
        self._page = page
        self._measures = Measures()
        self.resident_bytes = 0  # of this process; whoever owns it measures

    # -- requests
    # ----------------------------------------------------------------------------------------------

    def add(self, request: Request) -> None:
        """Queues a request. Raises ValueError, naming the field, for one that can never be served."""
        self._validate(request)
        now = time.monotonic()
        sequences = Sequence.of(request)
        for index, sequence in enumerate(sequences):
            try:
                self.scheduler.add(sequence, now)
            except ValueError:
                for added in sequences[:index]:
                    self.scheduler.finish(added)
                raise
        stops = self._terminals
        if request.params.ignore_eos or request.params.stop_token_ids:
            stops = frozenset(stop_ids(request.params, self.terminal_ids))
        for sequence in sequences:
            self._stops[sequence.id] = stops
            if request.params.grammar is not None:
                self.forms.open(sequence, request.params.grammar)
            if request.tools:
                self._tools[sequence.id] = ToolMachine(self._tokenizer)
            if self.tracer is not None:
                self.tracer.queued(sequence)
        self._measures.expect(now)
        self._changed = True

    def abort(self, streams: Iterable[int]) -> None:
        """Ends sequences; their rows and blocks are free when this returns. Unknown ids are ignored."""
        for stream in streams:
            sequence = self.scheduler.abort(stream)
            if sequence is not None:
                self._report_end(sequence, "abort")

    def _validate(self, request: Request) -> None:
        """The front end has checked requests already; a faulty one may still only fail itself."""
        vocab = self.runner.vocab_size
        params = request.params
        check_params(params, vocab)
        for name, ids in (
            ("prompt", request.prompt),
            ("logit_bias", params.logit_bias),
            ("stop_token_ids", params.stop_token_ids),
        ):
            if any(not 0 <= id < vocab for id in ids):
                raise ValueError(f"{name} holds a token id outside the vocabulary of {vocab}")
        if len(stop_ids(params, self.terminal_ids)) > MAX_STOP_IDS:
            raise ValueError(f"stop_token_ids and the model's own ends are more than {MAX_STOP_IDS}")
        if len(params.logit_bias) > MAX_BIASES:
            raise ValueError(f"logit_bias has more than {MAX_BIASES} entries")
        if request.n < 1:
            raise ValueError(f"n is {request.n}")
        self.forms.check(request)

    # -- steps
    # -------------------------------------------------------------------------------------------------

    def launch(self) -> StepHandle | None:
        """Plans and launches the next step; None when there is nothing to compute now.

        What goes wrong here fails as few requests as possible. Raises where the engine itself has to be
        started again: the device is lost, or it fails time and again.
        """
        started = time.perf_counter()
        if self.forms:
            for sequence, error in self.forms.failed():
                message = f"the grammar failed: {error}"
                self._finish(sequence, "error", message=message, code="grammar_failed")
        attempt = 0
        while (plan := self._plan()) is not None:
            planned = time.perf_counter()
            try:
                handle = self.runner.launch(plan)
            except Exception as error:
                self._launch_failed(plan, error, attempt)
                attempt += 1
                continue
            self.scheduler.launched(plan)
            self._measures.expect(time.monotonic())
            if plan.admitted and (told := self._measures.start(plan.admitted)):
                self._frame.started.extend(told)
                self._changed = True
            ended = time.perf_counter()
            self.overhead.plan += ended - started
            if self.tracer is not None:
                self.tracer.launched(plan, started, planned, ended)
            return handle
        return None

    def _plan(self) -> Plan | None:
        try:
            return self.scheduler.plan(time.monotonic())
        except Exception as error:
            _log.exception("planning a step failed")
            message = f"the request could not be scheduled: {type(error).__name__}: {error}"
            for sequence in self.scheduler.suspects():
                self._finish(sequence, "error", message=message, poisoned=True)
        return self.scheduler.plan(time.monotonic())

    def _launch_failed(self, plan: Plan, error: Exception, attempt: int) -> None:
        """Prepares for another attempt; raises `error` when none makes sense."""
        without_memory = is_out_of_memory(error)
        if is_device_lost(error) or (attempt + 1 >= LAUNCH_ATTEMPTS and not without_memory):
            raise error
        _log.warning("launching a step failed", exc_info=error)
        if without_memory:
            self._count_failure(error)
            self._make_room(plan, error, launched=False)
        else:
            self.fail(plan, error)

    def _count_failure(self, error: BaseException) -> None:
        """Raises the error again when the device is lost with it, or too many steps have failed in a row."""
        self._failures += 1
        if is_device_lost(error) or self._failures > MAX_FAILURES:
            raise error

    def _make_room(self, plan: Plan, error: BaseException, *, launched: bool) -> None:
        """A step found no memory: what runs is computed again in smaller steps. Where the newest of its
        sequences has come no further since the last such step, it ends with an error, so that the others can
        go on. Steps that succeeded in between do not count: they may have been those of the others.
        """
        self.scheduler.budget.shrink()
        current = [chunk.sequence for chunk in plan.chunks if chunk.epoch == chunk.sequence.epoch]
        if current:
            newest = max(current, key=lambda sequence: sequence.rank)
            reached = newest.id, len(newest.tokens)
            if reached == self._short_at:
                message = f"there was no memory for the request: {type(error).__name__}: {error}"
                self._finish(newest, "error", message=message, poisoned=launched, code="out_of_memory")
            self._short_at = reached
        self.scheduler.recompute(keep_cache=not launched)

    def process(self, plan: Plan, result: StepResult) -> None:
        """Looks at the tokens of a finished step."""
        started = time.perf_counter()
        self._failures = 0
        self._measures.step(plan, result.seconds)
        self._changed = True
        self.scheduler.times.observe(plan.load, result.seconds)
        if self.tracer is not None:
            self.tracer.arrived(plan, result.seconds, started)
        if plan.scored:
            for chunk, scores in zip(plan.scored, result.scores, strict=True):
                self._add_scores(chunk, scores)
        sampled = iter(result.tokens)
        token, stops, watched = self.scheduler.token, self._stops, bool(self._tools or self.forms)
        streams, tokens = self._frame.streams, self._frame.tokens
        before = len(tokens)
        for chunk in plan.chunks:
            if not chunk.samples:
                continue
            got, sequence = next(sampled), chunk.sequence
            try:
                id = got.token
                if not token(chunk, id):
                    continue
                if got.error is not None:
                    self._nonfinite += got.error == NOT_FINITE
                    self._finish(sequence, "error", message=got.error, poisoned=True)
                    continue
                if got.logprob is not None:
                    self._add_logprobs(got)
                streams.append(sequence.id)
                tokens.append(id)
                if id in stops[sequence.id] or len(sequence.tokens) >= sequence.limit or watched:
                    self._after_token(sequence, id)
            except Exception as error:  # whatever it is, it belongs to this request
                _log.exception("stream %d failed", sequence.id)
                message = f"the token could not be used: {type(error).__name__}: {error}"
                self._finish(sequence, "error", message=message, poisoned=True)
        self._generated += len(tokens) - before
        self._measures.note_first_tokens()
        self.overhead.step += result.seconds
        self.overhead.forward += result.forward_seconds
        ended = time.perf_counter()
        self.overhead.process += ended - started
        if self.tracer is not None:
            self.tracer.processed(started, ended)

    def fail(self, plan: Plan, error: BaseException) -> None:
        """A step did not come back: its sequences end with an error, all others go on. One that found no
        memory is made again first, and so is one whose kernels have been given up.

        Raises the error again when the device is lost with it, or too many steps have failed in a row.
        """
        self._count_failure(error)
        self._measures.again(time.monotonic())
        if is_out_of_memory(error):
            _log.warning("a step found no memory", exc_info=error)
            self._make_room(plan, error, launched=True)
            return
        if isinstance(error, PathFailed):
            if not error.known:  # else all that it computed is void already
                self.scheduler.recompute()
            return
        message = f"the step failed: {type(error).__name__}: {error}"
        for chunk in plan.chunks:
            self._finish(chunk.sequence, "error", message=message, poisoned=True)
        self.scheduler.recompute()
        if self.tracer is not None:
            self.tracer.failed(message)

    # -- growth of the KV pool, between two steps
    # ------------------------------------------------------------------------------

    @property
    def wants_blocks(self) -> bool:
        """Whether the last plan left somebody out who can go on in a larger pool."""
        return self.scheduler.pool.wanted > 0

    def next_size(self) -> int:
        """Blocks that the pool should have, the write-off block included."""
        pool = self.scheduler.pool
        return grown_pool(pool.num_blocks, pool.wanted, pool.max_blocks, pool.block_size, self._page)

    def grown(self, blocks: int, seconds: float) -> None:
        """The runner has made room for so many."""
        pool = self.scheduler.pool
        _log.info("the KV pool grew from %d to %d blocks in %.3f s", pool.usable, blocks - 1, seconds)
        pool.grow(blocks)
        self._growths += 1
        self._changed = True

    def growth_failed(self, blocks: int, error: Exception) -> None:
        """The pool stays as it is for good, and preemption does what growth would have done. Who waits and is
        longer than that ends with an error. Raises `error` where the device is lost.
        """
        if is_device_lost(error):
            raise error
        pool = self.scheduler.pool
        _log.warning(
            "the KV pool could not grow to %d blocks and stays at %d: %s: %s",
            *(blocks - 1, pool.usable, type(error).__name__, error),
        )
        for sequence in self.scheduler.settle():
            message = f"{sequence.prompt_length} prompt tokens do not fit the KV pool, which could not grow"
            self._finish(sequence, "error", message=message)

    # -- what follows from a token
    # ----------------------------------------------------------------------------------------------

    def _after_token(self, sequence: Sequence, token: int) -> None:
        """Whether a token was the last one, or calls a tool, or what it means to a grammar."""
        if token in self._stops[sequence.id]:
            output = len(sequence.tokens) - sequence.prompt_length
            least = sequence.request.params.min_tokens
            if output > least or self.forms.completes(sequence, token):
                self._finish(sequence, "stop", stop_token=token)
                return
        if len(sequence.tokens) >= sequence.limit:
            self._finish(sequence, "length")
        elif not self.forms.accept(sequence, token) and sequence.id in self._tools:
            self._run_tool(sequence, token)

    def _run_tool(self, sequence: Sequence, token: int) -> None:
        """A tool's result takes the place of the next sampled tokens, and is computed as one chunk."""
        try:
            forced = self._tools[sequence.id].observe(token)
        except Exception as error:  # a fault in one request's tool may not touch the others
            self._finish(sequence, "error", message=f"the tool failed: {type(error).__name__}: {error}")
            return
        forced = forced[: sequence.limit - len(sequence.tokens)]
        if not forced:
            return
        self.scheduler.extend(sequence, forced)
        for id in forced:
            self._frame.forced.append(len(self._frame.tokens))
            self._frame.streams.append(sequence.id)
            self._frame.tokens.append(id)
        if len(sequence.tokens) >= sequence.limit:
            self._finish(sequence, "length")

    # -- the outgoing frame
    # ------------------------------------------------------------------------------------

    def _add_logprobs(self, sampled: SampledToken) -> None:
        """Those of the next token of the frame."""
        index, logprob = len(self._frame.tokens), sampled.logprob
        if logprob is not None:
            top = sampled.top_ids, sampled.top_logprobs
            self._frame.logprobs.append(TokenLogprobs(index, logprob, *top))

    def _add_scores(self, chunk: Chunk, scores: PromptLogprobs) -> None:
        """Those of prompt tokens; what was computed again after a preemption has been told before."""
        first = self.scheduler.scored(chunk, scores.first + len(scores.logprobs))
        if first is None:
            return
        if any(math.isnan(logprob) for logprob in scores.logprobs):
            self._finish(chunk.sequence, "error", message=NOT_FINITE, poisoned=True)
            return
        self._frame.prompts.append(scores.since(first))

    def _finish(
        self,
        sequence: Sequence,
        reason: FinishReason,
        *,
        stop_token: int | None = None,
        message: str | None = None,
        poisoned: bool = False,
        code: FaultCode | None = None,
    ) -> None:
        if sequence.state is not State.FINISHED:
            self.scheduler.finish(sequence, poisoned=poisoned)
            self._report_end(sequence, reason, stop_token, message, code)

    def _report_end(
        self,
        sequence: Sequence,
        reason: FinishReason,
        stop_token: int | None = None,
        message: str | None = None,
        code: FaultCode | None = None,
    ) -> None:
        self._tools.pop(sequence.id, None)
        self.forms.forget(sequence)
        self._stops.pop(sequence.id, None)
        if self.tracer is not None:
            self.tracer.ended(sequence, reason)
        measured = self._measures.end(sequence)
        finish = Finish(sequence.id, reason, stop_token, sequence.cached_tokens, message, *measured, code)
        self._frame.finished.append(finish)
        self._changed = True

    def take_frame(self, *, always: bool = False) -> Frame | None:
        """What happened since the last call, or None if nothing did (and `always` does not ask for the
        counters).
        """
        if not (self._changed or always):
            return None
        frame, self._changed = self._frame, False
        self._frame = Frame([], [], [], [], [], _UNTOLD)
        told = frame.streams, frame.tokens, frame.forced, frame.logprobs, frame.finished
        return Frame(*told, self.stats(), frame.prompts, frame.started)

    def stats(self) -> EngineStats:
        stats, measures = self.scheduler.stats(), self._measures
        plan = measures.last_plan
        oldest = stats.oldest_arrival
        if not stats.running and stats.waiting == stats.deferred:
            measures.rest()
        # In the order of the fields: by their names this takes most of a microsecond in every step.
        return EngineStats(
            stats.running,
            stats.waiting,
            stats.blocks_used,
            stats.blocks_cached,
            self.scheduler.pool.usable,
            measures.steps,
            stats.prompt_tokens,
            stats.cached_tokens,
            stats.prefix_queries,
            self._generated,
            stats.preemptions,
            len(plan.chunks) if plan else 0,
            plan.num_tokens if plan else 0,
            measures.last_seconds,
            stats.late_tokens,
            self._growths,
            self.runner.graph_recaptures,
            stats.deferred,
            time.monotonic() - oldest if oldest is not None else 0.0,
            self._nonfinite,
            self.resident_bytes,
            measures.histograms,
            measures.step_age,
            self.runner.path_failures,
        )
