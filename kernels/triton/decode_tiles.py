"""Attention of a kv head's only query over a stretch of one row's keys, tile by tile."""

import triton
import triton.language as tl

from kernels.triton.decode_fresh import turned
from kernels.triton.parts import four_channels


@triton.jit
def _page_ids(table, start, end, BLOCK_SIZE: tl.constexpr, PAGES: tl.constexpr, PER: tl.constexpr):
    """[PAGES] int64: the pages that hold a tile's keys; block 0 for those behind the end."""
    key = start + tl.arange(0, PAGES) * PER
    return tl.load(table + key // BLOCK_SIZE, mask=key < end, other=0).to(tl.int64)


@triton.jit
def _places(
    pages,
    start,
    stride_block: tl.constexpr,
    stride_offset: tl.constexpr,
    D: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    PER: tl.constexpr,
):
    """[PAGES, PER, D] int64: where a tile's keys lie, seen from one head's first number."""
    offset = tl.arange(0, PER)[None, :, None]
    if PER < BLOCK_SIZE:
        offset += start % BLOCK_SIZE
    return pages[:, None, None] * stride_block + (offset * stride_offset + tl.arange(0, D)[None, None, :])


@triton.jit
def _scales(
    scales,
    pages,
    start,
    inside,
    stride_block: tl.constexpr,
    stride_offset: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    PER: tl.constexpr,
):
    """[PAGES, PER]: those of a tile's keys or values, of one head, where there are any. inside: which to
    read."""
    if scales is None:
        found = 0.0  # nobody looks at it
    else:
        offset = tl.arange(0, PER)[None, :]
        if PER < BLOCK_SIZE:
            offset += start % BLOCK_SIZE
        place = pages[:, None] * stride_block + offset * stride_offset
        found = tl.load(scales + place, mask=inside, other=0.0)
    return found


@triton.jit
def _quarters(x, D: tl.constexpr):
    """[D] as four [1, 1, D / 4]: the channels that lie first, second, third and fourth in their words."""
    even, odd = tl.split(tl.reshape(x, [D // 4, 2, 2]))
    first, third = tl.split(even)
    second, fourth = tl.split(odd)
    return first[None, None, :], second[None, None, :], third[None, None, :], fourth[None, None, :]


@triton.jit
def _prepared(
    query, fresh, scale, D: tl.constexpr, SCALED: tl.constexpr, ORDER: tl.constexpr, dtype: tl.constexpr
):
    """A query as tiles are multiplied with it; where there is an ORDER, it has to be turned first."""
    if ORDER is not None:
        query = tl.reshape(turned(query, fresh, D, ORDER, dtype), [D]).to(tl.float32) * scale
    if SCALED:
        prepared = _quarters(query, D)
    else:
        prepared = query[None, None, :]
    return prepared


@triton.jit
def _weighed(mixed, fade, weight, value):
    """The accumulator [P, K, D] with a tile of values [PAGES, PER, D] added, each times its weight: sums over
    every P-th page and every K-th key of a page.
    """
    P: tl.constexpr = mixed.shape[0]
    K: tl.constexpr = mixed.shape[1]
    PAGES: tl.constexpr = value.shape[0]
    PER: tl.constexpr = value.shape[1]
    parts = tl.reshape(weight[:, :, None] * value, [PAGES // P, P, PER // K, K, value.shape[2]])
    return mixed * fade + tl.sum(tl.sum(parts, axis=2), axis=0)


@triton.jit
def _together(mixed):
    """[D] of an accumulator [P, K, D]."""
    return tl.sum(tl.sum(mixed, axis=1), axis=0)


@triton.jit
def _accumulate(
    query,
    key,
    value,
    key_scale,
    value_scale,
    inside,
    most,
    total,
    mixed,
    MASKED: tl.constexpr,
    SCALED: tl.constexpr,
):
    """One tile of keys and values [PAGES, PER, D] into a query's [1, 1, D] (maximum, sum, accumulator).

    SCALED: keys and values are words of four channels each, [PAGES, PER, D / 4] with scales [PAGES, PER], and
    query and accumulator come in quarters. inside: [PAGES, PER], which keys count, where MASKED; one of them
    does, so that the maximum is finite.
    """
    if SCALED:
        k0, k1, k2, k3 = four_channels(key)
        q0, q1, q2, q3 = query
        score = tl.sum(k0 * q0 + k1 * q1 + k2 * q2 + k3 * q3, axis=2) * key_scale.to(tl.float32)
    else:
        score = tl.sum(key.to(tl.float32) * query, axis=2)
    if MASKED:
        score = tl.where(inside, score, float("-inf"))
    peak = tl.maximum(most, tl.max(tl.max(score, axis=1), axis=0))
    fade, weight = tl.exp2(most - peak), tl.exp2(score - peak)
    total = total * fade + tl.sum(tl.sum(weight, axis=1), axis=0)
    if SCALED:
        weight *= value_scale.to(tl.float32)
        v0, v1, v2, v3 = four_channels(value)
        m0, m1, m2, m3 = mixed
        mixed = (
            _weighed(m0, fade, weight, v0),
            _weighed(m1, fade, weight, v1),
            _weighed(m2, fade, weight, v2),
            _weighed(m3, fade, weight, v3),
        )
    else:
        mixed = _weighed(mixed, fade, weight, value.to(tl.float32))
    return peak, total, mixed


@triton.jit
def _partial_tile(
    query,
    keys,
    values,
    k_scales,
    v_scales,
    table,
    stride_k_block: tl.constexpr,
    stride_k_offset: tl.constexpr,
    stride_v_block: tl.constexpr,
    stride_v_offset: tl.constexpr,
    stride_s_block: tl.constexpr,
    stride_s_offset: tl.constexpr,
    tile,
    end,
    seen,
    most,
    total,
    mixed,
    D: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    PAGES: tl.constexpr,
    PER: tl.constexpr,
):
    """A tile of which only keys seen..end count: the others' slots may hold anything, and are not read."""
    position = tile + tl.arange(0, PAGES)[:, None] * PER + tl.arange(0, PER)[None, :]
    inside = (position < end) & (position >= seen)
    pages = _page_ids(table, tile, end, BLOCK_SIZE, PAGES, PER)
    k_place = keys + _places(pages, tile, stride_k_block, stride_k_offset, D, BLOCK_SIZE, PER)
    v_place = values + _places(pages, tile, stride_v_block, stride_v_offset, D, BLOCK_SIZE, PER)
    key = tl.load(k_place, mask=inside[:, :, None], other=0)
    value = tl.load(v_place, mask=inside[:, :, None], other=0)
    key_scale = _scales(k_scales, pages, tile, inside, stride_s_block, stride_s_offset, BLOCK_SIZE, PER)
    value_scale = _scales(v_scales, pages, tile, inside, stride_s_block, stride_s_offset, BLOCK_SIZE, PER)
    if tile + seen >= 0:
        most, total, mixed = _accumulate(
            query, key, value, key_scale, value_scale, inside, most, total, mixed, True, k_scales is not None
        )
    return most, total, mixed


@triton.jit
def attend_single(
    query,
    fresh,
    keys,
    values,
    k_scales,
    v_scales,
    table,
    stride_k_block: tl.constexpr,
    stride_k_offset: tl.constexpr,
    stride_v_block: tl.constexpr,
    stride_v_offset: tl.constexpr,
    stride_s_block: tl.constexpr,
    stride_s_offset: tl.constexpr,
    start,
    end,
    seen,
    scale,
    D: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    PREFETCH: tl.constexpr,
    STAGES: tl.constexpr,
    ORDER: tl.constexpr,
    dtype: tl.constexpr,
):
    """One query over keys start..end by multiplying and adding: a matrix unit would idle at 15 of 16 rows.

    query: [D] float32, scaled; where there is an ORDER, what `turned` makes one of, with fresh. keys, values:
    of words where there are scales (`four_channels`). Returns the maximum, the sum (scalars) and the
    accumulator [D]. Whole tiles go without masks, which would cost more than the loads.
    """
    PER: tl.constexpr = BLOCK_KEYS if BLOCK_KEYS < BLOCK_SIZE else BLOCK_SIZE
    PAGES: tl.constexpr = BLOCK_KEYS // PER
    SCALED: tl.constexpr = k_scales is not None
    W: tl.constexpr = D // 4 if SCALED else D
    # Keys that lie in different threads, 16 bytes of each in one: their sums stay apart until the end.
    APART: tl.constexpr = 32 * 16 * 8 // (W * keys.dtype.element_ty.primitive_bitwidth)
    P: tl.constexpr = max(1, min(PAGES, APART))
    K: tl.constexpr = max(1, min(PER, APART // P))
    # Turned while the first tiles are on their way, where those are asked for before anything else.
    LATE: tl.constexpr = ORDER is not None and PREFETCH and not HAS_WINDOW
    raw = query
    if not LATE:
        query = _prepared(raw, fresh, scale, D, SCALED, ORDER, dtype)
    if SCALED:
        none = tl.zeros([P, K, W], tl.float32)
        mixed = (none, none, none, none)
    else:
        mixed = tl.zeros([P, K, D], tl.float32)
    most, total = float("-inf"), 0.0
    whole = start + (end - start) // BLOCK_KEYS * BLOCK_KEYS
    if HAS_WINDOW:  # noqa: SIM102 (one condition is the compiler's, the other the device's)
        if seen > start:
            most, total, mixed = _partial_tile(
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
                start,
                end,
                seen,
                most,
                total,
                mixed,
                W,
                BLOCK_SIZE,
                PAGES,
                PER,
            )
            start += BLOCK_KEYS
            whole = tl.maximum(whole, start)
    # Loads and arithmetic stand under two conditions that always hold, which the compiler cannot know: left
    # alone it moves half of the loads behind the arithmetic on the others, and waits several times for memory
    # instead of once.
    loads = end > seen
    if PREFETCH:
        # Page ids run two tiles ahead, keys and values one; what lies behind the end is read from block 0.
        pages = _page_ids(table, start, end, BLOCK_SIZE, PAGES, PER)
        k_place = _places(pages, start, stride_k_block, stride_k_offset, W, BLOCK_SIZE, PER)
        v_place = _places(pages, start, stride_v_block, stride_v_offset, W, BLOCK_SIZE, PER)
        key, value = tl.load(keys + k_place, mask=loads), tl.load(values + v_place, mask=loads)
        key_scale = _scales(k_scales, pages, start, loads, stride_s_block, stride_s_offset, BLOCK_SIZE, PER)
        value_scale = _scales(v_scales, pages, start, loads, stride_s_block, stride_s_offset, BLOCK_SIZE, PER)
        pages = _page_ids(table, start + BLOCK_KEYS, end, BLOCK_SIZE, PAGES, PER)
        if LATE:
            query = _prepared(raw, fresh, scale, D, SCALED, ORDER, dtype)
        for tile in tl.range(start, whole, BLOCK_KEYS, num_stages=1):
            ahead = tile + BLOCK_KEYS
            k_place = _places(pages, ahead, stride_k_block, stride_k_offset, W, BLOCK_SIZE, PER)
            v_place = _places(pages, ahead, stride_v_block, stride_v_offset, W, BLOCK_SIZE, PER)
            key_next, value_next = tl.load(keys + k_place, mask=loads), tl.load(values + v_place, mask=loads)
            key_scale_next = _scales(
                k_scales, pages, ahead, loads, stride_s_block, stride_s_offset, BLOCK_SIZE, PER
            )
            value_scale_next = _scales(
                v_scales, pages, ahead, loads, stride_s_block, stride_s_offset, BLOCK_SIZE, PER
            )
            pages = _page_ids(table, ahead + BLOCK_KEYS, end, BLOCK_SIZE, PAGES, PER)
            if tile + seen >= 0:
                most, total, mixed = _accumulate(
                    query, key, value, key_scale, value_scale, None, most, total, mixed, False, SCALED
                )
            key, value = key_next, value_next
            key_scale, value_scale = key_scale_next, value_scale_next
    else:
        for tile in tl.range(start, whole, BLOCK_KEYS, num_stages=STAGES):
            pages = _page_ids(table, tile, end, BLOCK_SIZE, PAGES, PER)
            k_place = _places(pages, tile, stride_k_block, stride_k_offset, W, BLOCK_SIZE, PER)
            v_place = _places(pages, tile, stride_v_block, stride_v_offset, W, BLOCK_SIZE, PER)
            key, value = tl.load(keys + k_place, mask=loads), tl.load(values + v_place, mask=loads)
            key_scale = _scales(
                k_scales, pages, tile, loads, stride_s_block, stride_s_offset, BLOCK_SIZE, PER
            )
            value_scale = _scales(
                v_scales, pages, tile, loads, stride_s_block, stride_s_offset, BLOCK_SIZE, PER
            )
            if tile + seen >= 0:
                most, total, mixed = _accumulate(
                    query, key, value, key_scale, value_scale, None, most, total, mixed, False, SCALED
                )
    if whole < end:
        most, total, mixed = _partial_tile(
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
            whole,
            end,
            seen,
            most,
            total,
            mixed,
            W,
            BLOCK_SIZE,
            PAGES,
            PER,
        )
    if SCALED:
        m0, m1, m2, m3 = mixed
        return (
            most,
            total,
            tl.interleave(
                tl.interleave(_together(m0), _together(m2)), tl.interleave(_together(m1), _together(m3))
            ),
        )
    else:
        return most, total, _together(mixed)
