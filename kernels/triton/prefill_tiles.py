"""What a program of `kernels.triton.prefill` does with a stretch of keys, and with what others found."""

import triton
import triton.language as tl


@triton.jit
def walk(
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
        if k_scales is None:
            score = tl.dot(query, tl.trans(key), input_precision="ieee")
        else:
            s_place = page * stride_s_block + offset * stride_s_offset
            if MASKED:
                key_scale = tl.load(k_scales + s_place, mask=exists, other=0.0).to(tl.float32)
                value_scale = tl.load(v_scales + s_place, mask=exists, other=0.0).to(tl.float32)
            else:
                key_scale = tl.load(k_scales + s_place).to(tl.float32)
                value_scale = tl.load(v_scales + s_place).to(tl.float32)
            # By way of float32: a device turns pairs of that into bfloat16, but float16 number by number.
            key, value = key.to(tl.float32).to(query.dtype), value.to(tl.float32).to(query.dtype)
            score = tl.dot(query, tl.trans(key), input_precision="ieee") * key_scale[None, :]
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
        if k_scales is not None:
            weight *= value_scale[None, :]
        mixed = tl.dot(weight.to(value.dtype), value, mixed, input_precision="ieee")
        most = peak
    return most, total, mixed


@triton.jit
def merge(
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
