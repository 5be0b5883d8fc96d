"""What a training step on a GPU does in one pass over memory where plain torch needs many. Reference: the
plain functions that kernels.autograd stands in for.

Nothing but inputs is kept for the way back: what a kernel needs of the forward pass it computes again, which
costs less than reading it.
"""

import torch
import triton
import triton.language as tl

from kernels.triton.norm import check_width
from kernels.triton.parts import inverse_rms, rounded, warps_for
from kernels.triton.sampling_groups import soft_capped

HEADS = 16  # rows of head_dim numbers that one program rotates
COLUMNS = 4096  # logits that one program looks at together
FLAT = 1024


@triton.jit
def _rms_norm_backward_kernel(x, grad, out, eps, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    column = tl.arange(0, BLOCK)
    inside = column < WIDTH
    place = tl.program_id(0).to(tl.int64) * WIDTH + column
    value = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(grad + place, mask=inside, other=0.0).to(tl.float32)
    factor = inverse_rms(tl.sum(value * value, axis=0), WIDTH, eps)
    along = tl.sum(value * up, axis=0) / WIDTH * factor * factor
    tl.store(out + place, (factor * (up - value * along)).to(out.dtype.element_ty), mask=inside)


def rms_norm_backward(x: torch.Tensor, grad: torch.Tensor, eps: float, out: torch.Tensor) -> None:
    """out = what `grad`, of the norm's result, means for x. All [tokens, width], contiguous."""
    tokens, width = x.shape
    check_width(width)
    block = triton.next_power_of_2(width)
    _rms_norm_backward_kernel[(tokens,)](
        x, grad, out, eps, WIDTH=width, BLOCK=block, num_warps=warps_for(block)
    )


@triton.jit
def _places(rows, heads, HALF: tl.constexpr, HEADS: tl.constexpr):
    """Of HEADS rows: numbers of the left half in x, the same in the table, and which rows there are."""
    row = tl.program_id(0).to(tl.int64) * HEADS + tl.arange(0, HEADS)
    lane = tl.arange(0, HALF)[None, :]
    left = row[:, None] * (2 * HALF) + lane
    table = (row // heads)[:, None] * (2 * HALF) + lane
    return left, table, (row < rows)[:, None] & (lane < HALF)


@triton.jit
def _halves(base, left, inside, HALF: tl.constexpr):
    """Both halves of the heads, float32."""
    one = tl.load(base + left, mask=inside, other=0.0).to(tl.float32)
    two = tl.load(base + left + HALF, mask=inside, other=0.0).to(tl.float32)
    return one, two


@triton.jit
def _rotate_norm_kernel(x, own, other, out, rows, heads, eps, scale, HALF: tl.constexpr, HEADS: tl.constexpr):
    left, table, inside = _places(rows, heads, HALF, HEADS)
    x1, x2 = _halves(x, left, inside, HALF)
    own1, own2 = _halves(own, table, inside, HALF)
    other1, other2 = _halves(other, table, inside, HALF)
    r1 = rounded(x1 * own1 + x2 * other1, x.dtype.element_ty)
    r2 = rounded(x2 * own2 + x1 * other2, x.dtype.element_ty)
    factor = inverse_rms(tl.sum(r1 * r1 + r2 * r2, axis=1), 2 * HALF, eps)[:, None]
    r1 = rounded(r1 * factor, x.dtype.element_ty) * scale
    r2 = rounded(r2 * factor, x.dtype.element_ty) * scale
    tl.store(out + left, r1.to(out.dtype.element_ty), mask=inside)
    tl.store(out + left + HALF, r2.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _rotate_norm_backward_kernel(
    x, own, other, grad, out, rows, heads, eps, scale, HALF: tl.constexpr, HEADS: tl.constexpr
):
    left, table, inside = _places(rows, heads, HALF, HEADS)
    x1, x2 = _halves(x, left, inside, HALF)
    own1, own2 = _halves(own, table, inside, HALF)
    other1, other2 = _halves(other, table, inside, HALF)
    up1, up2 = _halves(grad, left, inside, HALF)
    r1 = rounded(x1 * own1 + x2 * other1, x.dtype.element_ty)
    r2 = rounded(x2 * own2 + x1 * other2, x.dtype.element_ty)
    factor = inverse_rms(tl.sum(r1 * r1 + r2 * r2, axis=1), 2 * HALF, eps)[:, None]
    along = tl.sum(r1 * up1 + r2 * up2, axis=1)[:, None] / (2 * HALF) * factor * factor
    d1 = scale * factor * (up1 - r1 * along)
    d2 = scale * factor * (up2 - r2 * along)
    # The other half's number came in through `other` of this half's place, and the reverse.
    tl.store(out + left, (d1 * own1 + d2 * other2).to(out.dtype.element_ty), mask=inside)
    tl.store(out + left + HALF, (d2 * own2 + d1 * other1).to(out.dtype.element_ty), mask=inside)


def rotate_norm(
    x: torch.Tensor, own: torch.Tensor, other: torch.Tensor, eps: float, scale: float, out: torch.Tensor
) -> None:
    """out = kernels.rope.rotate_and_norm of x. x, out: [tokens, heads, head_dim]; own, other: [tokens, 1,
    head_dim] float32; all contiguous, and half of head_dim a power of two.
    """
    tokens, heads, width = x.shape
    rows = tokens * heads
    _rotate_norm_kernel[(-(-rows // HEADS),)](
        x, own, other, out, rows, heads, eps, scale, HALF=width // 2, HEADS=HEADS, num_warps=4
    )


def rotate_norm_backward(
    x: torch.Tensor,
    own: torch.Tensor,
    other: torch.Tensor,
    grad: torch.Tensor,
    eps: float,
    scale: float,
    out: torch.Tensor,
) -> None:
    """out = what `grad`, of rotate_norm's result, means for x; shapes and layout as there."""
    tokens, heads, width = x.shape
    rows = tokens * heads
    _rotate_norm_backward_kernel[(-(-rows // HEADS),)](
        x, own, other, grad, out, rows, heads, eps, scale, HALF=width // 2, HEADS=HEADS, num_warps=4
    )


@triton.jit
def _relu_squared_backward_kernel(x, grad, out, count, BLOCK: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < count
    value = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(grad + place, mask=inside, other=0.0).to(tl.float32)
    value = tl.where(value < 0.0, 0.0, value)
    tl.store(out + place, (2.0 * value * up).to(out.dtype.element_ty), mask=inside)


def relu_squared_backward(x: torch.Tensor, grad: torch.Tensor, out: torch.Tensor) -> None:
    """out = 2 max(x, 0) grad. All of one shape and contiguous."""
    count = x.numel()
    _relu_squared_backward_kernel[(-(-count // FLAT),)](x, grad, out, count, BLOCK=FLAT, num_warps=4)


@triton.jit
def _losses_kernel(raw, targets, losses, normalizers, cap, stride, VOCAB: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, BLOCK)
    top = float("-inf")
    total = 0.0
    for start in range(0, VOCAB, BLOCK):
        column = start + lane
        value = tl.load(raw + row * stride + column, mask=column < VOCAB, other=float("-inf"))
        value = soft_capped(value.to(tl.float32), cap)
        above = tl.maximum(top, tl.max(value, axis=0))
        total = total * tl.exp(top - above) + tl.sum(tl.exp(value - above), axis=0)
        top = above
    normalizer = top + tl.log(total)
    target = tl.load(targets + row)
    known = (target >= 0) & (target < VOCAB)
    picked = soft_capped(tl.load(raw + row * stride + target, mask=known, other=0.0).to(tl.float32), cap)
    loss = tl.where(known, normalizer - picked, float("nan"))
    tl.store(losses + row, tl.where(target == -1, 0.0, loss))
    tl.store(normalizers + row, normalizer)


@triton.jit
def _losses_backward_kernel(
    raw, targets, normalizers, grad, out, cap, stride, columns, VOCAB: tl.constexpr, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < VOCAB
    target = tl.load(targets + row)
    up = tl.where(target == -1, 0.0, tl.load(grad + row))
    value = tl.load(raw + row * stride + column, mask=inside, other=0.0).to(tl.float32)
    value = soft_capped(value, cap)
    share = tl.exp(value - tl.load(normalizers + row))
    ratio = value / cap
    down = up * (share - tl.where(column == target, 1.0, 0.0)) * (1.0 - ratio * ratio)
    down = tl.where(inside, down, 0.0).to(out.dtype.element_ty)
    tl.store(out + row * columns + column, down, mask=column < columns)


def losses(
    raw: torch.Tensor,
    targets: torch.Tensor,
    cap: float,
    vocab: int,
    out: torch.Tensor,
    normalizers: torch.Tensor,
) -> None:
    """out = cross entropy of each row's soft-capped logits, 0 for a target of -1 and NaN for any other that
    is none of the vocabulary; normalizers = log of the sum of their exponentials.

    raw: [tokens, at least vocab], rows of any stride. targets: [tokens] int64. out, normalizers: [tokens]
    float32.
    """
    block = min(COLUMNS, triton.next_power_of_2(vocab))
    _losses_kernel[(raw.size(0),)](
        raw, targets, out, normalizers, cap, raw.stride(0), VOCAB=vocab, BLOCK=block, num_warps=8
    )


def losses_backward(
    raw: torch.Tensor,
    targets: torch.Tensor,
    normalizers: torch.Tensor,
    grad: torch.Tensor,
    cap: float,
    vocab: int,
    out: torch.Tensor,
) -> None:
    """out = what `grad`, of each row's loss, means for the raw logits; zero beyond the vocabulary.

    grad: [tokens] float32. out: as raw, contiguous. The others as in `losses`.
    """
    rows, columns = out.shape
    block = min(COLUMNS, triton.next_power_of_2(columns))
    grid = (rows, -(-columns // block))
    _losses_backward_kernel[grid](
        raw, targets, normalizers, grad, out, cap, raw.stride(0), columns,
        VOCAB=vocab, BLOCK=block, num_warps=8,
    )  # fmt: skip
