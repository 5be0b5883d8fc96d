"""Operators of training that know their own way back.

On a GPU plain torch makes many passes over memory for a norm, a rotation or a squared ReLU, and as many
backwards; here each is one pass. They stand in for the plain ones where a gradient is wanted, Triton is
there, and no compiler is at work that would fuse the plain ones itself. Nothing else ever reaches them, so
they change no answer that is served.

`cross_entropies` serves every device: it keeps logits in the dtype that the network computed them in.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from importlib.util import find_spec
from typing import Protocol

import torch

_plain: ContextVar[bool] = ContextVar("_plain", default=False)
CHUNK = 1 << 24  # logits that plain torch widens to float32 at a time


@contextmanager
def plain_operators() -> Iterator[None]:
    """Within it training goes through plain torch on every device: to measure what the fused ones gain."""
    token = _plain.set(True)
    try:
        yield
    finally:
        _plain.reset(token)


def fuses(x: torch.Tensor) -> bool:
    """Whether an operator on x is to be one of these."""
    return x.requires_grad and _can_fuse(x)


def applied(operator: type[torch.autograd.Function], *inputs: torch.Tensor | float) -> torch.Tensor:
    """What the operator makes of its inputs, on autograd's record."""
    out: torch.Tensor = operator.apply(*inputs)  # type: ignore[no-untyped-call]
    return out


def _can_fuse(x: torch.Tensor) -> bool:
    return x.is_cuda and not torch.compiler.is_compiling() and not _plain.get() and _triton_is_here()


@cache
def _triton_is_here() -> bool:
    return find_spec("triton") is not None


class _Context(Protocol):
    """What autograd keeps for the way back."""

    saved_tensors: tuple[torch.Tensor, ...]
    eps: float
    scale: float
    cap: float
    vocab: int
    fused: bool

    def save_for_backward(self, *tensors: torch.Tensor) -> None: ...


class RmsNorm(torch.autograd.Function):
    """kernels.norm.rms_norm without a weight. x: [..., width]."""

    @staticmethod
    def forward(ctx: _Context, x: torch.Tensor, eps: float) -> torch.Tensor:
        from kernels.triton.norm import rms_norm

        x = x.contiguous()
        ctx.save_for_backward(x)
        ctx.eps = eps
        out = torch.empty_like(x)
        rms_norm(x.view(-1, x.size(-1)), None, eps, out.view(-1, x.size(-1)))
        return out

    @staticmethod
    def backward(ctx: _Context, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        from kernels.triton.training import rms_norm_backward

        (x,) = ctx.saved_tensors
        out, rows = torch.empty_like(x), (-1, x.size(-1))
        rms_norm_backward(x.view(rows), grad.contiguous().view(rows), ctx.eps, out.view(rows))
        return out, None


class RotateAndNorm(torch.autograd.Function):
    """kernels.rope.rotate_and_norm. x: [tokens, heads, head_dim], half of head_dim a power of two."""

    @staticmethod
    def forward(
        ctx: _Context, x: torch.Tensor, own: torch.Tensor, other: torch.Tensor, eps: float, scale: float
    ) -> torch.Tensor:
        from kernels.triton.training import rotate_norm

        x, own, other = x.contiguous(), own.contiguous(), other.contiguous()
        ctx.save_for_backward(x, own, other)
        ctx.eps, ctx.scale = eps, scale
        out = torch.empty_like(x)
        rotate_norm(x, own, other, eps, scale, out)
        return out

    @staticmethod
    def backward(ctx: _Context, grad: torch.Tensor) -> tuple[torch.Tensor, None, None, None, None]:
        from kernels.triton.training import rotate_norm_backward

        x, own, other = ctx.saved_tensors
        out = torch.empty_like(x)
        rotate_norm_backward(x, own, other, grad.contiguous(), ctx.eps, ctx.scale, out)
        return out, None, None, None, None


class ReluSquared(torch.autograd.Function):
    """max(x, 0)^2. x: [tokens, width]."""

    @staticmethod
    def forward(ctx: _Context, x: torch.Tensor) -> torch.Tensor:
        from kernels.triton.activation import relu_squared

        x = x.contiguous()
        ctx.save_for_backward(x)
        out = torch.empty_like(x)
        relu_squared(x, out)
        return out

    @staticmethod
    def backward(ctx: _Context, grad: torch.Tensor) -> torch.Tensor:
        from kernels.triton.training import relu_squared_backward

        (x,) = ctx.saved_tensors
        out = torch.empty_like(x)
        relu_squared_backward(x, grad.contiguous(), out)
        return out


class CrossEntropies(torch.autograd.Function):
    """See `cross_entropies`."""

    @staticmethod
    def forward(
        ctx: _Context, raw: torch.Tensor, targets: torch.Tensor, cap: float, vocab: int
    ) -> torch.Tensor:
        out = torch.empty(raw.size(0), dtype=torch.float32, device=raw.device)
        normalizers = torch.empty_like(out)
        ctx.fused = _can_fuse(raw)  # asked here: the way back has a thread of its own
        if ctx.fused:
            from kernels.triton.training import losses

            raw = raw if raw.stride(1) == 1 else raw.contiguous()
            losses(raw, targets, cap, vocab, out, normalizers)
        else:
            for rows in _chunks(raw):
                capped = _capped(raw[rows], cap, vocab)
                normalizers[rows] = capped.logsumexp(-1)
                learned = targets[rows] != -1
                picked = capped.gather(1, torch.where(learned, targets[rows], 0).unsqueeze(1)).squeeze(1)
                out[rows] = torch.where(learned, normalizers[rows] - picked, 0.0)
        ctx.save_for_backward(raw, targets, normalizers)
        ctx.cap, ctx.vocab = cap, vocab
        return out

    @staticmethod
    def backward(ctx: _Context, grad: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        raw, targets, normalizers = ctx.saved_tensors
        cap, vocab = ctx.cap, ctx.vocab
        out = torch.empty_like(raw, memory_format=torch.contiguous_format)
        if ctx.fused:
            from kernels.triton.training import losses_backward

            losses_backward(raw, targets, normalizers, grad.contiguous(), cap, vocab, out)
            return out, None, None, None
        out[:, vocab:] = 0.0
        for rows in _chunks(raw):
            capped = _capped(raw[rows], cap, vocab)
            slope = 1.0 - (capped / cap).square()
            learned = targets[rows] != -1
            share = capped.sub_(normalizers[rows].unsqueeze(1)).exp_()
            place = torch.where(learned, targets[rows], 0).unsqueeze(1)
            share.scatter_add_(1, place, torch.full_like(share[:, :1], -1.0))
            up = torch.where(learned, grad[rows], 0.0).unsqueeze(1)
            out[rows, :vocab] = share.mul_(slope).mul_(up).to(raw.dtype)
        return out, None, None, None


def cross_entropies(raw: torch.Tensor, targets: torch.Tensor, cap: float, vocab: int) -> torch.Tensor:
    """Cross entropy of each row's soft-capped logits, [tokens] float32; 0 where the target is -1.

    raw: [tokens, at least vocab], what the head gives, in any dtype; columns from `vocab` on do not count.
    targets: [tokens] int64. Sums are in float32, but never is there a float32 copy of all the logits, nor of
    their gradient. A target that is no column is an error on a CPU, and NaN where Triton serves.
    """
    return applied(CrossEntropies, raw, targets, cap, vocab)


def _chunks(raw: torch.Tensor) -> list[slice]:
    """Rows to widen together; a compiler that fuses needs no chunks."""
    rows, columns = raw.shape
    step = rows if torch.compiler.is_compiling() else max(1, CHUNK // columns)
    return [slice(start, start + step) for start in range(0, rows, max(1, step))]


def _capped(raw: torch.Tensor, cap: float, vocab: int) -> torch.Tensor:
    return (raw[:, :vocab].float() / cap).tanh_().mul_(cap)
