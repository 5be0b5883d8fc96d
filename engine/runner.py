"""Runs steps on the device, strictly in launch order, without ever blocking the event loop.

`launch` copies what the step needs out of the plan (the loop may change sequences the moment it returns) and
queues it; `collect` awaits its result. One worker thread executes the steps: step N+1 is queued while N runs,
and takes the tokens that N samples from the rows' device state.

                loop     plan N+1  stage N+1  launch | await N        | process N | plan N+2 ...
                thread   ... step N ................ | step N+1 .................. | step N+2 ...
"""

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from engine.blocks import WRITE_OFF
from engine.decoder import Attend, Decoder
from engine.hooks import KernelHooks
from engine.memory import free_memory
from engine.messages import PromptLogprobs
from engine.plan import Chunk, Plan
from engine.sampler import SamplingRow, has_penalty, sampling_batch, sampling_row
from engine.scoring import ScoredSpan, ScoreSheet, positions_at_once, scored_span
from engine.state import RowState
from engine.steps import NOT_FINITE, SampledToken, StepHandle, StepResult
from kernels.attention import KVCache, Span, paged_attention, table_blocks
from kernels.sampling import Sampled, sample


@dataclass(frozen=True, slots=True)
class RowReset:
    """A row whose penalty counts start from these tokens."""

    row: int
    prompt: list[int]
    output: list[int]


def row_resets(plan: Plan) -> list[RowReset]:
    """Rows whose penalty counts are built anew before this step."""
    return [
        RowReset(
            sequence.row, sequence.tokens[: sequence.prompt_length], sequence.tokens[sequence.prompt_length :]
        )
        for sequence in (*plan.admitted, *plan.extended)
        if has_penalty(sequence.request.params) and sequence.row is not None
    ]


class StagedSpan(NamedTuple):
    """A `Span` before its table is on the device; `entries` counts the table's ids."""

    start: int
    length: int
    context: int
    entries: int
    first: int | None

    def on_device(self, tables: torch.Tensor, first: int) -> Span:
        """tables: of all spans, one behind the other; this one's begins at `first`."""
        return Span(self.start, self.length, self.context, tables[first : first + self.entries], self.first)


@dataclass(slots=True)
class StagedStep:
    """A plan in numbers: everything that the step thread reads. Lists run over the step's tokens unless
    noted.
    """

    ids: list[int] = field(default_factory=list)
    previous_ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    slots: list[int] = field(default_factory=list)
    fed_tokens: list[int] = field(default_factory=list)  # tokens whose id is in device state,
    fed_rows: list[int] = field(default_factory=list)  # and the rows that hold it
    tables: list[int] = field(default_factory=list)  # block tables of all spans, one behind the other
    spans: list[StagedSpan] = field(default_factory=list)
    sampling: list[SamplingRow] = field(default_factory=list)
    sampling_tokens: list[int] = field(default_factory=list)  # last token of each sampling chunk
    resets: list[RowReset] = field(default_factory=list)
    scored: list[ScoredSpan] = field(default_factory=list)
    only_decodes: bool = True  # every chunk is one token behind its prompt


class ModelRunner:
    """One model, its KV cache and its rows on one device. hooks: kernels of the user's own."""

    def __init__(
        self,
        model: Decoder,
        cache: KVCache,
        max_rows: int,
        terminal_ids: tuple[int, ...],
        threads: int,
        hooks: KernelHooks | None = None,
    ) -> None:
        self.model = model
        self.vocab_size = model.config.vocab_size
        self.cache = cache
        self.device = cache.keys.device
        self.terminal_ids = terminal_ids
        self.graph_recaptures = 0  # there are no graphs
        self.path_failures = 0  # and there is one path
        self.early_masks = False  # the step thread waits for them behind the forward
        self.hooks = hooks or KernelHooks()
        self.state = RowState(max_rows, model.config.vocab_size, self.device)
        # torch's CPU threads form one team per calling thread, and a second team, even an idle one, keeps the
        # first from spinning between two products, which costs it a wake-up each. So only this thread has
        # one.
        self._thread = ThreadPoolExecutor(1, "step", torch.set_num_threads, (threads,))

    def launch(self, plan: Plan) -> StepHandle:
        staged = self.stage(plan)
        return StepHandle(plan, self._thread.submit(self._execute, staged))

    async def collect(self, handle: StepHandle) -> StepResult:
        """The result of a launched step. Raises whatever its execution raised."""
        return await asyncio.wrap_future(handle.future)

    async def grow(self, blocks: int) -> None:
        """On the step thread: behind every step that was launched before. MemoryError on a CPU that has not
        as much.
        """
        old = self.cache.keys
        needed = 2 * old.element_size() * (old.numel() // old.size(1)) * blocks
        free = free_memory() if old.device.type == "cpu" else None
        if free is not None and needed > free:
            raise MemoryError(f"{needed / 2**30:.2f} GiB are needed, and {free / 2**30:.2f} free")
        await asyncio.wrap_future(self._thread.submit(self._grow, blocks))

    def close(self) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)

    # -- on the loop
    # --------------------------------------------------------------------------------------------

    def stage(self, plan: Plan) -> StagedStep:
        step = StagedStep(resets=row_resets(plan))
        for chunk in plan.chunks:
            if plan.scored and chunk in plan.scored:
                step.scored.append(scored_span(chunk, len(step.ids)))
            self._stage_chunk(step, chunk)
        if len(step.ids) == 1:
            # A product with one row is padded to two (kernels.linear): once here is cheaper than once per
            # product.
            for column in (step.ids, step.previous_ids, step.positions, step.slots):
                column.append(WRITE_OFF)
        return step

    def _stage_chunk(self, step: StagedStep, chunk: Chunk) -> None:
        tokens, table, size = chunk.sequence.tokens, chunk.block_table, self.cache.block_size
        first, start, end = len(step.ids), chunk.start, chunk.start + chunk.length
        step.only_decodes &= chunk.length == 1 and start >= chunk.sequence.prompt_length
        if chunk.feeds_back:
            step.fed_tokens.append(first)
            step.fed_rows.append(chunk.row)
            step.ids.append(0)
        else:
            step.ids += tokens[start:end]
        if start:
            step.previous_ids += tokens[start - 1 : end - 1]
        else:
            step.previous_ids.append(0)
            step.previous_ids += tokens[: end - 1]
        step.positions += range(start, end)
        step.slots += [table[p // size] * size + p % size for p in range(start, end)]
        used, entries = -(-end // size), table_blocks(end, size)
        blocks = table[:used]
        step.tables += blocks
        step.tables += [0] * (entries - used)
        in_place = table[0] if blocks == list(range(table[0], table[0] + used)) else None
        step.spans.append(StagedSpan(first, chunk.length, end, entries, in_place))
        if chunk.samples:
            step.sampling.append(sampling_row(chunk, self.terminal_ids))
            step.sampling_tokens.append(len(step.ids) - 1)

    # -- on the step thread
    # -------------------------------------------------------------------------------------

    def _grow(self, blocks: int) -> None:
        self.cache.grow(blocks)

    @torch.inference_mode()
    def _execute(self, step: StagedStep) -> StepResult:
        started = time.perf_counter()
        for reset in step.resets:
            self.state.reset_counts(reset.row, reset.prompt, reset.output)
        ids, spans = self._tensor(step.ids), self._spans(step)
        if step.fed_tokens:
            ids[self._tensor(step.fed_tokens)] = self.state.last_token[self._tensor(step.fed_rows)]
        previous = self._tensor(step.previous_ids)
        forward_started = time.perf_counter()
        rows = self._tensor(step.sampling_tokens)
        scores: list[PromptLogprobs] = []
        if self.hooks.persistent is not None and step.only_decodes:
            count = len(spans)
            logits = self.hooks.step(self.model, ids[:count], previous[:count], self.cache, spans)
            logits = logits[rows] if step.sampling else logits
        else:
            positions = self._tensor(step.positions)
            hidden = self.model.hidden(ids, previous, positions, self._attend(step, spans))
            logits = self.model.logits(hidden[rows]) if step.sampling else hidden
            scores = [self._score(span, hidden) for span in step.scored]
        forward_seconds = time.perf_counter() - forward_started
        tokens = self._sample(step.sampling, logits) if step.sampling else []
        return StepResult(tokens, time.perf_counter() - started, forward_seconds, scores)

    def _spans(self, step: StagedStep) -> list[Span]:
        tables = self._tensor(step.tables)
        spans: list[Span] = []
        first = 0
        for staged in step.spans:
            spans.append(staged.on_device(tables, first))
            first += staged.entries
        return spans

    def _attend(self, step: StagedStep, spans: list[Span]) -> Attend:
        slots, config, cache, hooks = self._tensor(step.slots), self.model.config, self.cache, self.hooks

        def attend(layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            cache.write(layer, slots, k, v)
            if hooks.clustered is not None:
                return hooks.attention(q, cache, layer, spans, config.window(layer))
            return paged_attention(q, cache, layer, spans, config.window(layer))

        return attend

    def _score(self, span: ScoredSpan, hidden: torch.Tensor) -> PromptLogprobs:
        """hidden: the step's, [tokens, width]."""
        sheet, most = ScoreSheet(span), positions_at_once(self.vocab_size)
        end = span.token + len(span.targets)
        for first in range(span.token, end, most):
            sheet.take(first, self.model.logits(hidden[first : min(first + most, end)]))
        return sheet.result

    def _sample(self, rows: list[SamplingRow], logits: torch.Tensor) -> list[SampledToken]:
        try:
            return self._sample_rows(rows, logits)
        except Exception:  # whichever row it was, the others must not fail with it
            return [self._sample_alone(row, logits[i : i + 1]) for i, row in enumerate(rows)]

    def _sample_alone(self, row: SamplingRow, logits: torch.Tensor) -> SampledToken:
        try:
            return self._sample_rows([row], logits)[0]
        except Exception as error:
            return SampledToken(0, f"sampling failed: {type(error).__name__}: {error}")

    def _sample_rows(self, rows: list[SamplingRow], logits: torch.Tensor) -> list[SampledToken]:
        batch = sampling_batch(rows, self.state, self.device)
        sampled = sample(logits, batch)
        counted = None
        if batch.repetition is not None:
            counted = torch.tensor([row.penalised for row in rows], device=self.device)
        self.state.sampled(self._tensor([row.row for row in rows]), sampled.tokens, counted)
        return _to_host(rows, sampled)

    def _tensor(self, values: list[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self.device)


def _to_host(rows: list[SamplingRow], sampled: Sampled) -> list[SampledToken]:
    tokens = sampled.tokens.tolist()
    errors = [None if valid else NOT_FINITE for valid in sampled.valid.tolist()]
    if sampled.logprobs is None or sampled.top_ids is None or sampled.top_logprobs is None:
        return [SampledToken(token, error) for token, error in zip(tokens, errors, strict=True)]
    details = iter(
        zip(sampled.logprobs.tolist(), sampled.top_ids.tolist(), sampled.top_logprobs.tolist(), strict=True)
    )
    result: list[SampledToken] = []
    for row, token, error in zip(rows, tokens, errors, strict=True):
        count = row.params.logprobs
        if count is None:
            result.append(SampledToken(token, error))
        else:
            logprob, ids, values = next(details)
            result.append(SampledToken(token, error, logprob, ids[:count], values[:count]))
    return result
