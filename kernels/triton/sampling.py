"""From logits to tokens on the device: one call queues the whole sampler, whatever the rows ask for.

Reference: kernels.sampling, whose order and meaning hold here. Parameters are indexed by row and read on the
device, so a captured step serves every mix of rows; what a row does not ask for is skipped inside the
kernels. No vocabulary is sorted. A row's result depends on that row alone, bit for bit. Penalties are rounded
as torch rounds them, lists of candidates are weighed in float64 as in the reference, and the mass of a whole
row in float32, summed in float64: that CDF is right to 1e-6.
"""

from dataclasses import dataclass, fields

import torch
import triton

from kernels.sampling import MAX_BIASES, MAX_STOP_IDS
from kernels.triton.sampling_filters import LIST
from kernels.triton.sampling_finish import finish_kernel
from kernels.triton.sampling_groups import (
    GROUP,
    TILE_GROUPS,
    adjust_kernel,
    groups_kernel,
)
from kernels.triton.sampling_logprobs import MAX_LOGPROBS, logprobs_kernel

GROUP_SIZE = int(GROUP.value)
TILE = GROUP_SIZE * int(TILE_GROUPS.value)  # ids
LIST_SIZE = int(LIST.value)
PROGRAMS = 2048  # of the kernels that split the vocabulary, at about which parts are made longer instead
MOST_COUNTED = 2**15 - 1
ALIGNMENT = 64


@dataclass(slots=True)
class SamplingRows:
    """Sampling parameters of every row; tensors are [rows], int32 where nothing else is said.

    temperature (float32): 0 is greedy. top_k: 0 or less is off. top_p, min_p, repetition, presence,
    frequency: float32. seed: int64. choice: which of a request's n answers. logprobs: alternatives to report,
    0 to 20, or -1 for no logprobs at all. min_position: the first stop_count of stop_ids [rows, 80] are
    banned for tokens before this position. bias_count, bias_ids [rows, 1024], bias_values [rows, 1024]
    float32: each id at most once. penalised: 1 where repetition, presence or frequency are to be looked at.
    masked: 1 where only those ids may be sampled whose bits are set in masks [rows, ceil(vocab / 32)].
    prompt_seen: [rows, vocab] uint8; output_counts: [rows, vocab] int16, counting up to 32,767; None until
    `ensure_penalties`, and without them no row is penalised.
    """

    vocab: int
    temperature: torch.Tensor
    top_k: torch.Tensor
    top_p: torch.Tensor
    min_p: torch.Tensor
    repetition: torch.Tensor
    presence: torch.Tensor
    frequency: torch.Tensor
    seed: torch.Tensor
    choice: torch.Tensor
    logprobs: torch.Tensor
    min_position: torch.Tensor
    stop_count: torch.Tensor
    stop_ids: torch.Tensor
    bias_count: torch.Tensor
    bias_ids: torch.Tensor
    bias_values: torch.Tensor
    penalised: torch.Tensor
    masked: torch.Tensor
    masks: torch.Tensor
    prompt_seen: torch.Tensor | None = None
    output_counts: torch.Tensor | None = None

    @classmethod
    def allocate(cls, rows: int, vocab: int, device: torch.device | str) -> "SamplingRows":
        """Every row greedy."""

        def ints(*shape: int, value: int = 0) -> torch.Tensor:
            return torch.full(shape, value, dtype=torch.int32, device=device)

        def floats(*shape: int, value: float = 0.0) -> torch.Tensor:
            return torch.full(shape, value, dtype=torch.float32, device=device)

        return cls(
            vocab=vocab,
            temperature=floats(rows),
            top_k=ints(rows),
            top_p=floats(rows, value=1.0),
            min_p=floats(rows),
            repetition=floats(rows, value=1.0),
            presence=floats(rows),
            frequency=floats(rows),
            seed=torch.zeros(rows, dtype=torch.int64, device=device),
            choice=ints(rows),
            logprobs=ints(rows, value=-1),
            min_position=ints(rows),
            stop_count=ints(rows),
            stop_ids=ints(rows, MAX_STOP_IDS),
            bias_count=ints(rows),
            bias_ids=ints(rows, MAX_BIASES),
            bias_values=floats(rows, MAX_BIASES),
            penalised=ints(rows),
            masked=ints(rows),
            masks=ints(rows, triton.cdiv(vocab, 32)),
        )

    def ensure_penalties(self) -> None:
        """Allocates the penalty counts, 3 bytes for each row and id. Before a capture that is to use them."""
        if self.prompt_seen is None:
            rows, device = self.temperature.size(0), self.temperature.device
            width = triton.cdiv(self.vocab, ALIGNMENT) * ALIGNMENT
            self.prompt_seen = torch.zeros(rows, width, dtype=torch.uint8, device=device)[:, : self.vocab]
            self.output_counts = torch.zeros(rows, width, dtype=torch.int16, device=device)[:, : self.vocab]

    def reset_counts(self, row: int, prompt_ids: torch.Tensor, output_ids: torch.Tensor) -> None:
        """Rebuilds a row's penalty counts from its tokens, queued on the current stream without waiting.

        prompt_ids, output_ids: int32 or int64 on the rows' device, any length, repeats welcome.
        """
        self.ensure_penalties()
        assert self.prompt_seen is not None and self.output_counts is not None
        seen = self.prompt_seen[row]
        seen.zero_()
        seen.index_fill_(0, prompt_ids.long(), 1)
        counts = torch.zeros(self.vocab, dtype=torch.int32, device=seen.device)
        counts.index_add_(0, output_ids.long(), torch.ones_like(output_ids, dtype=torch.int32))
        self.output_counts[row].copy_(counts.clamp_(max=MOST_COUNTED))


@dataclass(slots=True)
class SampleOutput:
    """What `sample` writes, and its scratch.

    tokens: [entries] int32. valid: [entries] int32, 0 where the logits held NaN, inf, or no finite value, and
    for padding. For rows that ask for logprobs: logprobs [entries] float32, and of top_ids [entries, 20]
    int32 and top_logprobs [entries, 20] float32 as many as asked for, best first; the rest keeps what it
    held.
    Scratch, by entry: group_max, group_sum, raw_max, raw_sum [., groups] float32; group_list [., groups] and
    list_ids [., 2048] int32; list_values [., 2048], adjusted [., vocab] and saved [., 80] float32; state [.]
    int32.
    """

    tokens: torch.Tensor
    valid: torch.Tensor
    logprobs: torch.Tensor
    top_ids: torch.Tensor
    top_logprobs: torch.Tensor
    group_max: torch.Tensor
    group_sum: torch.Tensor
    raw_max: torch.Tensor
    raw_sum: torch.Tensor
    group_list: torch.Tensor
    list_ids: torch.Tensor
    list_values: torch.Tensor
    adjusted: torch.Tensor
    saved: torch.Tensor
    state: torch.Tensor

    @classmethod
    def allocate(cls, max_entries: int, vocab: int, device: torch.device | str) -> "SampleOutput":
        groups = triton.cdiv(triton.cdiv(vocab, GROUP_SIZE), ALIGNMENT) * ALIGNMENT
        width = triton.cdiv(vocab, ALIGNMENT) * ALIGNMENT

        def ints(*shape: int) -> torch.Tensor:
            return torch.zeros(max_entries, *shape, dtype=torch.int32, device=device)

        def floats(*shape: int) -> torch.Tensor:
            return torch.zeros(max_entries, *shape, dtype=torch.float32, device=device)

        return cls(
            tokens=ints(),
            valid=ints(),
            logprobs=floats(),
            top_ids=ints(MAX_LOGPROBS),
            top_logprobs=floats(MAX_LOGPROBS),
            group_max=floats(groups),
            group_sum=floats(groups),
            raw_max=floats(groups),
            raw_sum=floats(groups),
            group_list=ints(groups),
            list_ids=ints(LIST_SIZE),
            list_values=floats(LIST_SIZE),
            adjusted=floats(width),
            saved=floats(MAX_STOP_IDS),
            state=ints(),
        )

    @property
    def nbytes(self) -> int:
        return sum(getattr(self, field.name).nbytes for field in fields(self))


def sample(
    logits: torch.Tensor,
    entry_rows: torch.Tensor,
    entry_positions: torch.Tensor,
    rows: SamplingRows,
    out: SampleOutput,
    *,
    vocab: int,
    softcap: float | None,
    full: bool,
    pdl: bool = False,
) -> None:
    """One token for each entry, into the leading entries of `out`.

    logits: [entries, at least vocab] bfloat16 or float32, rows of any stride, left as they are; softcap is
    applied to them on the way, infinite ones excepted. entry_rows: [entries] int32, -1 for padding; no two
    live entries may share a row. entry_positions: [entries] int32, of the tokens to be sampled.
    full: penalties, biases, masks, bans and logprobs are looked at; without it they are ignored.
    """
    entries = entry_rows.size(0)
    if not entries:
        return
    tiles = triton.cdiv(vocab, TILE)
    # Long rows of a large batch keep the GPU busy with fewer programs, of several tiles each.
    each = triton.cdiv(tiles, max(1, min(tiles, PROGRAMS // entries)))
    grid = (triton.cdiv(tiles, each), entries)
    groups_kernel[grid](
        logits,
        entry_rows,
        rows.temperature,
        rows.top_k,
        rows.min_p,
        rows.logprobs,
        out.group_max,
        out.group_sum,
        out.raw_max,
        out.raw_sum,
        logits.stride(0),
        out.group_max.stride(0),
        softcap,
        each,
        VOCAB=vocab,
        FULL=full,
        PDL=pdl,
        num_warps=4,
        launch_pdl=pdl,
        enable_fp_fusion=False,
    )
    if full:
        _adjust(logits, entry_rows, entry_positions, rows, out, vocab, softcap, grid, each, pdl)
    _finish(logits, entry_rows, entry_positions, rows, out, vocab, softcap, full, pdl)
    if full:
        logprobs_kernel[(entries,)](
            logits,
            entry_rows,
            rows.logprobs,
            out.raw_max,
            out.raw_sum,
            out.tokens,
            out.logprobs,
            out.top_ids,
            out.top_logprobs,
            logits.stride(0),
            out.raw_max.stride(0),
            out.top_ids.stride(0),
            softcap,
            VOCAB=vocab,
            GROUP_BLOCK=group_block(vocab),
            PDL=pdl,
            num_warps=4,
            launch_pdl=pdl,
            enable_fp_fusion=False,
        )


def group_block(vocab: int) -> int:
    """Groups of a row, padded to what one program holds."""
    return max(64, triton.next_power_of_2(triton.cdiv(vocab, GROUP_SIZE)))


def _adjust(
    logits: torch.Tensor,
    entry_rows: torch.Tensor,
    entry_positions: torch.Tensor,
    rows: SamplingRows,
    out: SampleOutput,
    vocab: int,
    softcap: float | None,
    grid: tuple[int, int],
    each: int,
    pdl: bool,
) -> None:
    counts = rows.output_counts
    adjust_kernel[grid](
        logits,
        entry_rows,
        entry_positions,
        rows.temperature,
        rows.top_k,
        rows.min_p,
        rows.repetition,
        rows.presence,
        rows.frequency,
        rows.min_position,
        rows.stop_count,
        rows.stop_ids,
        rows.bias_count,
        rows.bias_ids,
        rows.bias_values,
        rows.penalised,
        rows.masked,
        rows.masks,
        rows.prompt_seen,
        counts,
        out.adjusted,
        out.saved,
        out.state,
        out.group_max,
        out.group_sum,
        logits.stride(0),
        rows.stop_ids.stride(0),
        rows.bias_ids.stride(0),
        rows.masks.stride(0),
        counts.stride(0) if counts is not None else 0,
        out.adjusted.stride(0),
        out.saved.stride(0),
        out.group_max.stride(0),
        softcap,
        each,
        VOCAB=vocab,
        STOP_BLOCK=triton.next_power_of_2(MAX_STOP_IDS),
        BIAS_BLOCK=MAX_BIASES,
        PDL=pdl,
        num_warps=4,
        launch_pdl=pdl,
        enable_fp_fusion=False,  # penalties round as torch's do
    )


def _finish(
    logits: torch.Tensor,
    entry_rows: torch.Tensor,
    entry_positions: torch.Tensor,
    rows: SamplingRows,
    out: SampleOutput,
    vocab: int,
    softcap: float | None,
    full: bool,
    pdl: bool,
) -> None:
    counts = rows.output_counts if full else None
    finish_kernel[(entry_rows.size(0),)](
        logits,
        entry_rows,
        entry_positions,
        rows.temperature,
        rows.top_k,
        rows.top_p,
        rows.min_p,
        rows.seed,
        rows.choice,
        rows.stop_count,
        rows.stop_ids,
        rows.penalised,
        counts,
        out.adjusted,
        out.saved,
        out.state,
        out.group_max,
        out.group_sum,
        out.raw_max,
        out.group_list,
        out.list_ids,
        out.list_values,
        out.tokens,
        out.valid,
        logits.stride(0),
        rows.stop_ids.stride(0),
        counts.stride(0) if counts is not None else 0,
        out.adjusted.stride(0),
        out.saved.stride(0),
        out.group_max.stride(0),
        softcap,
        VOCAB=vocab,
        GROUP_BLOCK=group_block(vocab),
        STOP_BLOCK=triton.next_power_of_2(MAX_STOP_IDS),
        FULL=full,
        PDL=pdl,
        num_warps=8,
        maxnreg=128,  # two programs on a multiprocessor, for which the rare paths spill a little
        launch_pdl=pdl,
        enable_fp_fusion=False,
    )
