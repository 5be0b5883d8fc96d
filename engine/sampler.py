"""Turns the sampling parameters of a step's rows into the tensors that kernels.sampling works on."""

import math
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np
import torch

from engine.grammar import Mask, allowed_ids
from engine.messages import SamplingParams
from engine.plan import Chunk
from engine.state import RowState
from kernels.philox import uniform
from kernels.sampling import SamplingBatch

MAX_LOGPROBS = 20


@dataclass(frozen=True, slots=True)
class SamplingRow:
    """One row that samples in a step, as the host sees it at launch."""

    row: int
    params: SamplingParams
    choice: int
    position: int  # of the token to be sampled
    banned: tuple[int, ...]  # ids that may not be sampled yet (min_tokens)
    mask: "Future[Mask] | None" = None  # the ids that its grammar allows

    @property
    def penalised(self) -> bool:
        return has_penalty(self.params)


def check_params(params: SamplingParams, vocab_size: int) -> None:
    """Raises ValueError, naming the field, for a value that sampling has no meaning for."""
    allowed = {
        "max_tokens": params.max_tokens >= 1,
        "min_tokens": params.min_tokens >= 0,
        "temperature": 0 <= params.temperature < math.inf,
        "top_k": 0 <= params.top_k < 2**31,
        "top_p": 0 < params.top_p <= 1,
        "min_p": 0 <= params.min_p <= 1,
        "repetition_penalty": 0 < params.repetition_penalty < math.inf,
        "presence_penalty": math.isfinite(params.presence_penalty),
        "frequency_penalty": math.isfinite(params.frequency_penalty),
        "logit_bias": not any(math.isnan(value) for value in params.logit_bias.values()),
        "seed": -(2**63) <= params.seed < 2**63,
        "logprobs": params.logprobs is None or 0 <= params.logprobs <= min(MAX_LOGPROBS, vocab_size),
        "prompt_logprobs": params.prompt_logprobs is None
        or 0 <= params.prompt_logprobs <= min(MAX_LOGPROBS, vocab_size),
    }
    for name, ok in allowed.items():
        if not ok:
            raise ValueError(f"{name} is {getattr(params, name)!r}, outside its range")


def has_penalty(params: SamplingParams) -> bool:
    return bool(params.repetition_penalty != 1.0 or params.presence_penalty or params.frequency_penalty)


def is_drawn(row: SamplingRow) -> bool:
    """Whether a row needs nothing of its logits but a token, by temperature, filters and penalties alone."""
    return row.params.logprobs is None and not row.banned and not row.params.logit_bias and row.mask is None


def is_plain(row: SamplingRow) -> bool:
    """Whether a row takes the best id of its logits as they are, and nothing else is asked of them."""
    return row.params.temperature == 0 and is_drawn(row) and not row.penalised


def stop_ids(params: SamplingParams, terminal_ids: tuple[int, ...]) -> tuple[int, ...]:
    """Every id that ends a row with these parameters."""
    return params.stop_token_ids if params.ignore_eos else (*terminal_ids, *params.stop_token_ids)


def sampling_row(chunk: Chunk, terminal_ids: tuple[int, ...]) -> SamplingRow:
    sequence = chunk.sequence
    params = sequence.request.params
    position = chunk.start + chunk.length
    early = position - sequence.prompt_length < params.min_tokens
    banned = stop_ids(params, terminal_ids) if early else ()
    mask = sequence.grammar.mask if sequence.grammar is not None else None
    return SamplingRow(chunk.row, params, sequence.choice, position, banned, mask)


def sampling_batch(rows: list[SamplingRow], state: RowState, device: torch.device) -> SamplingBatch:
    """Only parameters that some row of the step uses become tensors. Waits for the rows' masks, and raises
    GrammarError where there is none.
    """
    params = [row.params for row in rows]

    def column(name: str, dtype: torch.dtype) -> torch.Tensor:
        return torch.tensor([getattr(p, name) for p in params], dtype=dtype, device=device)

    batch = SamplingBatch(temperature=column("temperature", torch.float32))
    if any(p.temperature > 0 for p in params):
        batch.uniform = torch.from_numpy(
            uniform(
                np.array([p.seed for p in params], dtype=np.int64),
                np.array([row.choice for row in rows], dtype=np.int64),
                np.array([row.position for row in rows], dtype=np.int64),
            )
        ).to(device)
        if any(p.top_k > 0 for p in params):
            batch.top_k = column("top_k", torch.int64)
        if any(p.top_p < 1 for p in params):
            batch.top_p = column("top_p", torch.float32)
        if any(p.min_p > 0 for p in params):
            batch.min_p = column("min_p", torch.float32)
    if any(row.penalised for row in rows):
        batch.repetition = column("repetition_penalty", torch.float32)
        batch.presence = column("presence_penalty", torch.float32)
        batch.frequency = column("frequency_penalty", torch.float32)
        index = torch.tensor([row.row for row in rows], dtype=torch.int64, device=device)
        batch.prompt_seen, batch.output_counts = state.counts(index)
    _add_bias(batch, rows, state.vocab_size, device)
    wanting = [index for index, p in enumerate(params) if p.logprobs is not None]
    if wanting:
        batch.logprob_rows = torch.tensor(wanting, dtype=torch.int64, device=device)
        batch.logprob_count = max(p.logprobs or 0 for p in params)
    return batch


def _add_bias(batch: SamplingBatch, rows: list[SamplingRow], vocab_size: int, device: torch.device) -> None:
    biased = [(index, id) for index, row in enumerate(rows) for id in row.params.logit_bias]
    if biased:
        values = [value for row in rows for value in row.params.logit_bias.values()]
        batch.bias = torch.tensor(biased, dtype=torch.int64, device=device).unbind(1)
        batch.bias_values = torch.tensor(values, dtype=torch.float32, device=device)
    masks = [(index, row.mask.result()) for index, row in enumerate(rows) if row.mask is not None]
    if masks:
        batch.masked = torch.tensor([index for index, _ in masks], dtype=torch.int64, device=device)
        allowed = allowed_ids([mask for _, mask in masks], vocab_size)
        batch.allowed = torch.from_numpy(allowed).to(device)
    banned = [(index, id) for index, row in enumerate(rows) for id in row.banned]
    if banned:
        batch.banned = torch.tensor(banned, dtype=torch.int64, device=device).unbind(1)
