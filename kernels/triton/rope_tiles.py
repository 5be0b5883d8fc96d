"""Heads of one token between the projection and attention: bias, norm, rotation, and the write to a page.

Heads are two tiles [heads, head_dim / 2], the left and the right halves, so that rotation needs no exchange
between threads. Reference: kernels.rope.
"""

import triton
import triton.language as tl

from kernels.kv8 import LARGEST, LARGEST_SCALE, SMALLEST_SCALE
from kernels.triton.parts import inverse_rms, rounded

_MOST = tl.constexpr(LARGEST)
_LEAST_SCALE, _MOST_SCALE = tl.constexpr(SMALLEST_SCALE), tl.constexpr(LARGEST_SCALE)


@triton.jit
def halves(row, bias, place, exists, D: tl.constexpr, dtype: tl.constexpr):
    """Heads of a projection's row with their bias, float32. place: where the left halves' numbers are,
    [heads, D / 2], in the row as in the bias. exists: [heads, 1]; the others are zeros.
    """
    left = tl.load(row + place, mask=exists, other=0.0).to(tl.float32)
    right = tl.load(row + place + D // 2, mask=exists, other=0.0).to(tl.float32)
    if bias is not None:
        left = rounded(left + tl.load(bias + place, mask=exists, other=0.0).to(tl.float32), dtype)
        right = rounded(right + tl.load(bias + place + D // 2, mask=exists, other=0.0).to(tl.float32), dtype)
    return left, right


@triton.jit
def _spread(pointer, like, D: tl.constexpr):
    """D / 2 numbers for every row of a tile, float32.

    Each thread loads what it needs: the cache serves it faster than threads can exchange it.
    """
    return tl.load(tl.broadcast_to(pointer + tl.arange(0, D // 2)[None, :], like.shape)).to(tl.float32)


@triton.jit
def _normalised(left, right, weight, eps, D: tl.constexpr, dtype: tl.constexpr):
    """RMS norm per head over both halves, rounded to `dtype`. weight: [D] or None."""
    inverse = inverse_rms(tl.sum(left * left, axis=1) + tl.sum(right * right, axis=1), D, eps)[:, None]
    left, right = left * inverse, right * inverse
    if weight is not None:
        left = left * _spread(weight, left, D)
        right = right * _spread(weight + D // 2, left, D)
    return rounded(left, dtype), rounded(right, dtype)


@triton.jit
def rotated(
    left,
    right,
    own,
    other,
    weight,
    eps,
    scale,
    D: tl.constexpr,
    ORDER: tl.constexpr,
    dtype: tl.constexpr,
):
    """Both halves after norm, rotation and scale. own, other: the position's rows of the table."""
    own_left, own_right = _spread(own, left, D), _spread(own + D // 2, left, D)
    other_left, other_right = _spread(other, left, D), _spread(other + D // 2, left, D)
    if ORDER == "norm_rope":
        left, right = _normalised(left, right, weight, eps, D, dtype)
    turned_left = rounded(left * own_left + right * other_left, dtype)
    turned_right = rounded(right * own_right + left * other_right, dtype)
    if ORDER == "rope_norm":
        turned_left, turned_right = _normalised(turned_left, turned_right, weight, eps, D, dtype)
    return turned_left * scale, turned_right * scale


@triton.jit
def finite(x):
    """x with zeros for what is not a finite number; a comparison with NaN is false."""
    return tl.where(tl.abs(x) < float("inf"), x, 0.0)


@triton.jit
def keep(page, scales, place, left, right, stored, D: tl.constexpr, dtype: tl.constexpr):
    """Both halves of some heads to their places, in eight bits where there are scales (kernels.kv8). page:
    [heads, D / 2] places. place: of the heads' scales, counted from `scales`, [heads, 1] as `stored` is.
    """
    if scales is not None:
        left, right = rounded(left, dtype), rounded(right, dtype)
        kept_left, kept_right = finite(left), finite(right)
        spoilt = tl.sum((kept_left != left).to(tl.int32) + (kept_right != right).to(tl.int32), axis=1)
        largest = tl.max(tl.maximum(tl.abs(kept_left), tl.abs(kept_right)), axis=1)
        scale = tl.div_rn(largest, tl.full(largest.shape, _MOST, tl.float32))
        scale = rounded(tl.minimum(tl.maximum(scale, _LEAST_SCALE), _MOST_SCALE), tl.bfloat16)
        inverse = tl.div_rn(tl.full(scale.shape, 1.0, tl.float32), scale)[:, None]
        left = tl.minimum(tl.maximum(kept_left * inverse, -_MOST), _MOST)
        right = tl.minimum(tl.maximum(kept_right * inverse, -_MOST), _MOST)
        scale = tl.where(spoilt > 0, float("nan"), scale)[:, None]
        tl.store(scales + place, scale.to(scales.dtype.element_ty), mask=stored)
    tl.store(page, left.to(page.dtype.element_ty), mask=stored)
    tl.store(page + D // 2, right.to(page.dtype.element_ty), mask=stored)
