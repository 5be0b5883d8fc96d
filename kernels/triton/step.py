"""What surrounds the network in a step: row state in, row state out.

A row's last token and length live on the device, so that a step can be queued before the tokens of the one in
front of it are known. All index tensors are int32.
"""

import torch
import triton
import triton.language as tl

from kernels.triton.embed import gather
from kernels.triton.parts import begin, rounded

# One size each, whatever the step: every other size would be compiled, at start or while serving.
TOKENS = 128  # of one program of prepare_step
UPDATES = 256  # of one program of apply_updates
ENTRIES = 256  # of one round of finish_step
CHANNELS = 1024  # of one program of scale_add
LOST = tl.constexpr(2)  # what finish_step adds to an entry's validity where the step has failed


@triton.jit(do_not_specialize=["tokens", "table_width"])
def _prepare_kernel(
    token_rows,
    token_ids,
    token_positions,
    token_previous,
    last_token,
    previous_token,
    seq_len,
    block_tables,
    out_ids,
    out_previous,
    out_positions,
    out_slots,
    tokens,
    table_width,
    stride_table,
    BLOCK_SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    token = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = token < tokens
    begin(PDL)
    row = tl.load(token_rows + token, mask=inside, other=-1)
    given_id = tl.load(token_ids + token, mask=inside, other=0)
    given_position = tl.load(token_positions + token, mask=inside, other=0)
    given_previous = tl.load(token_previous + token, mask=inside, other=0)
    live = row >= 0
    from_row = live & (given_id < 0)
    identity = tl.load(last_token + row, mask=from_row, other=0)
    identity = tl.where(from_row, identity, given_id)
    previous = tl.load(previous_token + row, mask=from_row, other=0)
    previous = tl.where(from_row, previous, given_previous)
    place_from_row = live & (given_position < 0)
    position = tl.load(seq_len + row, mask=place_from_row, other=0)
    position = tl.where(place_from_row, position, given_position)
    entry = position // BLOCK_SIZE
    has_block = live & (entry < table_width)
    block = tl.load(block_tables + row.to(tl.int64) * stride_table + entry, mask=has_block, other=0)
    slot = tl.where(has_block, block * BLOCK_SIZE + position % BLOCK_SIZE, -1)
    tl.store(out_ids + token, tl.where(live, identity, 0), mask=inside)
    tl.store(out_previous + token, tl.where(live, tl.maximum(previous, 0), 0), mask=inside)
    tl.store(out_positions + token, tl.where(live, position, 0), mask=inside)
    tl.store(out_slots + token, slot, mask=inside)


def prepare_step(
    token_rows: torch.Tensor,
    token_ids: torch.Tensor,
    token_positions: torch.Tensor,
    token_previous: torch.Tensor,
    last_token: torch.Tensor,
    previous_token: torch.Tensor,
    seq_len: torch.Tensor,
    block_tables: torch.Tensor,
    block_size: int,
    out_ids: torch.Tensor,
    out_previous: torch.Tensor,
    out_positions: torch.Tensor,
    out_slots: torch.Tensor,
    *,
    pdl: bool = False,
) -> None:
    """A step's tokens: ids, ids before them, positions, and the slots that their keys and values go to.

    token_*, out_*: [tokens]. token_rows: -1 for padding, which becomes id 0, position 0, slot -1. token_ids:
    -1 takes the row's last token, and its previous one with it; else token_previous says what stands before
    (-1: unknown, or nothing; gives 0). token_positions: -1 takes the row's length. last_token,
    previous_token, seq_len: [rows]. block_tables: [rows, entries]; a position beyond them gets slot -1.
    """
    tokens = token_rows.size(0)
    _prepare_kernel[(-(-tokens // TOKENS),)](
        token_rows,
        token_ids,
        token_positions,
        token_previous,
        last_token,
        previous_token,
        seq_len,
        block_tables,
        out_ids,
        out_previous,
        out_positions,
        out_slots,
        tokens,
        block_tables.size(1),
        block_tables.stride(0),
        BLOCK_SIZE=block_size,
        BLOCK=TOKENS,
        PDL=pdl,
        num_warps=TOKENS // 32,
        launch_pdl=pdl,
    )


@triton.jit(do_not_specialize=["entries", "ring"])
def _finish_kernel(
    entry_rows,
    entry_tokens,
    positions,
    ids,
    sampled,
    last_token,
    previous_token,
    seq_len,
    out_ring,
    valid,
    valid_ring,
    step_counter,
    failed,
    entries,
    ring,
    stride_ring,
    stride_valid,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    begin(PDL)
    lost = 0
    if failed is not None:
        lost = (tl.load(failed) != 0).to(tl.int32) * LOST
    # One program, one thread of which counts: everybody gets the number from before.
    # After 2^31 steps the number turns negative, and its remainder would, too.
    slot = ((tl.atomic_add(step_counter, 1) & 0x7FFFFFFF) % ring).to(tl.int64)
    for start in range(0, entries, BLOCK):
        entry = start + tl.arange(0, BLOCK)
        inside = entry < entries
        row = tl.load(entry_rows + entry, mask=inside, other=-1)
        token = tl.load(entry_tokens + entry, mask=inside, other=0)
        chosen = tl.load(sampled + entry, mask=inside, other=0).to(tl.int32)
        good = tl.load(valid + entry, mask=inside, other=0).to(tl.int32)
        live = row >= 0
        position = tl.load(positions + token, mask=live, other=0)
        before = tl.load(ids + token, mask=live, other=0)
        tl.store(last_token + row, chosen, mask=live)
        tl.store(previous_token + row, before, mask=live)
        tl.store(seq_len + row, position + 1, mask=live)
        tl.store(out_ring + slot * stride_ring + entry, chosen, mask=inside)
        tl.store(valid_ring + slot * stride_valid + entry, good + lost, mask=inside)


def finish_step(
    entry_rows: torch.Tensor,
    entry_tokens: torch.Tensor,
    positions: torch.Tensor,
    ids: torch.Tensor,
    sampled: torch.Tensor,
    last_token: torch.Tensor,
    previous_token: torch.Tensor,
    seq_len: torch.Tensor,
    out_ring: torch.Tensor,
    valid: torch.Tensor,
    valid_ring: torch.Tensor,
    step_counter: torch.Tensor,
    *,
    failed: torch.Tensor | None = None,
    pdl: bool = False,
) -> None:
    """What was sampled becomes the rows' state, and is kept in a ring until the host has read it.

    entry_rows, entry_tokens, sampled, valid: [entries]; a row of -1 is padding. A live row gets its sampled
    token, the id of the token before (ids[entry_tokens]) and the length positions[entry_tokens] + 1.
    positions, ids: [tokens]. out_ring, valid_ring: [slots, most entries]; slot step_counter % slots receives
    `sampled` and `valid`, padding included, then step_counter [1] goes up by one. failed: [1] int32; where it
    is not 0, every entry's validity gets LOST on top. No two live entries may share a row.
    """
    entries = entry_rows.size(0)
    _finish_kernel[(1,)](
        entry_rows,
        entry_tokens,
        positions,
        ids,
        sampled,
        last_token,
        previous_token,
        seq_len,
        out_ring,
        valid,
        valid_ring,
        step_counter,
        failed,
        entries,
        out_ring.size(0),
        out_ring.stride(0),
        valid_ring.stride(0),
        BLOCK=ENTRIES,
        PDL=pdl,
        num_warps=ENTRIES // 32,
        launch_pdl=pdl,
    )


@triton.jit(do_not_specialize=["updates_size", "rows", "table_width"])
def _updates_kernel(
    updates,
    count,
    block_tables,
    updates_size,
    rows,
    table_width,
    stride_table,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    number = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    begin(PDL)
    inside = number < updates_size
    if count is not None:
        inside = inside & (number < tl.load(count))
    row = tl.load(updates + number * 3, mask=inside, other=-1)
    entry = tl.load(updates + number * 3 + 1, mask=inside, other=-1)
    block = tl.load(updates + number * 3 + 2, mask=inside, other=0)
    fits = (row >= 0) & (row < rows) & (entry >= 0) & (entry < table_width)
    tl.store(block_tables + row.to(tl.int64) * stride_table + entry, block, mask=fits)


def apply_updates(
    updates: torch.Tensor, count: torch.Tensor | None, block_tables: torch.Tensor, *, pdl: bool = False
) -> None:
    """block_tables[row, index] = block for each of the updates (row, index, block).

    updates: [size, 3], contiguous. count: [1], how many of them are meant; None: all. Those that point
    outside the table [rows, entries] are ignored; no two may name one place.
    """
    size = updates.size(0)
    _updates_kernel[(-(-size // UPDATES),)](
        updates,
        count,
        block_tables,
        size,
        *block_tables.shape,
        block_tables.stride(0),
        BLOCK=UPDATES,
        PDL=pdl,
        num_warps=UPDATES // 32,
        launch_pdl=pdl,
    )


def gather_rows(
    x: torch.Tensor,
    index: torch.Tensor,
    out: torch.Tensor,
    *,
    eps: float | None = None,
    weight: torch.Tensor | None = None,
    backout: tuple[torch.Tensor, torch.Tensor] | None = None,
    positions: tuple[torch.Tensor, torch.Tensor] | None = None,
    pdl: bool = False,
) -> None:
    """The rows of x that sample, with the network's last norm where eps is given.

    x: [tokens, width]. index: [entries]; -1 gives zeros. out: [entries, width]. weight: [width], the norm's.
    backout: nanochat's middle of the network [tokens, width] and its factor [1], subtracted before the norm.
    positions: those of the tokens [tokens], and where the entries' next ones go [entries], 0 for -1; both
    int32.
    """
    gather(index, x, out, eps=eps, weight=weight, backout=backout, positions=positions, pdl=pdl)


# a and b are single numbers of per-layer vectors, whose alignment differs from layer to layer.
@triton.jit(do_not_specialize_on_alignment=["a", "b"])
def _scale_add_kernel(
    x,
    x0,
    a,
    b,
    keep,
    stride_x,
    stride_x0,
    stride_keep,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    PARTS: tl.constexpr = (WIDTH + BLOCK - 1) // BLOCK
    dtype: tl.constexpr = x.dtype.element_ty
    row = (tl.program_id(0) // PARTS).to(tl.int64)
    column = (tl.program_id(0) % PARTS) * BLOCK + tl.arange(0, BLOCK)
    inside = column < WIDTH
    strength, share = rounded(tl.load(a).to(tl.float32), dtype), rounded(tl.load(b).to(tl.float32), dtype)
    begin(PDL)
    place = x + row * stride_x + column
    value = tl.load(place, mask=inside, other=0.0)
    first = tl.load(x0 + row * stride_x0 + column, mask=inside, other=0.0).to(tl.float32)
    if keep is not None:
        tl.store(keep + row * stride_keep + column, value, mask=inside)
    value = rounded(strength * value.to(tl.float32), dtype) + rounded(share * first, dtype)
    tl.store(place, value.to(dtype), mask=inside)


def scale_add(
    x: torch.Tensor,
    x0: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    *,
    keep: torch.Tensor | None = None,
    pdl: bool = False,
) -> None:
    """x = a * x + b * x0 in place, rounded as torch does for a, b of no dimension: to x's dtype first, then
    after each operation.

    x, x0: [tokens, width]. a, b: one number each, of any float type. keep: [tokens, width], gets x as it was.
    """
    tokens, width = x.shape
    block = min(CHANNELS, triton.next_power_of_2(width))
    _scale_add_kernel[(tokens * -(-width // block),)](
        x,
        x0,
        a,
        b,
        keep,
        x.stride(0),
        x0.stride(0),
        keep.stride(0) if keep is not None else 0,
        WIDTH=width,
        BLOCK=block,
        PDL=pdl,
        num_warps=max(1, block // 256),
        launch_pdl=pdl,
    )
