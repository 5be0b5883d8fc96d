"""What lies between a layer's qkv product and its attention, in one launch: bias, value embedding, rotation,
query-key norm, and the write of keys and values to their pages. Reference: kernels.rope, kernels.fused.

A program takes one token and a few heads of one kind (query, key or value); kernels.triton.rope_tiles has
what becomes of them.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import triton
import triton.language as tl

from kernels.kv8 import Scales
from kernels.triton.parts import begin, rounded
from kernels.triton.rope_tiles import finite, halves, keep, rotated

Order = Literal["rope", "rope_norm", "norm_rope"]

TILE = 1024  # numbers a program holds: one load of 16 bytes per thread and half, in bfloat16


@dataclass(frozen=True, slots=True)
class RotarySpec:
    """How a layer treats its queries and keys.

    order: "rope" rotates only; "rope_norm" (nanochat) rotates, then normalises each head; "norm_rope" (Qwen3)
    normalises with weights, then rotates. qk_scale: a factor on both at the end.
    """

    heads: int
    kv_heads: int
    head_dim: int
    order: Order
    eps: float
    qk_scale: float


@triton.jit
def _with_embedding(x, embedding, column, inside, gate, dtype: tl.constexpr):
    """x + gate * embedding, each step rounded as torch rounds it. gate: [heads, 1]."""
    added = tl.load(embedding + column, mask=inside, other=0.0).to(tl.float32)
    return rounded(x + rounded(gate * added, dtype), dtype)


@triton.jit
def _rotate_and_store_kernel(
    qkv,
    positions,
    slots,
    own,
    other,
    k_pages,
    v_pages,
    k_scales,
    v_scales,
    bias,
    q_weight,
    k_weight,
    value_embedding,
    value_ids,
    gate,
    stride_qkv,
    stride_own,
    stride_other,
    stride_k_block,
    stride_k_offset,
    stride_k_head,
    stride_v_block,
    stride_v_offset,
    stride_v_head,
    stride_s_block,
    stride_s_offset,
    stride_s_head,
    stride_embedding,
    stride_gate,
    eps,
    scale,
    H: tl.constexpr,
    KV: tl.constexpr,
    D: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    GROUP: tl.constexpr,
    ORDER: tl.constexpr,
    PDL: tl.constexpr,
):
    Q_PARTS: tl.constexpr = (H + GROUP - 1) // GROUP
    KV_PARTS: tl.constexpr = (KV + GROUP - 1) // GROUP
    dtype: tl.constexpr = qkv.dtype.element_ty
    part = tl.program_id(0) % (Q_PARTS + 2 * KV_PARTS)
    token = (tl.program_id(0) // (Q_PARTS + 2 * KV_PARTS)).to(tl.int64)
    is_query = part < Q_PARTS
    is_value = part >= Q_PARTS + KV_PARTS
    # The part's first head counted from its kind's first, and that one's place among all heads of the row.
    kind = tl.where(is_query, 0, tl.where(is_value, H + KV, H))
    first = tl.where(is_query, part, tl.where(is_value, part - Q_PARTS - KV_PARTS, part - Q_PARTS)) * GROUP
    head = (first + tl.arange(0, GROUP))[:, None]
    channel = tl.arange(0, D // 2)[None, :]
    column = head * D + channel
    begin(PDL)
    # No early exit for padding: the load of x need not wait for that of the slot.
    slot = tl.load(slots + token)
    exists = head < tl.where(is_query, H, KV)
    stored = exists & (slot >= 0)
    row = qkv + token * stride_qkv
    left, right = halves(row, bias, kind * D + column, exists, D, dtype)
    block, offset = (slot // BLOCK_SIZE).to(tl.int64), slot % BLOCK_SIZE
    scale_place = block * stride_s_block + offset * stride_s_offset + head * stride_s_head
    if is_value:
        if value_embedding is not None:
            source = token
            if value_ids is not None:
                source = tl.load(value_ids + token).to(tl.int64)
            strength = tl.load(gate + token * stride_gate + head, mask=head < KV, other=0.0).to(tl.float32)
            embedding = value_embedding + source * stride_embedding
            left = _with_embedding(left, embedding, column, exists, strength, dtype)
            right = _with_embedding(right, embedding + D // 2, column, exists, strength, dtype)
        page = v_pages + block * stride_v_block + offset * stride_v_offset
        page += head * stride_v_head + channel
        keep(page, v_scales, scale_place, finite(left), finite(right), stored, D, dtype)
    else:
        position = tl.maximum(tl.load(positions + token), 0).to(tl.int64)
        own_row, other_row = own + position * stride_own, other + position * stride_other
        if is_query:
            left, right = rotated(left, right, own_row, other_row, q_weight, eps, scale, D, ORDER, dtype)
            # Queries are the row's first heads.
            tl.store(row + column, left.to(dtype), mask=stored)
            tl.store(row + column + D // 2, right.to(dtype), mask=stored)
        else:
            left, right = rotated(left, right, own_row, other_row, k_weight, eps, scale, D, ORDER, dtype)
            page = k_pages + block * stride_k_block + offset * stride_k_offset
            page += head * stride_k_head + channel
            keep(page, k_scales, scale_place, left, right, stored, D, dtype)


def rotate_and_store(
    qkv: torch.Tensor,
    positions: torch.Tensor,
    slots: torch.Tensor,
    own: torch.Tensor,
    other: torch.Tensor,
    k_pages: torch.Tensor,
    v_pages: torch.Tensor,
    spec: RotarySpec,
    *,
    scales: Scales | None = None,
    bias: torch.Tensor | None = None,
    q_weight: torch.Tensor | None = None,
    k_weight: torch.Tensor | None = None,
    value_embedding: torch.Tensor | None = None,
    value_ids: torch.Tensor | None = None,
    gate: torch.Tensor | None = None,
    pdl: bool = False,
) -> None:
    """Queries are finished in place, keys and values go to their pages; values that are not finite become 0.

    qkv: [tokens, (heads + 2 kv_heads) * head_dim], rows of any stride. positions, slots: [tokens] int32; a
    slot is block * block_size + offset, and a token with a negative one is left alone. own, other:
    [positions, head_dim] float32 (kernels.rope). k_pages, v_pages: [blocks, block_size, kv_heads, head_dim]
    views, of qkv's type, or with scales in eight bits (kernels.kv8): a key that is not finite then gets a
    scale that is no number. bias: [(heads + 2 kv_heads) * head_dim]. q_weight, k_weight: [head_dim], for
    the norm.
    value_embedding: [tokens, kv_heads * head_dim], or with value_ids [tokens] int32 the whole table [vocab,
    kv_heads * head_dim]; it is multiplied by gate [tokens, kv_heads] and added to the value. ValueError: a
    head_dim or block size that is no power of two, or a value embedding without a gate.
    """
    dim, block_size = spec.head_dim, k_pages.size(1)
    if dim & (dim - 1) or dim < 2 or block_size & (block_size - 1):
        raise ValueError(f"head_dim {dim} and block size {block_size} must be powers of two")
    if (value_embedding is None) != (gate is None):
        raise ValueError("a value embedding and its gate come together")
    group = min(max(1, TILE // dim), triton.next_power_of_2(max(spec.heads, spec.kv_heads)))
    k_scales, v_scales = scales or (None, None)
    parts = -(-spec.heads // group) + 2 * -(-spec.kv_heads // group)
    _rotate_and_store_kernel[(qkv.size(0) * parts,)](
        qkv,
        positions,
        slots,
        own,
        other,
        k_pages,
        v_pages,
        k_scales,
        v_scales,
        bias,
        q_weight,
        k_weight,
        value_embedding,
        value_ids,
        gate,
        qkv.stride(0),
        own.stride(0),
        other.stride(0),
        *k_pages.stride()[:3],
        *v_pages.stride()[:3],
        *(k_scales.stride() if k_scales is not None else (0, 0, 0)),
        value_embedding.stride(0) if value_embedding is not None else 0,
        gate.stride(0) if gate is not None else 0,
        spec.eps,
        spec.qk_scale,
        H=spec.heads,
        KV=spec.kv_heads,
        D=dim,
        BLOCK_SIZE=block_size,
        GROUP=group,
        ORDER=spec.order,
        PDL=pdl,
        num_warps=max(1, group * dim // 512),
        launch_pdl=pdl,
    )
