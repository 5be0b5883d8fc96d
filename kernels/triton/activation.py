"""The functions inside an MLP, for products that could not apply them themselves. Reference:
kernels.fused."""

import torch
import triton
import triton.language as tl

from kernels.triton.parts import begin

INTERLEAVE = 8  # gate columns, then as many up columns of the same channels
BLOCK = 1024


@triton.jit
def _relu_squared_kernel(
    x, out, stride_x, stride_out, WIDTH: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr
):
    PARTS: tl.constexpr = (WIDTH + BLOCK - 1) // BLOCK
    row = (tl.program_id(0) // PARTS).to(tl.int64)
    column = (tl.program_id(0) % PARTS) * BLOCK + tl.arange(0, BLOCK)
    inside = column < WIDTH
    begin(PDL)
    value = tl.load(x + row * stride_x + column, mask=inside, other=0.0).to(tl.float32)
    value = tl.where(value < 0.0, 0.0, value)  # unlike a maximum, keeps NaN
    tl.store(out + row * stride_out + column, (value * value).to(out.dtype.element_ty), mask=inside)


@triton.jit
def _swiglu_kernel(x, out, stride_x, stride_out, WIDTH: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr):
    PARTS: tl.constexpr = (WIDTH + BLOCK - 1) // BLOCK
    row = (tl.program_id(0) // PARTS).to(tl.int64)
    group = (tl.program_id(0) % PARTS) * (BLOCK // 8) + tl.arange(0, BLOCK // 8)[:, None]
    lane = tl.arange(0, 8)[None, :]
    inside = (group * 8 + lane) < WIDTH
    begin(PDL)
    source = x + row * stride_x + group * 16 + lane
    gate = tl.load(source, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(source + 8, mask=inside, other=0.0).to(tl.float32)
    value = gate * tl.sigmoid(gate) * up
    tl.store(out + row * stride_out + group * 8 + lane, value.to(out.dtype.element_ty), mask=inside)


def relu_squared(x: torch.Tensor, out: torch.Tensor, pdl: bool = False) -> None:
    """out = max(x, 0)^2. Both [tokens, width], rows of any stride; out may be x."""
    tokens, width = x.shape
    block = min(BLOCK, triton.next_power_of_2(width))
    _relu_squared_kernel[(tokens * -(-width // block),)](
        x,
        out,
        x.stride(0),
        out.stride(0),
        WIDTH=width,
        BLOCK=block,
        PDL=pdl,
        num_warps=max(1, block // 256),
        launch_pdl=pdl,
    )


def swiglu(x: torch.Tensor, out: torch.Tensor, *, pdl: bool = False) -> None:
    """out = gate * sigmoid(gate) * up, in float32, rounded once.

    out: [tokens, width]. x: [tokens, 2 * width], eight gate columns, then the eight up columns of the same
    channels, and so on. ValueError: a width that is no multiple of eight.
    """
    tokens, width = out.shape
    if width % INTERLEAVE or x.size(1) != 2 * width:
        raise ValueError(f"swiglu of {x.size(1)} interleaved columns into {width}")
    block = min(BLOCK // 2, triton.next_power_of_2(width))
    _swiglu_kernel[(tokens * -(-width // block),)](
        x,
        out,
        x.stride(0),
        out.stride(0),
        WIDTH=width,
        BLOCK=block,
        PDL=pdl,
        num_warps=max(1, block // 256),
        launch_pdl=pdl,
    )
