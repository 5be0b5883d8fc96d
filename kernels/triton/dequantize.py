"""Weights of eight bits as full ones, in front of a product with many rows. Reference:
kernels.quantize.dequantize."""

import torch
import triton
import triton.language as tl

from kernels.quantize import Weight8
from kernels.triton.parts import begin

BLOCK = 2048  # 16 numbers a thread: one load of 16 bytes, two stores


@triton.jit
def _full(value, FP8: tl.constexpr):
    """Numbers of a byte each as float32."""
    if FP8:
        # e4m3 has float16's layout with an exponent that is shorter by a bit and a bias that is smaller by 8:
        # shifted into place it is too small by 2^8, numbers below the normal ones included.
        bits = value.to(tl.int8).to(tl.int16)
        half = ((bits & 0x7F) << 7) | (bits & -0x8000)
        return half.to(tl.float16, bitcast=True).to(tl.float32) * 256.0
    return value.to(tl.int8).to(tl.float32)


@triton.jit
def _dequantize_kernel(
    values, scales, out, WIDTH: tl.constexpr, FP8: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr
):
    PARTS: tl.constexpr = (WIDTH + BLOCK - 1) // BLOCK
    row = (tl.program_id(0) // PARTS).to(tl.int64)
    first = (tl.program_id(0) % PARTS) * BLOCK
    column = first + tl.arange(0, BLOCK)
    scale = tl.load(scales + row)
    if WIDTH % 4 == 0:
        # kernels.quantize.in_pairs: a word holds channels 0, 2, 1, 3.
        word = first // 4 + tl.arange(0, BLOCK // 4)
        four = tl.load(values + row * (WIDTH // 4) + word, mask=word < WIDTH // 4, other=0)
        even = tl.interleave(_full(four, FP8), _full(four >> 8, FP8))
        number = tl.interleave(even, tl.interleave(_full(four >> 16, FP8), _full(four >> 24, FP8)))
    else:
        number = _full(tl.load(values + row * WIDTH + column, mask=column < WIDTH, other=0), FP8)
    # The product in front of this one may still read what is overwritten here.
    begin(PDL)
    tl.store(out + row * WIDTH + column, (number * scale).to(out.dtype.element_ty), mask=column < WIDTH)


def dequantize(weight: Weight8, out: torch.Tensor, *, pdl: bool = False) -> None:
    """out = values * scales, in float32, rounded once. out: [outputs, inputs], contiguous, of any float type.

    Raises ValueError for another shape.
    """
    outputs, inputs = weight.shape
    if out.shape != weight.shape or not out.is_contiguous():
        raise ValueError(f"a weight {tuple(weight.shape)} into {tuple(out.shape)}")
    block = max(4, min(BLOCK, triton.next_power_of_2(inputs)))
    _dequantize_kernel[(outputs * -(-inputs // block),)](
        weight.values.view(torch.int8 if inputs % 4 else torch.int32),
        weight.scales,
        out,
        WIDTH=inputs,
        FP8=weight.kind == "fp8",
        BLOCK=block,
        PDL=pdl,
        num_warps=max(1, block // 512),
        launch_pdl=pdl,
    )
