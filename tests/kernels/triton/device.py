"""Where the kernels' tests run, and how their results are judged."""

import os

import torch

DEVICE = "cuda" if torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1" else "cpu"

DTYPES = (torch.bfloat16, torch.float32)
REL_L2 = {torch.bfloat16: 4e-3, torch.float32: 1e-6}


def randn(*shape: int, dtype: torch.dtype, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    """Normal numbers, rounded to dtype, the same on every device."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator) * scale).to(dtype).to(DEVICE)


def ints(values: list[int]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32, device=DEVICE)


def poisoned(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    """What a kernel must overwrite: NaN, or a number that no test expects."""
    value = float("nan") if dtype.is_floating_point else -(2**30)
    if dtype == torch.float8_e4m3fn:  # which torch does not fill
        return torch.full(shape, 0x7F, dtype=torch.uint8, device=DEVICE).view(dtype)
    return torch.full(shape, value, dtype=dtype, device=DEVICE)


def strided(x: torch.Tensor, extra: int) -> torch.Tensor:
    """The same numbers as a view with `extra` poisoned columns behind each row."""
    rows, width = x.shape
    wide = poisoned(rows, width + extra, dtype=x.dtype)
    wide[:, :width] = x
    return wide[:, :width]


def ulp(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Distance to the next number of dtype, float64."""
    bits = 8 if dtype == torch.bfloat16 else 24
    return torch.exp2(x.double().abs().clamp_min(1e-30).log2().floor() - (bits - 1))


def assert_exact(
    actual: torch.Tensor, exact: torch.Tensor, reference: torch.Tensor | None = None, ulps: float = 1.0
) -> None:
    """Judges a result against float64 arithmetic on the same, rounded, inputs.

    reference: the same from plain torch in the same dtype; the kernel may be no more than twice as far off.
    Without one every number must be within `ulps` of the exact one rounded.
    """
    dtype = actual.dtype
    assert torch.isfinite(actual).all()
    difference = actual.double() - exact
    assert difference.norm() <= REL_L2[dtype] * exact.norm()
    if reference is not None:
        allowed = 2 * (reference.double() - exact).abs().max() + 1e-5
        assert difference.abs().max() <= allowed
    else:
        rounded = exact.to(dtype).double()
        assert ((actual.double() - rounded).abs() <= ulps * ulp(exact, dtype) + 1e-30).all()


def assert_near(actual: torch.Tensor, reference: torch.Tensor, ulps: float = 1.0, floor: float = 0.0) -> None:
    """Equal up to `ulps` of the number's own size, or of `floor` where that is larger: sums cancel."""
    distance = (actual.double() - reference.double()).abs()
    allowed = ulps * ulp(reference.double().abs().clamp_min(floor), actual.dtype)
    assert (distance <= allowed).all(), f"{(distance / allowed).max().item():.2f} times what is allowed"
