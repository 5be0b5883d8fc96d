"""The device side of `kernels.triton.gemm`: one tile of outputs over one part of K."""

import triton
import triton.language as tl

from kernels.triton.parts import inverse_rms

LINE = tl.constexpr(128)  # bytes that a prefetch fetches


@triton.jit
def _fetch_ahead(weight, first_column, N, K, start, END, COLUMNS: tl.constexpr, LINES: tl.constexpr):
    """Asks for the first LINES lines of each of the tile's rows of weights: they come to the L2 cache.

    Weights are never written during a step, so this may run before the kernel in front has ended.
    """
    column = tl.minimum(first_column + tl.arange(0, COLUMNS), N - 1)
    place = tl.minimum(start + tl.arange(0, LINES) * (LINE // 2), END - 1)
    address = weight + column.to(tl.int64)[:, None] * K + place[None, :]
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.u32 $0, 0;",
        "=r,l",
        [address],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )


@triton.jit
def _finish(
    sums,
    squares,
    out,
    stride_out,
    row,
    column,
    m,
    N,
    K,
    eps,
    relu,
    accumulate,
    NORM: tl.constexpr,
    SWIGLU: tl.constexpr,
):
    """The norm's factor, the activation, the store of [rows, columns] sums."""
    if NORM:
        sums *= inverse_rms(squares, K, eps)[:, None]
    if SWIGLU:
        ROWS: tl.constexpr = sums.shape[0]
        COLUMNS: tl.constexpr = sums.shape[1]
        pairs = tl.permute(tl.reshape(sums, [ROWS, COLUMNS // 16, 2, 8]), [0, 1, 3, 2])
        gate, up = tl.split(pairs)
        value = tl.reshape(gate * tl.sigmoid(gate) * up, [ROWS, COLUMNS // 2])
        target = column // 2 + tl.arange(0, COLUMNS // 2)
        inside = (row < m)[:, None] & (target < N // 2)[None, :]
        place = out + row.to(tl.int64)[:, None] * stride_out + target[None, :]
        tl.store(place, value.to(out.dtype.element_ty), mask=inside)
    else:
        target = column + tl.arange(0, sums.shape[1])
        inside = (row < m)[:, None] & (target < N)[None, :]
        place = out + row.to(tl.int64)[:, None] * stride_out + target[None, :]
        before = tl.load(place, mask=inside & (accumulate != 0), other=0.0).to(tl.float32)
        if relu != 0:
            sums = tl.where(sums < 0.0, 0.0, sums)  # unlike a maximum, keeps NaN
            sums *= sums
        tl.store(place, (before + sums).to(out.dtype.element_ty), mask=inside)


@triton.jit
def _diagonal(products):
    """[rows, rows] -> [rows]; what is beside it may be anything."""
    row = tl.arange(0, products.shape[0])
    return tl.sum(tl.where(row[:, None] == row[None, :], products, 0.0), axis=1)


@triton.jit
def _merge(
    partials,
    slot,
    split,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    AT_ONCE: tl.constexpr,
):
    """A tile's parts added in their order; AT_ONCE of them are loaded before the first is added."""
    SIZE: tl.constexpr = ROWS * COLUMNS
    inside = tl.arange(0, ROWS)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    place = partials + slot.to(tl.int64) * SIZE + inside
    sums = tl.zeros([ROWS, COLUMNS], tl.float32)
    for first in tl.range(0, split, AT_ONCE, num_stages=1):
        # Written by other multiprocessors: not to be looked for in this one's own cache.
        part = tl.load(place + first * SIZE, cache_modifier=".cg")
        if AT_ONCE > 1:
            second = tl.load(
                place + (first + 1) * SIZE, mask=first + 1 < split, other=0.0, cache_modifier=".cg"
            )
        if AT_ONCE > 2:
            third = tl.load(
                place + (first + 2) * SIZE, mask=first + 2 < split, other=0.0, cache_modifier=".cg"
            )
            fourth = tl.load(
                place + (first + 3) * SIZE, mask=first + 3 < split, other=0.0, cache_modifier=".cg"
            )
        sums += part
        if AT_ONCE > 1:
            sums += second
        if AT_ONCE > 2:
            sums = (sums + third) + fourth
    return sums


@triton.jit
def _merge_squares(squares, slot, split, ROWS: tl.constexpr):
    place = squares + slot * ROWS + tl.arange(0, ROWS)
    total = tl.zeros([ROWS], tl.float32)
    for part in tl.range(0, split, num_stages=1):
        total += tl.load(place + part * ROWS, cache_modifier=".cg")
    return total


# Strides and sizes are multiples of 16 for all models, so that one compiled kernel serves every shape.
@triton.jit(do_not_specialize=["m", "split", "relu", "accumulate"])
def gemm_kernel(
    x,
    weight,
    x_tiles,
    weight_tiles,
    out,
    partials,
    part_squares,
    counters,
    m,
    N,
    K,
    stride_x,
    stride_out,
    eps,
    split,
    relu,
    accumulate,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    SWAPPED: tl.constexpr,
    SPLIT: tl.constexpr,
    NORM: tl.constexpr,
    SWIGLU: tl.constexpr,
    TILES: tl.constexpr,
    STAGES: tl.constexpr,
    AT_ONCE: tl.constexpr,
    AHEAD: tl.constexpr,
    PDL: tl.constexpr,
):
    # Programs that share weights are neighbours, then those that share a tile.
    row_tiles = (m + ROWS - 1) // ROWS
    program = tl.program_id(0)
    row_tile, rest = program % row_tiles, program // row_tiles
    part, column_tile = rest % split, rest // split
    steps = K // DEPTH
    first, last = steps * part // split, steps * (part + 1) // split
    column = column_tile * COLUMNS
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        if AHEAD > 0:
            _fetch_ahead(weight, column, N, K, first * DEPTH, last * DEPTH, COLUMNS, AHEAD)
        tl.extra.cuda.gdc_wait()
    row = row_tile * ROWS + tl.arange(0, ROWS)
    lane = tl.arange(0, DEPTH)
    from_x = x + row.to(tl.int64)[:, None] * stride_x + lane[None, :]
    # Columns behind the end repeat the last one; they are computed and not stored.
    which = tl.minimum(column + tl.arange(0, COLUMNS), N - 1).to(tl.int64)
    from_weight = weight + which[:, None] * K + lane[None, :]
    if SWAPPED:
        sums = tl.zeros([COLUMNS, ROWS], tl.float32)
    else:
        sums = tl.zeros([ROWS, COLUMNS], tl.float32)
    products = tl.zeros([ROWS, ROWS], tl.float32)
    for step in tl.range(first, last, num_stages=STAGES):
        if TILES:
            some_x = x_tiles.load([row_tile * ROWS, step * DEPTH])
            some_weights = weight_tiles.load([column, step * DEPTH])
        else:
            some_x = tl.load(from_x + step * DEPTH, mask=(row < m)[:, None], other=0.0)
            some_weights = tl.load(from_weight + step * DEPTH)
        if SWAPPED:
            sums = tl.dot(some_weights, some_x.T, sums)
        else:
            sums = tl.dot(some_x, some_weights.T, sums)
        if NORM:
            # All products of two rows, of which only each row's with itself is wanted: but the tensor cores
            # have time, and read x where it lies. As registers it would have to be fetched by every warp and
            # waited for, and it would have one buffer too few: Triton 3.6 adds the one that a running product
            # needs only where products are its only readers, and the next copy could overtake it.
            products = tl.dot(some_x, some_x.T, products)
    if SWAPPED:
        sums = sums.T
    squares = _diagonal(products)
    if SPLIT:
        tile = column_tile * row_tiles + row_tile
        slot = tile * split
        mine = (slot + part).to(tl.int64)
        inside = tl.arange(0, ROWS)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
        tl.store(partials + mine * (ROWS * COLUMNS) + inside, sums)
        if NORM:
            tl.store(part_squares + mine * ROWS + tl.arange(0, ROWS), squares)
        # All of the program's stores come before the one thread that announces them.
        tl.debug_barrier()
        if tl.atomic_add(counters + tile, 1, sem="acq_rel", scope="gpu") == split - 1:
            sums = _merge(partials, slot, split, ROWS, COLUMNS, AT_ONCE)
            if NORM:
                squares = _merge_squares(part_squares, slot, split, ROWS)
            _finish(sums, squares, out, stride_out, row, column, m, N, K, eps, relu, accumulate, NORM, SWIGLU)
            tl.store(counters + tile, 0)
    else:
        _finish(sums, squares, out, stride_out, row, column, m, N, K, eps, relu, accumulate, NORM, SWIGLU)
