"""Pieces that several kernels are made of."""

import triton
import triton.language as tl


@triton.jit
def begin(PDL: tl.constexpr):
    """With programmatic dependent launch: lets the next kernel start, then waits for the one before.

    Nothing that an earlier kernel of the step writes may be read before this, and no program may leave before
    it.
    """
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()


@triton.jit
def rounded(x, dtype: tl.constexpr):
    """x, float32, as it reads after having been stored in `dtype`: where the torch reference makes a
    tensor."""
    return x.to(dtype).to(tl.float32)


@triton.jit
def inverse_rms(squares, WIDTH: tl.constexpr, eps):
    """1 / sqrt(mean + eps) of a row from the sum of its squares."""
    return tl.rsqrt(squares / WIDTH + eps)


def warps_for(elements: int) -> int:
    """Warps for one row held in registers: 16 numbers a thread, which is two loads of 16 bytes in
    bfloat16."""
    return max(1, min(16, elements // 512))
