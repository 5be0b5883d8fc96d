"""Attention of the queries that share a kv head over a stretch of one row's keys, tile by tile."""

import triton
import triton.language as tl

from kernels.triton.parts import four_channels


@triton.jit
def _whole(words):
    """Words [KEYS, D / 4] as numbers [KEYS, D]."""
    x0, x1, x2, x3 = four_channels(words)
    return tl.interleave(tl.interleave(x0, x2), tl.interleave(x1, x3))


@triton.jit
def _quarter_queries(query, D: tl.constexpr):
    """[ROWS, D] as four [ROWS, D / 4], as `decode_tiles._quarters` does it."""
    even, odd = tl.split(tl.reshape(query, [query.shape[0], D // 4, 2, 2]))
    first, third = tl.split(even)
    second, fourth = tl.split(odd)
    return first, second, third, fourth


@triton.jit
def attend_group(
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
    start,
    end,
    seen,
    scale,
    ROWS: tl.constexpr,
    D: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    STAGES: tl.constexpr,
):
    """The queries that share a kv head over keys start..end, as matrix products.

    query: [ROWS, D]. keys, values: of words where there are scales (`four_channels`). Returns the maxima and
    sums [ROWS] and the accumulators [ROWS, D].
    """
    SCALED: tl.constexpr = k_scales is not None
    APART: tl.constexpr = SCALED and D >= 64  # a product takes at least 16 channels at a time
    most = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    none = tl.zeros([ROWS, D // 4 if APART else D], tl.float32)
    if APART:
        q0, q1, q2, q3 = _quarter_queries(query, D)
        mixed = (none, none, none, none)
    else:
        mixed = none
    channel = tl.arange(0, D // 4 if SCALED else D)[None, :]
    for tile in tl.range(start, end, BLOCK_KEYS, num_stages=STAGES):
        position = tile + tl.arange(0, BLOCK_KEYS)
        inside = position < end
        if HAS_WINDOW:
            inside = inside & (position >= seen)
        page = tl.load(table + position // BLOCK_SIZE, mask=inside, other=0).to(tl.int64)
        offset = position % BLOCK_SIZE
        k_place = (page * stride_k_block + offset * stride_k_offset)[:, None] + channel
        v_place = (page * stride_v_block + offset * stride_v_offset)[:, None] + channel
        key = tl.load(keys + k_place, mask=inside[:, None], other=0)
        value = tl.load(values + v_place, mask=inside[:, None], other=0)
        if SCALED:
            s_place = page * stride_s_block + offset * stride_s_offset
            key_scale = tl.load(k_scales + s_place, mask=inside, other=0.0).to(tl.float32) * scale
            value_scale = tl.load(v_scales + s_place, mask=inside, other=0.0).to(tl.float32)
        if APART:
            k0, k1, k2, k3 = four_channels(key)
            score = tl.dot(q0, tl.trans(k0.to(query.dtype)))
            score = tl.dot(q1, tl.trans(k1.to(query.dtype)), score)
            score = tl.dot(q2, tl.trans(k2.to(query.dtype)), score)
            score = tl.dot(q3, tl.trans(k3.to(query.dtype)), score) * key_scale[None, :]
        elif SCALED:
            score = tl.dot(query, tl.trans(_whole(key).to(query.dtype))) * key_scale[None, :]
        else:
            score = tl.dot(query, tl.trans(key), input_precision="ieee") * scale
        score = tl.where(inside[None, :], score, float("-inf"))
        peak = tl.maximum(most, tl.max(score, axis=1))
        fade, weight = tl.exp2(most - peak), tl.exp2(score - peak[:, None])
        total = total * fade + tl.sum(weight, axis=1)
        if SCALED:
            weight = (weight * value_scale[None, :]).to(query.dtype)
        if APART:
            v0, v1, v2, v3 = four_channels(value)
            m0, m1, m2, m3 = mixed
            mixed = (
                tl.dot(weight, v0.to(query.dtype), m0 * fade[:, None]),
                tl.dot(weight, v1.to(query.dtype), m1 * fade[:, None]),
                tl.dot(weight, v2.to(query.dtype), m2 * fade[:, None]),
                tl.dot(weight, v3.to(query.dtype), m3 * fade[:, None]),
            )
        elif SCALED:
            mixed = tl.dot(weight, _whole(value).to(query.dtype), mixed * fade[:, None])
        else:
            mixed = tl.dot(weight.to(value.dtype), value, mixed * fade[:, None], input_precision="ieee")
        most = peak
    if APART:
        m0, m1, m2, m3 = mixed
        return most, total, tl.interleave(tl.interleave(m0, m2), tl.interleave(m1, m3))
    else:
        return most, total, mixed
