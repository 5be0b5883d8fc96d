"""Plain torch references of the fused kernels in kernels/triton, any device, outputs returned.

Where a fused kernel rounds to the model's dtype in between, so does the reference, because it makes a tensor
there.
"""

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from kernels.kv8 import Scales, quantize_kv
from kernels.norm import rms_norm
from kernels.rope import rotate

if TYPE_CHECKING:
    from kernels.triton.rope import RotarySpec


def norm_weighted(x: torch.Tensor, weight: torch.Tensor | None, eps: float) -> torch.Tensor:
    """RMS norm over the last dimension times weight, in float32, rounded once. weight: [width] or None."""
    return rms_norm(x, eps) if weight is None else F.rms_norm(x, (x.size(-1),), weight, eps)


def add_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor | None, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The new residual, x added to it, and its norm."""
    residual = residual + x
    return residual, norm_weighted(residual, weight, eps)


def relu_squared(x: torch.Tensor) -> torch.Tensor:
    return x.relu().square()


def swiglu(x: torch.Tensor) -> torch.Tensor:
    """gate * sigmoid(gate) * up in float32, rounded once. x: [tokens, 2 * width], in groups of eight gate
    columns and the eight up columns of the same channels. Returns [tokens, width].
    """
    gate, up = x.float().view(x.size(0), -1, 2, 8).unbind(-2)
    return (F.silu(gate) * up).flatten(-2).to(x.dtype)


def gather_norm(
    table: torch.Tensor, index: torch.Tensor, weight: torch.Tensor | None, eps: float | None
) -> torch.Tensor:
    """table[index], zeros where the index is out of range, then the norm where eps is given."""
    known = (index >= 0) & (index < table.size(0))
    rows = table[index.long().clamp(0, table.size(0) - 1)]
    rows = rows if eps is None else norm_weighted(rows, weight, eps)
    return torch.where(known.unsqueeze(1), rows, torch.zeros_like(rows))


def scale_add(x: torch.Tensor, x0: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """a * x + b * x0 for a, b of one number each, which take x's dtype first."""
    return a.reshape(()) * x + b.reshape(()) * x0


def rotate_and_store(
    qkv: torch.Tensor,
    positions: torch.Tensor,
    slots: torch.Tensor,
    own: torch.Tensor,
    other: torch.Tensor,
    k_pages: torch.Tensor,
    v_pages: torch.Tensor,
    spec: "RotarySpec",
    *,
    scales: Scales | None = None,
    bias: torch.Tensor | None = None,
    q_weight: torch.Tensor | None = None,
    k_weight: torch.Tensor | None = None,
    value_embedding: torch.Tensor | None = None,
    gate: torch.Tensor | None = None,
) -> torch.Tensor:
    """As kernels.triton.rope.rotate_and_store, pages in place; the queries are returned, [tokens, heads,
    head_dim], for tokens that are skipped too.
    """
    heads, kv_heads = spec.heads, spec.kv_heads
    if bias is not None:
        qkv = qkv + bias
    q, k, v = torch.split_with_sizes(
        qkv.view(qkv.size(0), -1, spec.head_dim), [heads, kv_heads, kv_heads], dim=1
    )
    if value_embedding is not None and gate is not None:
        v = v + gate.to(v.dtype).unsqueeze(-1) * value_embedding.view(qkv.size(0), kv_heads, -1)
    rows = own[positions.long()].unsqueeze(1), other[positions.long()].unsqueeze(1)
    q, k = _turned(q, q_weight, *rows, spec), _turned(k, k_weight, *rows, spec)
    live = slots >= 0
    block, offset = slots[live].long() // k_pages.size(1), slots[live].long() % k_pages.size(1)
    k, v = k[live], v[live].nan_to_num(0.0, 0.0, 0.0)
    if scales is None:
        k_pages[block, offset], v_pages[block, offset] = k, v
        return q
    for pages, kept, x in zip((k_pages, v_pages), scales, (k, v), strict=True):
        values, scale = quantize_kv(x)
        pages.view(torch.int8)[block, offset] = values.view(torch.int8)
        kept[block, offset] = scale
    return q


def _turned(
    x: torch.Tensor, weight: torch.Tensor | None, own: torch.Tensor, other: torch.Tensor, spec: "RotarySpec"
) -> torch.Tensor:
    if spec.order == "norm_rope":
        x = norm_weighted(x, weight, spec.eps)
    x = rotate(x, own, other)
    if spec.order == "rope_norm":
        x = norm_weighted(x, weight, spec.eps)
    return x if spec.qk_scale == 1.0 else x * spec.qk_scale
