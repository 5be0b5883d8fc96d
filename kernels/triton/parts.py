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


# Triton's own conversion takes numbers apart that it then puts together again, a register for each.
_FOUR_CHANNELS = tl.constexpr("""
{
    .reg .b16 low, high;
    .reg .b32 first, second;
    .reg .f16 half<4>;
    mov.b32 {low, high}, $4;
    cvt.rn.f16x2.e4m3x2 first, low;
    cvt.rn.f16x2.e4m3x2 second, high;
    mov.b32 {half0, half1}, first;
    mov.b32 {half2, half3}, second;
    cvt.f32.f16 $0, half0;
    cvt.f32.f16 $1, half1;
    cvt.f32.f16 $2, half2;
    cvt.f32.f16 $3, half3;
}
""")


@triton.jit
def four_channels(word):
    """Words of four numbers in e4m3, int32, as four tensors of float32 of their shape."""
    return tl.inline_asm_elementwise(
        _FOUR_CHANNELS,
        "=f,=f,=f,=f,r",
        [word],
        dtype=(tl.float32, tl.float32, tl.float32, tl.float32),
        is_pure=True,
        pack=1,
    )


@triton.jit
def inverse_rms(squares, WIDTH: tl.constexpr, eps):
    """1 / sqrt(mean + eps) of a row from the sum of its squares."""
    return tl.rsqrt(squares / WIDTH + eps)


def warps_for(elements: int) -> int:
    """Warps for one row held in registers: 16 numbers a thread, which is two loads of 16 bytes in
    bfloat16."""
    return max(1, min(16, elements // 512))
