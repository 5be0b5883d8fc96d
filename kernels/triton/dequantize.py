"""Weights of eight bits as full ones, in front of a product with many rows. Reference:
kernels.quantize.dequantize."""

import torch
import triton
import triton.language as tl

from kernels.quantize import Weight8
from kernels.triton.parts import begin

BLOCK = 2048  # 16 numbers a thread: one load of 16 bytes, two stores


@triton.jit
def _dequantize_kernel(
    values, scales, out, WIDTH: tl.constexpr, FP8: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr
):
    PARTS: tl.constexpr = (WIDTH + BLOCK - 1) // BLOCK
    row = (tl.program_id(0) // PARTS).to(tl.int64)
    column = (tl.program_id(0) % PARTS) * BLOCK + tl.arange(0, BLOCK)
    inside = column < WIDTH
    value = tl.load(values + row * WIDTH + column, mask=inside, other=0)
    scale = tl.load(scales + row)
    if FP8:
        # e4m3 has float16's layout with an exponent that is shorter by a bit and a bias that is smaller by 8:
        # shifted into place it is too small by 2^8, numbers below the normal ones included.
        bits = value.to(tl.int16)
        half = ((bits & 0x7F) << 7) | (bits & -0x8000)
        number = half.to(tl.float16, bitcast=True).to(tl.float32) * 256.0
    else:
        number = value.to(tl.float32)
    # The product in front of this one may still read what is overwritten here.
    begin(PDL)
    tl.store(out + row * WIDTH + column, (number * scale).to(out.dtype.element_ty), mask=inside)


def dequantize(weight: Weight8, out: torch.Tensor, *, pdl: bool = False) -> None:
    """out = values * scales, in float32, rounded once. out: [outputs, inputs], contiguous, of any float type.

    Raises ValueError for another shape.
    """
    outputs, inputs = weight.shape
    if out.shape != weight.shape or not out.is_contiguous():
        raise ValueError(f"a weight {tuple(weight.shape)} into {tuple(out.shape)}")
    block = min(BLOCK, triton.next_power_of_2(inputs))
    _dequantize_kernel[(outputs * -(-inputs // block),)](
        weight.values.view(torch.int8),
        weight.scales,
        out,
        WIDTH=inputs,
        FP8=weight.kind == "fp8",
        BLOCK=block,
        PDL=pdl,
        num_warps=max(1, block // 512),
        launch_pdl=pdl,
    )
