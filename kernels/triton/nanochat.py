"""What nanochat's later generations add around their blocks. Reference: engine.model.

Gates read a few channels of the normalised residual stream through a tiny matrix. Every rounding that torch
makes is made here too: products, sum, sigmoid and scale each end in the model's dtype.
"""

import torch
import triton
import triton.language as tl

from kernels.triton.norm import check_width
from kernels.triton.parts import begin, inverse_rms, rounded, warps_for


@triton.jit
def _gates(
    channels, weight, scale, C: tl.constexpr, HEADS: tl.constexpr, LANES: tl.constexpr, dtype: tl.constexpr
):
    """[HEADS'] gates, scale * sigmoid(weight . channels). channels: [LANES] float32, zeros from C on.

    HEADS' is the next power of two.
    """
    ROWS: tl.constexpr = triton.next_power_of_2(HEADS)
    head, lane = tl.arange(0, ROWS)[:, None], tl.arange(0, LANES)[None, :]
    matrix = tl.load(weight + head * C + lane, mask=(head < HEADS) & (lane < C), other=0.0).to(tl.float32)
    products = rounded(rounded(matrix, dtype) * channels[None, :], dtype)
    total = rounded(tl.sum(products, axis=1), dtype)
    return rounded(scale * rounded(tl.sigmoid(total), dtype), dtype)


# a and b are single numbers of per-layer vectors, whose alignment differs from layer to layer.
@triton.jit(do_not_specialize_on_alignment=["a", "b"])
def _value_gate_kernel(
    x,
    x0,
    a,
    b,
    keep,
    weight,
    out,
    stride_x,
    stride_x0,
    stride_keep,
    stride_out,
    scale,
    eps,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    C: tl.constexpr,
    KV: tl.constexpr,
    LANES: tl.constexpr,
    PDL: tl.constexpr,
):
    dtype: tl.constexpr = x.dtype.element_ty
    row = tl.program_id(0).to(tl.int64)
    column, lane = tl.arange(0, BLOCK), tl.arange(0, LANES)
    inside, gating = column < WIDTH, lane < C
    begin(PDL)
    source = x + row * stride_x
    channels = tl.load(source + lane, mask=gating, other=0.0).to(tl.float32)
    if x0 is not None:
        strength, share = rounded(tl.load(a).to(tl.float32), dtype), rounded(tl.load(b).to(tl.float32), dtype)
        first = tl.load(x0 + row * stride_x0 + lane, mask=gating, other=0.0).to(tl.float32)
        channels = rounded(rounded(strength * channels, dtype) + rounded(share * first, dtype), dtype)
    if eps is not None:
        value = tl.load(source + column, mask=inside, other=0.0)
        if x0 is not None:
            if keep is not None:
                tl.store(keep + row * stride_keep + column, value, mask=inside)
            first = tl.load(x0 + row * stride_x0 + column, mask=inside, other=0.0).to(tl.float32)
            value = rounded(strength * value.to(tl.float32), dtype) + rounded(share * first, dtype)
            value = value.to(dtype)
            tl.debug_barrier()  # all threads have read the leading channels before one of them writes
            tl.store(source + column, value, mask=inside)
        value = value.to(tl.float32)
        channels = rounded(channels * inverse_rms(tl.sum(value * value, axis=0), WIDTH, eps), dtype)
    gate = _gates(channels, weight, scale, C, KV, LANES, dtype)
    head = tl.arange(0, triton.next_power_of_2(KV))
    tl.store(out + row * stride_out + head, gate.to(out.dtype.element_ty), mask=head < KV)


def value_gate(
    x: torch.Tensor,
    weight: torch.Tensor,
    out: torch.Tensor,
    *,
    scale: float,
    eps: float | None,
    mix: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None,
    keep: torch.Tensor | None = None,
    pdl: bool = False,
) -> None:
    """Gates of a layer's value embeddings: scale * sigmoid(weight . first channels of the normalised x).

    x: [tokens, width], contiguous rows. weight: [kv_heads, channels], contiguous. out: [tokens, kv_heads].
    eps: x is normalised first; None: it is already. mix (x0, a, b): first x = a * x + b * x0 in place, as
    kernels.triton.step.scale_add, and `keep` gets x as it was. ValueError: a mix without eps, rows too wide.
    """
    width, (kv_heads, channels) = x.size(1), weight.shape
    check_width(width)
    if eps is None and mix is not None:
        raise ValueError("what is mixed is not normalised yet: give eps")
    x0, a, b = mix if mix is not None else (None, None, None)
    block = triton.next_power_of_2(width)
    _value_gate_kernel[(x.size(0),)](
        x,
        x0,
        a,
        b,
        keep,
        weight,
        out,
        x.stride(0),
        x0.stride(0) if x0 is not None else 0,
        keep.stride(0) if keep is not None else 0,
        out.stride(0),
        scale,
        eps,
        WIDTH=width,
        BLOCK=block,
        C=channels,
        KV=kv_heads,
        LANES=triton.next_power_of_2(channels),
        PDL=pdl,
        num_warps=warps_for(block) if eps is not None else 1,
        launch_pdl=pdl,
    )


@triton.jit(do_not_specialize=["rows"])
def _embed_smear_kernel(
    ids,
    previous_ids,
    positions,
    table,
    weight,
    factor,
    out,
    copy,
    rows,
    stride_table,
    stride_out,
    stride_copy,
    eps,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    C: tl.constexpr,
    LANES: tl.constexpr,
    PDL: tl.constexpr,
):
    dtype: tl.constexpr = table.dtype.element_ty
    token = tl.program_id(0).to(tl.int64)
    column, lane = tl.arange(0, BLOCK), tl.arange(0, LANES)
    inside = column < WIDTH
    begin(PDL)
    own, before = tl.load(ids + token).to(tl.int64), tl.load(previous_ids + token).to(tl.int64)
    position = tl.load(positions + token)
    known = (own >= 0) & (own < rows)
    smeared = known & (position > 0) & (before >= 0) & (before < rows)
    value = tl.load(table + own * stride_table + column, mask=inside & known, other=0.0).to(tl.float32)
    channels = tl.load(table + own * stride_table + lane, mask=(lane < C) & known, other=0.0).to(tl.float32)
    earlier = tl.load(table + before * stride_table + column, mask=inside & smeared, other=0.0).to(tl.float32)
    inverse = inverse_rms(tl.sum(value * value, axis=0), WIDTH, eps)
    value, channels = rounded(value * inverse, dtype), rounded(channels * inverse, dtype)
    earlier = rounded(earlier * inverse_rms(tl.sum(earlier * earlier, axis=0), WIDTH, eps), dtype)
    strength = rounded(tl.load(factor).to(tl.float32), dtype)
    matrix = rounded(tl.load(weight + lane, mask=lane < C, other=0.0).to(tl.float32), dtype)
    total = rounded(tl.sum(rounded(matrix * channels, dtype), axis=0), dtype)
    gate = rounded(strength * rounded(tl.sigmoid(total), dtype), dtype)
    value = value + tl.where(smeared, rounded(gate * earlier, dtype), 0.0)
    result = value.to(out.dtype.element_ty)
    tl.store(out + token * stride_out + column, result, mask=inside)
    if copy is not None:
        tl.store(copy + token * stride_copy + column, result, mask=inside)


def embed_smear(
    ids: torch.Tensor,
    previous_ids: torch.Tensor,
    positions: torch.Tensor,
    table: torch.Tensor,
    weight: torch.Tensor,
    factor: torch.Tensor,
    out: torch.Tensor,
    *,
    eps: float,
    copy: torch.Tensor | None = None,
    pdl: bool = False,
) -> None:
    """Normalised embeddings with the previous token's mixed in: e + factor * sigmoid(weight . first channels)
    * e'.

    ids, previous_ids, positions: [tokens] int32; position 0 has nothing before it, an id out of range gives
    zeros. table: [vocab, width]. weight: [1, channels]. factor: [1], of any float type. out, and copy where
    given: [tokens, width].
    """
    width, channels = table.size(1), weight.size(1)
    check_width(width)
    block = triton.next_power_of_2(width)
    _embed_smear_kernel[(ids.size(0),)](
        ids,
        previous_ids,
        positions,
        table,
        weight,
        factor,
        out,
        copy,
        table.size(0),
        table.stride(0),
        out.stride(0),
        copy.stride(0) if copy is not None else 0,
        eps,
        WIDTH=width,
        BLOCK=block,
        C=channels,
        LANES=triton.next_power_of_2(channels),
        PDL=pdl,
        num_warps=warps_for(block),
        launch_pdl=pdl,
    )
