"""The device side of `kernels.triton.prefill`: one tile of queries, one stretch of its keys."""

import triton
import triton.language as tl

from kernels.triton.parts import begin
from kernels.triton.prefill_tiles import merge, walk


@triton.jit
def _tile(
    turn,
    tile,
    first,
    length,
    row,
    context,
    column,
    stretch,
    q,
    k_pages,
    v_pages,
    k_scales,
    v_scales,
    block_tables,
    out,
    partials,
    stats,
    counters,
    most_splits,
    split_tiles,
    window,
    stride_q: tl.constexpr,
    stride_q_head: tl.constexpr,
    stride_k_block: tl.constexpr,
    stride_k_offset: tl.constexpr,
    stride_k_head: tl.constexpr,
    stride_v_block: tl.constexpr,
    stride_v_offset: tl.constexpr,
    stride_v_head: tl.constexpr,
    stride_s_block: tl.constexpr,
    stride_s_offset: tl.constexpr,
    stride_s_head: tl.constexpr,
    stride_table,
    stride_out: tl.constexpr,
    scale,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    PACKED: tl.constexpr,
    QUERIES: tl.constexpr,
    D: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    STAGES: tl.constexpr,
    SPLIT: tl.constexpr,
    SPLIT_KEYS: tl.constexpr,
    SLOT_ROWS: tl.constexpr,
):
    """Queries tile * QUERIES.. of a chunk that begins at token `first`, for the heads of one column, over the
    stretch's part of their keys. turn: the tile's place in the order of work, longest first; the first
    `split_tiles` have slots for what their stretches leave.
    """
    # Keys 0..lowest are seen by all of the tile's queries, none behind highest by any.
    lowest = context - length + tile * QUERIES
    highest = context - length + tl.minimum(tile * QUERIES + QUERIES, length) - 1
    least = 0
    if HAS_WINDOW:
        least = tl.maximum(lowest - window, 0)
    start, stop = least // BLOCK_N * BLOCK_N, highest + 1
    head = column * PACKED
    splits = 1
    if SPLIT:
        allowed = tl.where(turn < split_tiles, most_splits, 1)
        splits = tl.minimum(tl.maximum((stop - start) // SPLIT_KEYS, 1), allowed)
        size = ((stop - start + splits - 1) // splits + BLOCK_N - 1) // BLOCK_N * BLOCK_N
        splits = (stop - start + size - 1) // size
        start += stretch * size
        stop = tl.minimum(stop, start + size)
    if stretch < splits:
        index = tl.arange(0, BLOCK_M)
        number, member = tile * QUERIES + index // PACKED, index % PACKED
        inside = (index < QUERIES * PACKED) & (number < length)
        position = context - length + number
        token = (first + number).to(tl.int64)
        channel = tl.arange(0, D)
        place = (token * stride_q + (head + member) * stride_q_head)[:, None] + channel[None, :]
        query = tl.load(q + place, mask=inside[:, None], other=0.0)
        kv_head = (head // GROUP).to(tl.int64)
        keys, values = k_pages + kv_head * stride_k_head, v_pages + kv_head * stride_v_head
        if k_scales is not None:
            k_scales += kv_head * stride_s_head
            v_scales += kv_head * stride_s_head
        table = block_tables + row * stride_table
        left = start
        right = tl.minimum((lowest + 1) // BLOCK_N * BLOCK_N, stop)
        most = tl.full([BLOCK_M], float("-inf"), tl.float32)
        total = tl.zeros([BLOCK_M], tl.float32)
        mixed = tl.zeros([BLOCK_M, D], tl.float32)
        if HAS_WINDOW:
            edge = (tl.maximum(highest - window, 0) + BLOCK_N - 1) // BLOCK_N * BLOCK_N
            left = tl.minimum(tl.maximum(edge, start), stop)
            most, total, mixed = walk(
                query,
                keys,
                values,
                k_scales,
                v_scales,
                table,
                stride_k_block,
                stride_k_offset,
                stride_v_block,
                stride_v_offset,
                stride_s_block,
                stride_s_offset,
                position,
                least,
                start,
                left,
                context,
                window,
                scale,
                most,
                total,
                mixed,
                D,
                BLOCK_SIZE,
                BLOCK_N,
                HAS_WINDOW,
                True,
                1,
            )
        right = tl.maximum(left, right)
        most, total, mixed = walk(
            query,
            keys,
            values,
            k_scales,
            v_scales,
            table,
            stride_k_block,
            stride_k_offset,
            stride_v_block,
            stride_v_offset,
            stride_s_block,
            stride_s_offset,
            position,
            least,
            left,
            right,
            context,
            window,
            scale,
            most,
            total,
            mixed,
            D,
            BLOCK_SIZE,
            BLOCK_N,
            HAS_WINDOW,
            False,
            STAGES,
        )
        most, total, mixed = walk(
            query,
            keys,
            values,
            k_scales,
            v_scales,
            table,
            stride_k_block,
            stride_k_offset,
            stride_v_block,
            stride_v_offset,
            stride_s_block,
            stride_s_offset,
            position,
            least,
            right,
            stop,
            context,
            window,
            scale,
            most,
            total,
            mixed,
            D,
            BLOCK_SIZE,
            BLOCK_N,
            HAS_WINDOW,
            True,
            1,
        )
        target = out + (token * stride_out + (head + member) * D)[:, None] + channel[None, :]
        if splits == 1:
            result = mixed / tl.where(total == 0.0, 1.0, total)[:, None]
            tl.store(target, result.to(out.dtype.element_ty), mask=inside[:, None])
        elif SPLIT:
            tile_slot = (turn * (HEADS // PACKED) + column) * most_splits
            slot = (tile_slot + stretch).to(tl.int64) * SLOT_ROWS + index
            tl.store(partials + slot[:, None] * D + channel[None, :], mixed)
            tl.store(stats + slot * 2, most)
            tl.store(stats + slot * 2 + 1, total)
            # All of the program's stores come before the one thread that announces them.
            tl.debug_barrier()
            if tl.atomic_add(counters + tile_slot, 1, sem="acq_rel", scope="gpu") == splits - 1:
                total, mixed = merge(partials, stats, tile_slot, splits, BLOCK_M, D, SLOT_ROWS)
                result = mixed / tl.where(total == 0.0, 1.0, total)[:, None]
                tl.store(target, result.to(out.dtype.element_ty), mask=inside[:, None])
                tl.store(counters + tile_slot, 0)


@triton.jit
def _tiles_of_chunks(chunk_rows, cu_queries, chunks, QUERIES: tl.constexpr, CHUNKS: tl.constexpr):
    """[CHUNKS]: how many tiles each chunk has; none where it is unused."""
    chunk = tl.arange(0, CHUNKS)
    used = tl.load(chunk_rows + chunk, mask=chunk < chunks, other=-1) >= 0
    begins = tl.load(cu_queries + chunk, mask=used, other=0)
    return (tl.load(cu_queries + chunk + 1, mask=used, other=0) - begins + QUERIES - 1) // QUERIES


# Strides are constants of an engine: known to the compiler, addresses take less arithmetic.
@triton.jit(do_not_specialize=["chunks", "tiles", "most_splits", "split_tiles", "window", "stride_table"])
def prefill_kernel(
    q,
    k_pages,
    v_pages,
    k_scales,
    v_scales,
    block_tables,
    chunk_rows,
    cu_queries,
    contexts,
    out,
    partials,
    stats,
    counters,
    chunks,
    tiles,
    most_splits,
    split_tiles,
    window,
    stride_q: tl.constexpr,
    stride_q_head: tl.constexpr,
    stride_k_block: tl.constexpr,
    stride_k_offset: tl.constexpr,
    stride_k_head: tl.constexpr,
    stride_v_block: tl.constexpr,
    stride_v_offset: tl.constexpr,
    stride_v_head: tl.constexpr,
    stride_s_block: tl.constexpr,
    stride_s_offset: tl.constexpr,
    stride_s_head: tl.constexpr,
    stride_table,
    stride_out: tl.constexpr,
    scale,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    PACKED: tl.constexpr,
    QUERIES: tl.constexpr,
    SECTION: tl.constexpr,
    CHUNKS: tl.constexpr,
    D: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    STAGES: tl.constexpr,
    SPLIT: tl.constexpr,
    SPLIT_KEYS: tl.constexpr,
    SLOT_ROWS: tl.constexpr,
    PDL: tl.constexpr,
):
    begin(PDL)
    live = tl.sum(_tiles_of_chunks(chunk_rows, cu_queries, chunks, QUERIES, CHUNKS), axis=0)
    # A section's heads side by side, the last tiles first: they have the most keys and should not start late.
    program = tl.program_id(0)
    stretch, program = program % most_splits, program // most_splits
    section, rest = program // (tiles * SECTION), program % (tiles * SECTION)
    # More than one turn only where a step has more chunks than the grid has been made for.
    for turn in tl.range(rest // SECTION, live, tiles, num_stages=1):
        number = live - 1 - turn
        # Counted again in each turn, which is nearly always the only one: kept, they would take registers.
        count = _tiles_of_chunks(chunk_rows, cu_queries, chunks, QUERIES, CHUNKS)
        ends = tl.cumsum(count, axis=0)
        found = tl.sum((ends <= number).to(tl.int32), axis=0)
        first = tl.load(cu_queries + found)
        length = tl.load(cu_queries + found + 1) - first
        row = tl.load(chunk_rows + found).to(tl.int64)
        context = tl.load(contexts + found)
        _tile(
            turn,
            number - tl.sum(tl.where(tl.arange(0, CHUNKS) == found, ends - count, 0)),
            first,
            length,
            row,
            context,
            section * SECTION + rest % SECTION,
            stretch,
            q,
            k_pages,
            v_pages,
            k_scales,
            v_scales,
            block_tables,
            out,
            partials,
            stats,
            counters,
            most_splits,
            split_tiles,
            window,
            stride_q,
            stride_q_head,
            stride_k_block,
            stride_k_offset,
            stride_k_head,
            stride_v_block,
            stride_v_offset,
            stride_v_head,
            stride_s_block,
            stride_s_offset,
            stride_s_head,
            stride_table,
            stride_out,
            scale,
            HEADS,
            GROUP,
            PACKED,
            QUERIES,
            D,
            BLOCK_SIZE,
            BLOCK_M,
            BLOCK_N,
            HAS_WINDOW,
            STAGES,
            SPLIT,
            SPLIT_KEYS,
            SLOT_ROWS,
        )
