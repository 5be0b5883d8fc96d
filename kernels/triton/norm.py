"""RMS norm of rows, with a weight and a residual addition where wanted. Reference: kernels.norm,
kernels.fused.

One program holds one row in registers, so a row's bits do not depend on how many rows share the call.
"""

import torch
import triton
import triton.language as tl

from kernels.triton.parts import begin, inverse_rms, rounded, warps_for

MAX_WIDTH = 32768  # a row must fit the registers of one program


@triton.jit
def _rms_norm_kernel(
    x,
    weight,
    residual,
    out,
    stride_x,
    stride_residual,
    stride_out,
    eps,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < WIDTH
    if weight is not None:
        factor = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    begin(PDL)
    value = tl.load(x + row * stride_x + column, mask=inside, other=0.0).to(tl.float32)
    if residual is not None:
        place = residual + row * stride_residual + column
        value = rounded(
            value + tl.load(place, mask=inside, other=0.0).to(tl.float32), residual.dtype.element_ty
        )
        tl.store(place, value.to(residual.dtype.element_ty), mask=inside)
    value = value * inverse_rms(tl.sum(value * value, axis=0), WIDTH, eps)
    if weight is not None:
        value = value * factor
    tl.store(out + row * stride_out + column, value.to(out.dtype.element_ty), mask=inside)


def rms_norm(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    eps: float,
    out: torch.Tensor,
    *,
    residual: torch.Tensor | None = None,
    pdl: bool = False,
) -> None:
    """out = x / sqrt(mean(x^2) + eps) * weight, in float32, rounded once.

    x, out, residual: [tokens, width], rows of any stride; out may be x. weight: [width] or None. residual: x
    is added to it in place, rounded to its dtype, and the sum is what is normalised. ValueError: rows wider
    than MAX_WIDTH.
    """
    tokens, width = x.shape
    check_width(width)
    block = triton.next_power_of_2(width)
    _rms_norm_kernel[(tokens,)](
        x,
        weight,
        residual,
        out,
        x.stride(0),
        residual.stride(0) if residual is not None else 0,
        out.stride(0),
        eps,
        WIDTH=width,
        BLOCK=block,
        PDL=pdl,
        num_warps=warps_for(block),
        launch_pdl=pdl,
    )


def check_width(width: int) -> None:
    if width > MAX_WIDTH:
        raise ValueError(f"rows of {width} numbers do not fit one program; the limit is {MAX_WIDTH}")
