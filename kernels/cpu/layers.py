"""What is between the products of a layer, one row at a time; rows and tables are addresses.

Sums run over a row in an order that the row's length alone decides, and elementwise loops look at one number,
so a row's result does not depend on the rows beside it.
"""

import math

import numpy as np
from numba import njit

from kernels.cpu.heads import scores, shares
from kernels.cpu.isa import host
from kernels.cpu.machine import (
    as_f32,
    as_i32,
    load_bf16,
    load_f32,
    load_i64,
    store_bf16,
    store_f32,
    store_i8,
    store_i32,
    store_i64,
)

# Sums may be split into lanes; NaN and infinity keep their meaning.
# Nobody calls these from Python but `entry.work`, so they go without what such a call needs.
compiled = njit(  # type: ignore[call-overload, unused-ignore]
    nogil=True,
    error_model="numpy",
    fastmath={"reassoc", "contract", "nsz"},
    no_cpython_wrapper=True,
    no_cfunc_wrapper=True,
)

ZERO, HALF, ONE, TWO = (np.float32(x) for x in (0, 0.5, 1, 2))
NAN = np.float32(math.nan)
LARGEST = np.float32(127)
SMALLEST = np.float32(1e-35)
LOG2E = np.float32(1.4426950408889634)
LOWEST = np.float32(-126)
# 2^f on [-1/2, 1/2], by Chebyshev interpolation; off by at most 1.1e-7.
P0, P1, P2, P3, P4, P5, P6 = (
    np.float32(x)
    for x in (1.0, 0.69314718, 0.24022651, 0.055503272, 0.009618025, 0.0013400433, 0.00015469732)
)
INFINITE = np.int32(0x7F800000)
LEAST, SIGN = np.int32(-(2**31)), np.int32(-(2**31))
_scores, _shares = scores(host()), shares(host())


@compiled
def load_any(address, index, wide):
    """A float32, or where not `wide` a bfloat16."""
    return load_f32(address, index) if wide else load_bf16(address, index)


@compiled
def exp(x):
    """e^x for x <= 0, in float32."""
    t = max(x * LOG2E, LOWEST)
    n = np.int32(t - HALF)  # towards zero, so to the nearest
    f = t - np.float32(n)
    p = P0 + f * (P1 + f * (P2 + f * (P3 + f * (P4 + f * (P5 + f * P6)))))
    return p * as_f32(np.int32((n + np.int32(127)) << 23))


@compiled
def ordered(x):
    """An int32 that is larger for a larger number. LLVM makes vectors of the largest of integers, but of
    floats only where it may take it that none is a NaN.
    """
    bits = as_i32(x)
    return np.int32(bits ^ (np.int32(bits >> 31) & np.int32(0x7FFFFFFF)))


@compiled
def unordered(key):
    """The number that `ordered` made this of."""
    return as_f32(np.int32(key ^ (np.int32(key >> 31) & np.int32(0x7FFFFFFF))))


@compiled
def sigmoid(x):
    e = exp(-abs(x))
    return (ONE if x >= ZERO else e) / (ONE + e)


@compiled
def root_mean(row, width, eps):
    """1 / sqrt(mean(row^2) + eps)."""
    total = ZERO
    for i in range(width):
        value = load_f32(row, i)
        total += value * value
    return ONE / np.float32(math.sqrt(total / np.float32(width) + eps))


@compiled
def mix(x, x0, a, b, width, out):
    """out = a * x + b * x0."""
    for i in range(width):
        store_f32(out, i, a * load_f32(x, i) + b * load_f32(x0, i))


@compiled
def scaled(row, factor, width, out):
    for i in range(width):
        store_f32(out, i, load_f32(row, i) * factor)


@compiled
def largest(row, width):
    """The largest magnitude; NaN where there is one."""
    most = np.int32(0)
    for i in range(width):
        most = max(most, np.int32(as_i32(load_f32(row, i)) & np.int32(0x7FFFFFFF)))
    return as_f32(most)


@compiled
def quantise(row, factor, width, out, stats):
    """A row times `factor` as int8 with one scale. stats: the scale, float32, and 128 times the sum of the
    integers, int32, which is what a product with weights stored 128 too high has too much. A row that is not
    finite gets a scale of NaN.
    """
    most = largest(row, width)
    total = np.int32(0)
    if as_i32(most) >= INFINITE:
        for i in range(width):
            store_i8(out, i, ZERO)
        store_f32(stats, 0, NAN)
    else:
        # What is smaller has no inverse in float32, and is nothing beside eps anyway.
        most = most if most >= SMALLEST else ZERO
        inverse = LARGEST / most if most > ZERO else ZERO
        for i in range(width):
            value = load_f32(row, i) * inverse
            whole = np.int32(value + (HALF if value >= ZERO else -HALF))
            total += whole
            store_i8(out, i, np.float32(whole))
        store_f32(stats, 0, most * factor / LARGEST)
    store_i32(stats, 1, np.int32(total * np.int32(128)))


@compiled
def rotate(head, own, other, head_dim, eps, scale):
    """Rotation, RMS norm and a constant factor, in place. own, other: rows of the rotary table."""
    half = head_dim // 2
    total = ZERO
    for i in range(half):
        left, right = load_f32(head, i), load_f32(head, i + half)
        new_left = left * load_f32(own, i) + right * load_f32(other, i)
        new_right = right * load_f32(own, i + half) + left * load_f32(other, i + half)
        store_f32(head, i, new_left)
        store_f32(head, i + half, new_right)
        total += new_left * new_left + new_right * new_right
    factor = scale / np.float32(math.sqrt(total / np.float32(head_dim) + eps))
    for i in range(head_dim):
        store_f32(head, i, load_f32(head, i) * factor)


@compiled
def to_bf16(row, width, out):
    for i in range(width):
        store_bf16(out, i, load_f32(row, i))


@compiled
def gate(weights, wide, row, factor, channels):
    """The product of a gate's weights with the first channels of row * factor."""
    total = ZERO
    for i in range(channels):
        total += load_any(weights, i, wide) * (load_f32(row, i) * factor)
    return total


@compiled
def _run(table, block, blocks):
    """Blocks from `block` on that lie one behind the other."""
    last = block
    while last + 1 < blocks and load_i64(table, last + 1) == load_i64(table, last) + 1:
        last += 1
    return last + 1 - block


@compiled
def attend(query, keys, values, table, block_size, slot_bytes, first, position, head_dim, weights, out):
    """One query head over cached keys first..position. keys, values: this head's channels of slot 0. table:
    the sequence's blocks. weights: room for as many float32. out: [head_dim] float32.
    """
    blocks = position // block_size + 1
    at = first
    while at <= position:
        block = at // block_size
        run = _run(table, block, blocks)
        end = min((block + run) * block_size, position + 1)
        slot = load_i64(table, block) * block_size + at - block * block_size
        _scores(keys + slot * slot_bytes, slot_bytes, end - at, query, head_dim, weights + 4 * (at - first))
        at = end
    count = position + 1 - first
    key = LEAST
    for i in range(count):
        key = max(key, ordered(load_f32(weights, i)))
    most = unordered(key)
    total = ZERO
    for i in range(count):
        share = exp(load_f32(weights, i) - most)
        store_f32(weights, i, share)
        total += share
    for i in range(head_dim):
        store_f32(out, i, ZERO)
    at = first
    while at <= position:
        block = at // block_size
        run = _run(table, block, blocks)
        end = min((block + run) * block_size, position + 1)
        slot = load_i64(table, block) * block_size + at - block * block_size
        _shares(values + slot * slot_bytes, slot_bytes, end - at, weights + 4 * (at - first), head_dim, out)
        at = end
    inverse = ONE / total
    for i in range(head_dim):
        store_f32(out, i, load_f32(out, i) * inverse)


@compiled
def cap_and_choose(logits, vocabulary, cap, chosen):
    """cap * tanh(logit / cap) in place. chosen: int64, the lowest of the best ids, or -1 where a logit is
    NaN.
    """
    key, odd = LEAST, np.int32(0)
    for i in range(vocabulary):
        logit = load_f32(logits, i)
        bits = as_i32(logit)
        magnitude = as_f32(np.int32(bits & np.int32(0x7FFFFFFF)))
        e = exp(-TWO * magnitude / cap)
        value = as_i32(cap * (ONE - e) / (ONE + e))
        value = np.int32(value | np.int32(bits & SIGN))
        odd = max(odd, np.int32(bits & np.int32(0x7FFFFFFF)))
        key = max(key, ordered(as_f32(value)))
        store_f32(logits, i, as_f32(value))
    best = np.int64(-1)
    if odd <= INFINITE:
        most = unordered(key)
        best = np.int64(0)
        while load_f32(logits, best) != most:
            best += 1
    store_i64(chosen, 0, best)
