"""One engine without its loop: what happens when a request comes, when a step's tokens are seen, when it
fails.

`AsyncEngine` drives it: launch step N+1, await step N, hand its result to `process`. All methods run on the
loop and return at once. Whatever they produce for the outside goes into the outgoing frame, which
`take_frame` hands over.
"""

import time
from collections.abc import Iterable
from dataclasses import dataclass

from engine.messages import EngineStats, Finish, Frame, Request, TokenLogprobs
from engine.messages.wire import FinishReason
from engine.plan import Chunk, Plan
from engine.runner import ModelRunner, SampledToken, StepHandle, StepResult
from engine.sampler import check_params, stop_ids
from engine.scheduler import Scheduler
from engine.sequence import Sequence, State
from engine.tools import ToolMachine, ToolTokenizer


@dataclass(slots=True)
class Overhead:
    """Seconds spent since the start, by what they were spent on; benchmarks read it."""

    plan: float = 0.0  # scheduling and staging, on the loop
    process: float = 0.0  # looking at tokens and building frames, on the loop
    step: float = 0.0  # everything on the step thread, the forward included
    forward: float = 0.0


class EngineCore:
    """Scheduler, runner and the outgoing frame."""

    def __init__(
        self,
        scheduler: Scheduler,
        runner: ModelRunner,
        tokenizer: ToolTokenizer,
        terminal_ids: tuple[int, ...],
    ) -> None:
        self.scheduler = scheduler
        self.runner = runner
        self.terminal_ids = terminal_ids
        self.overhead = Overhead()
        self._tokenizer = tokenizer
        self._tools: dict[int, ToolMachine] = {}
        self._frame = Frame([], [], [], [], [], EngineStats())
        self._changed = False
        self._steps = self._generated = 0
        self._last_plan: Plan | None = None
        self._last_seconds = 0.0

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
        if request.tools:
            for sequence in sequences:
                self._tools[sequence.id] = ToolMachine(self._tokenizer)
        self._changed = True

    def abort(self, streams: Iterable[int]) -> None:
        """Ends sequences; their rows and blocks are free when this returns. Unknown ids are ignored."""
        for stream in streams:
            sequence = self.scheduler.abort(stream)
            if sequence is not None:
                self._report_end(sequence, "abort")

    def _validate(self, request: Request) -> None:
        """The front end has checked requests already; a faulty one may still only fail itself."""
        vocab = self.runner.model.config.vocab_size
        params = request.params
        check_params(params, vocab)
        for name, ids in (
            ("prompt", request.prompt),
            ("logit_bias", params.logit_bias),
            ("stop_token_ids", params.stop_token_ids),
        ):
            if any(not 0 <= id < vocab for id in ids):
                raise ValueError(f"{name} holds a token id outside the vocabulary of {vocab}")
        if request.n < 1:
            raise ValueError(f"n is {request.n}")

    # -- steps
    # -------------------------------------------------------------------------------------------------

    def launch(self) -> StepHandle | None:
        """Plans and launches the next step; None when there is nothing to compute now."""
        started = time.perf_counter()
        plan = self.scheduler.plan(time.monotonic())
        if plan is None:
            return None
        handle = self.runner.launch(plan)
        self.scheduler.launched(plan)
        self.overhead.plan += time.perf_counter() - started
        return handle

    def process(self, plan: Plan, result: StepResult) -> None:
        """Looks at the tokens of a finished step."""
        started = time.perf_counter()
        self._steps += 1
        self._last_plan, self._last_seconds = plan, result.seconds
        self._changed = True
        sampling = (chunk for chunk in plan.chunks if chunk.samples)
        for chunk, sampled in zip(sampling, result.tokens, strict=True):
            self._process_token(chunk, sampled)
        self.overhead.step += result.seconds
        self.overhead.forward += result.forward_seconds
        self.overhead.process += time.perf_counter() - started

    def fail(self, plan: Plan, error: BaseException) -> None:
        """A step did not come back: its sequences end with an error, all others go on."""
        message = f"the step failed: {type(error).__name__}: {error}"
        for chunk in plan.chunks:
            self._finish(chunk.sequence, "error", message=message, poisoned=True)
        self.scheduler.recompute()

    def _process_token(self, chunk: Chunk, sampled: SampledToken) -> None:
        sequence = chunk.sequence
        if not self.scheduler.token(chunk, sampled.token):
            return
        if sampled.error is not None:
            self._finish(sequence, "error", message=sampled.error, poisoned=True)
            return
        self._emit(sequence, sampled.token, sampled)
        params = sequence.request.params
        output = len(sequence.tokens) - sequence.prompt_length
        if sampled.token in stop_ids(params, self.terminal_ids) and output > params.min_tokens:
            self._finish(sequence, "stop", stop_token=sampled.token)
        elif len(sequence.tokens) >= sequence.limit:
            self._finish(sequence, "length")
        elif sequence.id in self._tools:
            self._run_tool(sequence, sampled.token)

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
            self._emit(sequence, id, None)
        if len(sequence.tokens) >= sequence.limit:
            self._finish(sequence, "length")

    # -- the outgoing frame
    # ------------------------------------------------------------------------------------

    def _emit(self, sequence: Sequence, token: int, sampled: SampledToken | None) -> None:
        frame = self._frame
        if sampled is not None and sampled.logprob is not None:
            frame.logprobs.append(
                TokenLogprobs(len(frame.tokens), sampled.logprob, sampled.top_ids, sampled.top_logprobs)
            )
        frame.streams.append(sequence.id)
        frame.tokens.append(token)
        self._generated += 1

    def _finish(
        self,
        sequence: Sequence,
        reason: FinishReason,
        *,
        stop_token: int | None = None,
        message: str | None = None,
        poisoned: bool = False,
    ) -> None:
        if sequence.state is not State.FINISHED:
            self.scheduler.finish(sequence, poisoned=poisoned)
            self._report_end(sequence, reason, stop_token, message)

    def _report_end(
        self,
        sequence: Sequence,
        reason: FinishReason,
        stop_token: int | None = None,
        message: str | None = None,
    ) -> None:
        self._tools.pop(sequence.id, None)
        self._frame.finished.append(Finish(sequence.id, reason, stop_token, sequence.cached_tokens, message))
        self._changed = True

    def take_frame(self, *, always: bool = False) -> Frame | None:
        """What happened since the last call, or None if nothing did (and `always` does not ask for the
        counters).
        """
        if not (self._changed or always):
            return None
        frame, self._changed = self._frame, False
        self._frame = Frame([], [], [], [], [], EngineStats())
        return Frame(frame.streams, frame.tokens, frame.forced, frame.logprobs, frame.finished, self.stats())

    def stats(self) -> EngineStats:
        stats, plan = self.scheduler.stats(), self._last_plan
        return EngineStats(
            running=stats.running,
            waiting=stats.waiting,
            blocks_used=stats.blocks_used,
            blocks_cached=stats.blocks_cached,
            blocks_total=self.scheduler.pool.usable,
            steps=self._steps,
            prompt_tokens=stats.prompt_tokens,
            cached_tokens=stats.cached_tokens,
            prefix_queries=stats.prefix_queries,
            generated_tokens=self._generated,
            preemptions=stats.preemptions,
            batch_rows=len(plan.chunks) if plan else 0,
            batch_tokens=plan.num_tokens if plan else 0,
            step_seconds=self._last_seconds,
            late_tokens=stats.late_tokens,
        )
