"""The device side of `kernels.triton.prefill`: one tile of queries, one stretch of its keys."""

import triton
import triton.language as tl

from kernels.triton.parts import begin


@triton.jit
def _walk(
    query,
    keys,
    values,
    table,
    stride_k_block: tl.constexpr,
    stride_k_offset: tl.constexpr,
    stride_v_block: tl.constexpr,
    stride_v_offset: tl.constexpr,
    position,
    least,
    start,
    stop,
    context,
    window,
    scale,
    most,
    total,
    mixed,
    D: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    MASKED: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Keys start..stop into the running maxima, sums [M] and accumulators [M, D].

    MASKED: not every query sees all of them. position: [M], of the queries. least: the first key that one of
    them sees: those before it may lie in blocks that are no longer the row's.
    """
    channel = tl.arange(0, D)
    for tile in tl.range(start, stop, BLOCK_N, num_stages=STAGES):
        place = tile + tl.arange(0, BLOCK_N)
        if BLOCK_N <= BLOCK_SIZE:
            page = tl.load(table + tile // BLOCK_SIZE).to(tl.int64)
            offset = tile % BLOCK_SIZE + tl.arange(0, BLOCK_N)
        else:
            if MASKED:
                page = tl.load(table + place // BLOCK_SIZE, mask=place < context, other=0).to(tl.int64)
            else:
                page = tl.load(table + place // BLOCK_SIZE).to(tl.int64)
            offset = place % BLOCK_SIZE
        k_place = (page * stride_k_block + offset * stride_k_offset)[:, None] + channel[None, :]
        v_place = (page * stride_v_block + offset * stride_v_offset)[:, None] + channel[None, :]
        if MASKED:
            exists = place < context
            if HAS_WINDOW:
                exists = exists & (place >= least)
            key = tl.load(keys + k_place, mask=exists[:, None], other=0.0)
            value = tl.load(values + v_place, mask=exists[:, None], other=0.0)
        else:
            key = tl.load(keys + k_place)
            value = tl.load(values + v_place)
        score = tl.dot(query, tl.trans(key), input_precision="ieee")
        if MASKED:
            seen = place[None, :] <= position[:, None]
            if HAS_WINDOW:
                seen = seen & (place[None, :] >= position[:, None] - window)
            score = tl.where(seen, score, float("-inf"))
            peak = tl.maximum(most, tl.max(score, axis=1) * scale)
            # A query that sees none of the keys so far has no maximum; nothing minus nothing is no number.
            safe = tl.where(peak == float("-inf"), 0.0, peak)
        else:
            peak = tl.maximum(most, tl.max(score, axis=1) * scale)
            safe = peak
        weight = tl.exp2(score * scale - safe[:, None])
        fade = tl.exp2(most - safe)
        total = total * fade + tl.sum(weight, axis=1)
        mixed = mixed * fade[:, None]
        mixed = tl.dot(weight.to(value.dtype), value, mixed, input_precision="ieee")
        most = peak
    return most, total, mixed


@triton.jit
def _merge(
    partials,
    stats,
    slot,
    splits,
    BLOCK_M: tl.constexpr,
    D: tl.constexpr,
    ROWS: tl.constexpr,
):
    """(sums [BLOCK_M], accumulators [BLOCK_M, D]) of one tile from those of its stretches, in their order."""
    index, channel = tl.arange(0, BLOCK_M), tl.arange(0, D)
    most = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    mixed = tl.zeros([BLOCK_M, D], tl.float32)
    for number in tl.range(0, splits, num_stages=1):
        place = (slot + number).to(tl.int64) * ROWS + index
        # Written by other multiprocessors: not to be looked for in this one's own cache.
        peak = tl.load(stats + place * 2, cache_modifier=".cg")
        part = tl.load(stats + place * 2 + 1, cache_modifier=".cg")
        value = tl.load(partials + place[:, None] * D + channel[None, :], cache_modifier=".cg")
        highest = tl.maximum(most, peak)
        safe = tl.where(highest == float("-inf"), 0.0, highest)
        fade, weight = tl.exp2(most - safe), tl.exp2(peak - safe)
        total = total * fade + weight * part
        mixed = mixed * fade[:, None] + weight[:, None] * value
        most = highest
    return total, mixed


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
        table = block_tables + row * stride_table
        left = start
        right = tl.minimum((lowest + 1) // BLOCK_N * BLOCK_N, stop)
        most = tl.full([BLOCK_M], float("-inf"), tl.float32)
        total = tl.zeros([BLOCK_M], tl.float32)
        mixed = tl.zeros([BLOCK_M, D], tl.float32)
        if HAS_WINDOW:
            edge = (tl.maximum(highest - window, 0) + BLOCK_N - 1) // BLOCK_N * BLOCK_N
            left = tl.minimum(tl.maximum(edge, start), stop)
            most, total, mixed = _walk(
                query,
                keys,
                values,
                table,
                stride_k_block,
                stride_k_offset,
                stride_v_block,
                stride_v_offset,
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
        most, total, mixed = _walk(
            query,
            keys,
            values,
            table,
            stride_k_block,
            stride_k_offset,
            stride_v_block,
            stride_v_offset,
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
        most, total, mixed = _walk(
            query,
            keys,
            values,
            table,
            stride_k_block,
            stride_k_offset,
            stride_v_block,
            stride_v_offset,
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
                total, mixed = _merge(partials, stats, tile_slot, splits, BLOCK_M, D, SLOT_ROWS)
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
