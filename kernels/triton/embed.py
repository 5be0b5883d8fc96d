"""Rows of a matrix by index, normalised on the way where wanted. Reference: kernels.fused.gather_norm."""

import torch
import triton
import triton.language as tl

from kernels.triton.norm import check_width
from kernels.triton.parts import begin, inverse_rms, rounded, warps_for


@triton.jit(do_not_specialize=["rows"])
def _gather_kernel(
    index,
    table,
    weight,
    middle,
    factor,
    out,
    copy,
    positions,
    next_positions,
    rows,
    stride_table,
    stride_middle,
    stride_out,
    stride_copy,
    eps,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    entry = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < WIDTH
    if weight is not None:
        scale = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    begin(PDL)
    source = tl.load(index + entry).to(tl.int64)
    if positions is not None:
        known = (source >= 0) & (source < rows)
        tl.store(next_positions + entry, tl.load(positions + source, mask=known, other=-1) + 1)
    inside_table = inside & (source >= 0) & (source < rows)
    value = tl.load(table + source * stride_table + column, mask=inside_table, other=0.0).to(tl.float32)
    if middle is not None:
        dtype = table.dtype.element_ty
        earlier = tl.load(middle + source * stride_middle + column, mask=inside_table, other=0.0).to(
            tl.float32
        )
        strength = rounded(tl.load(factor).to(tl.float32), dtype)
        value = rounded(value - rounded(strength * earlier, dtype), dtype)
    if eps is not None:
        value = value * inverse_rms(tl.sum(value * value, axis=0), WIDTH, eps)
        if weight is not None:
            value = value * scale
        value = tl.where(inside_table, value, 0.0)
    result = value.to(out.dtype.element_ty)
    tl.store(out + entry * stride_out + column, result, mask=inside)
    if copy is not None:
        tl.store(copy + entry * stride_copy + column, result, mask=inside)


def gather(
    index: torch.Tensor,
    table: torch.Tensor,
    out: torch.Tensor,
    *,
    eps: float | None = None,
    weight: torch.Tensor | None = None,
    backout: tuple[torch.Tensor, torch.Tensor] | None = None,
    copy: torch.Tensor | None = None,
    positions: tuple[torch.Tensor, torch.Tensor] | None = None,
    pdl: bool = False,
) -> None:
    """out[i] = table[index[i]], zeros where the index is out of range.

    index: [entries] int32. table: [rows, width]. out, copy: [entries, width], both get the result. eps: RMS
    norm of each row; None: none. weight: [width], after the norm. backout: a matrix of the table's shape and
    a factor of one number; the factor times the matrix's row is subtracted first (nanochat). positions: int32
    [rows] and [entries]; the second gets what the first has at the index, plus one, and 0 where that is out
    of range. ValueError: a weight without a norm, or rows that are too wide.
    """
    if weight is not None and eps is None:
        raise ValueError("a norm's weight without a norm")
    width = table.size(1)
    check_width(width)
    block = triton.next_power_of_2(width)
    middle, factor = backout if backout is not None else (None, None)
    before, behind = positions if positions is not None else (None, None)
    _gather_kernel[(index.size(0),)](
        index,
        table,
        weight,
        middle,
        factor,
        out,
        copy,
        before,
        behind,
        table.size(0),
        table.stride(0),
        middle.stride(0) if middle is not None else 0,
        out.stride(0),
        copy.stride(0) if copy is not None else 0,
        eps,
        WIDTH=width,
        BLOCK=block,
        PDL=pdl,
        num_warps=warps_for(block),
        launch_pdl=pdl,
    )


def embed_norm(
    ids: torch.Tensor,
    table: torch.Tensor,
    out: torch.Tensor,
    *,
    eps: float | None,
    weight: torch.Tensor | None = None,
    copy: torch.Tensor | None = None,
    pdl: bool = False,
) -> None:
    """Embeddings of a step's tokens, normalised where eps is given; ids out of range give zeros.

    ids: [tokens] int32. table: [vocab, width]. out, and copy where given: [tokens, width]. weight: [width],
    the norm's.
    """
    gather(ids, table, out, eps=eps, weight=weight, copy=copy, pdl=pdl)
