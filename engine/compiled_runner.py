"""Runs steps of a compiled model: the plain runner's queue and sampling around one call for the network."""

import time
from dataclasses import dataclass, field

import numpy as np
import torch

from engine.blocks import BlockId
from engine.compiled import CompiledModel, Draws, Ints, Tokens
from engine.plan import Chunk, Plan
from engine.runner import ModelRunner, RowReset, row_resets
from engine.sampler import SamplingRow, is_drawn, is_plain, sampling_row
from engine.scoring import ScoredSpan, ScoreSheet, scored_span
from engine.state import RowState
from engine.steps import NOT_FINITE, SampledToken, StepHandle, StepResult
from kernels.cpu.program import DrawNumber


@dataclass(slots=True)
class CompiledStep:
    """A plan in numbers. Lists run over the step's tokens unless noted; `rows` are places in `tables`."""

    resets: list[RowReset]
    ids: list[int] = field(default_factory=list)
    previous: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    fed_tokens: list[int] = field(default_factory=list)  # tokens whose id is in device state,
    fed_rows: list[int] = field(default_factory=list)  # and the rows that hold it
    tables: list[list[BlockId]] = field(default_factory=list)  # the blocks of each chunk's sequence
    sampling: list[SamplingRow] = field(default_factory=list)
    sampled: list[int] = field(default_factory=list)  # last token of each sampling chunk
    scored: list[ScoredSpan] = field(default_factory=list)
    plain: bool = True  # every row wants its best id and nothing else
    drawn: bool = True  # the compiled step samples every row


class CompiledRunner(ModelRunner):
    """A compiled model, its KV cache and its rows."""

    def __init__(
        self, model: CompiledModel, max_rows: int, max_model_len: int, terminal_ids: tuple[int, ...]
    ) -> None:
        # One thread for torch: it only samples here, and a team of its own would stand in the other's way.
        super().__init__(model, model.cache, max_rows, terminal_ids, threads=1)  # type: ignore[arg-type]
        self.compiled = model
        blocks = -(-max_model_len // model.cache.block_size)
        self._tables: Ints = np.zeros((max_rows, blocks), dtype=np.int64)
        self._in_tables: list[list[BlockId]] = [[] for _ in range(max_rows)]
        self._last_token: Ints = self.state.last_token.numpy()

    def launch(self, plan: Plan) -> StepHandle:
        staged = self._stage_plan(plan)
        return StepHandle(plan, self._thread.submit(self._run, staged))

    def close(self) -> None:
        super().close()
        self.compiled.close()

    # -- on the loop
    # --------------------------------------------------------------------------------------------

    def _stage_plan(self, plan: Plan) -> CompiledStep:
        step = CompiledStep(row_resets(plan))
        for chunk in plan.chunks:
            if plan.scored and chunk in plan.scored:
                step.scored.append(scored_span(chunk, len(step.ids)))
            self._stage(step, chunk)
        return step

    def _stage(self, step: CompiledStep, chunk: Chunk) -> None:
        tokens, start, end = chunk.sequence.tokens, chunk.start, chunk.start + chunk.length
        if chunk.feeds_back:
            step.fed_tokens.append(len(step.ids))
            step.fed_rows.append(chunk.row)
            step.ids.append(0)
        else:
            step.ids += tokens[start:end]
        if start:
            step.previous += tokens[start - 1 : end - 1]
        else:
            step.previous.append(0)
            step.previous += tokens[: end - 1]
        step.positions += range(start, end)
        step.rows += [len(step.tables)] * chunk.length
        step.tables.append(chunk.block_table[: -(-end // self.cache.block_size)])
        if chunk.samples:
            row = sampling_row(chunk, self.terminal_ids)
            step.sampling.append(row)
            step.sampled.append(len(step.ids) - 1)
            step.plain = step.plain and is_plain(row)
            step.drawn = step.drawn and is_drawn(row)

    # -- on the step thread
    # -------------------------------------------------------------------------------------

    def _grow(self, blocks: int) -> None:
        try:
            super()._grow(blocks)
        finally:
            self.compiled.moved()

    @torch.inference_mode()
    def _run(self, step: CompiledStep) -> StepResult:
        started = time.perf_counter()
        for reset in step.resets:
            self.state.reset_counts(reset.row, reset.prompt, reset.output)
        tokens = Tokens(
            *(np.array(column) for column in (step.ids, step.previous, step.positions, step.rows))
        )
        if step.fed_tokens:
            tokens.ids[step.fed_tokens] = self._last_token[step.fed_rows]
        for place, table in enumerate(step.tables):
            if self._in_tables[place] != table:
                self._in_tables[place] = table
                self._tables[place, : len(table)] = table
        if step.scored:
            return self._run_scored(step, tokens, started)
        draws = draws_of(step.sampling, self.state) if step.drawn and not step.plain else None
        begun = time.perf_counter()
        logits, chosen = self.compiled.step(tokens, self._tables, step.sampled, draws)
        forward = time.perf_counter() - begun
        rows, sampled = step.sampling, []
        if rows:
            sampled = self._taken(rows, chosen) if step.drawn else self._sample(rows, logits)
        return StepResult(sampled, time.perf_counter() - started, forward)

    def _run_scored(self, step: CompiledStep, tokens: Tokens, started: float) -> StepResult:
        """With the logits of every token, and sampling by the reference."""
        sheets = [ScoreSheet(span) for span in step.scored]
        wanted = iter(step.sampled)
        index, kept = next(wanted, None), []
        begun = time.perf_counter()
        for first, logits in self.compiled.logits_of_all(tokens, self._tables):
            for sheet in sheets:
                sheet.take(first, logits)
            while index is not None and index < first + len(logits):
                kept.append(logits[index - first].clone())
                index = next(wanted, None)
        forward = time.perf_counter() - begun
        sampled = self._sample(step.sampling, torch.stack(kept)) if kept else []
        scores = [sheet.result for sheet in sheets]
        return StepResult(sampled, time.perf_counter() - started, forward, scores)

    def _taken(self, rows: list[SamplingRow], ids: Ints) -> list[SampledToken]:
        self._last_token[[row.row for row in rows]] = np.maximum(ids, 0)
        return [SampledToken(token) if token >= 0 else SampledToken(0, NOT_FINITE) for token in ids.tolist()]


def draws_of(rows: list[SamplingRow], state: RowState) -> Draws:
    """What the compiled step has to know to sample these rows. It counts their tokens itself."""
    whole: list[tuple[int, ...]] = []
    numbers: list[tuple[float, ...]] = []
    for row in rows:
        params = row.params
        counts = state.addresses(row.row) if row.penalised else (0, 0)
        # In the order of Draw and DrawNumber.
        whole.append((params.top_k, params.seed, row.choice, row.position, *counts))
        penalties = params.repetition_penalty, params.presence_penalty, params.frequency_penalty
        numbers.append((params.temperature, params.top_p, params.min_p, *penalties))
    single = np.array(numbers, dtype=np.float32)  # as the reference has them
    double = single.astype(np.float64)
    with np.errstate(divide="ignore"):  # without min_p, minus infinity
        double[:, DrawNumber.LOG_MIN_P] = np.log(double[:, DrawNumber.LOG_MIN_P])
    return Draws(np.array(whole, dtype=np.int64), double)
