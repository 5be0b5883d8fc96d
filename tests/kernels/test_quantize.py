"""Weights of eight bits: what rounding costs, and rows that are out of the ordinary."""

import pytest
import torch

from kernels.quantize import (
    LARGEST,
    Kind8,
    dequantize,
    in_pairs,
    kind_of,
    quantize,
    rounded,
    stored_bytes,
)

both = pytest.mark.parametrize("kind", ["int8", "fp8"])


def gaussian(outputs: int = 64, inputs: int = 2048, scale: float = 1.0) -> torch.Tensor:
    return torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(1)) * scale


def relative(got: torch.Tensor, want: torch.Tensor) -> float:
    return float((got.double() - want.double()).norm() / want.double().norm())


@both
def test_error_on_gaussian_rows(kind: Kind8) -> None:
    """int8: steps of a row's largest / 127, uniform within a step, so a 12th of its square. Of 2,048 normal
    numbers the largest is about 3.5: 0.8 %. fp8: 3 bits behind the leading one, 2.6 % for any width.
    """
    weight = gaussian()
    error = relative(rounded(weight, kind), weight)
    if kind == "int8":
        step = weight.abs().amax(1) / 127
        expected = float((step.square().mean() / 12).sqrt() / weight.square().mean().sqrt())
        assert abs(error / expected - 1) < 0.03 and 0.006 < error < 0.011
    else:
        assert 0.024 < error < 0.028


@both
def test_no_number_is_off_by_more_than_half_a_step(kind: Kind8) -> None:
    weight = gaussian()
    packed = quantize(weight, kind)
    scaled = weight.double() / packed.scales.double().unsqueeze(1)
    off = (in_pairs(packed.values).double() - scaled).abs()
    if kind == "int8":
        step = torch.ones_like(scaled)
    else:
        step = torch.exp2(scaled.abs().clamp_min(2.0**-6).log2().floor() - 3)
    # The division in float32 may put a number that lies between two on the other side.
    assert (off <= step * (0.5 + 1e-4)).all()
    assert packed.values.double().abs().amax(1).eq(LARGEST[kind]).all()


@pytest.mark.parametrize("inputs", [64, 6])
def test_pairs(inputs: int) -> None:
    """Of each four channels the two in the middle change places; twice is once too often."""
    values = torch.arange(2 * inputs).view(2, inputs).to(torch.int8)
    expected = list(range(inputs))
    if inputs % 4 == 0:
        expected = [
            channel for four in range(0, inputs, 4) for channel in (four, four + 2, four + 1, four + 3)
        ]
    assert in_pairs(values)[0].tolist() == expected
    assert torch.equal(in_pairs(in_pairs(values)), values)


@both
def test_unusual_rows(kind: Kind8) -> None:
    """Zeros stay zeros, and neither huge nor tiny rows lose more than others do."""
    weight = gaussian(5, 512)
    weight *= torch.tensor([0.0, 1e36, 1e-30, 1.0, 0.0]).unsqueeze(1)
    weight[4, 7] = -3.0  # alone in its row
    packed = quantize(weight, kind)
    back = dequantize(packed)
    assert back.isfinite().all() and packed.scales.gt(0).all()
    assert back[0].count_nonzero() == 0
    assert all(relative(back[row], weight[row]) < 0.03 for row in (1, 2, 3))
    assert back[4, 7].item() == pytest.approx(-3.0, rel=1e-6) and back[4].count_nonzero() == 1


@both
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_largest_and_the_smallest_numbers(kind: Kind8, dtype: torch.dtype) -> None:
    """Of a type's own range: nothing overflows, and below the smallest scale numbers become zeros."""
    largest = torch.finfo(dtype).max
    weight = torch.tensor([[largest, -largest], [1e-44, 0.0]], dtype=dtype)
    back = rounded(weight, kind)
    assert torch.allclose(back[0], weight[0], rtol=1e-6) and back[1].isfinite().all()


@both
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_refuses_what_is_not_finite(kind: Kind8, bad: float) -> None:
    weight = gaussian(3, 64)
    weight[2, 5] = bad
    with pytest.raises(ValueError, match=f"not finite, so that there is no {kind}"):
        quantize(weight, kind)


@both
def test_again_changes_nothing(kind: Kind8) -> None:
    """The largest of a row decides the scale, and it is kept: so is every other number."""
    once = rounded(gaussian(), kind)
    assert relative(rounded(once, kind), once) < 1e-6


@both
def test_parts_and_sizes(kind: Kind8, monkeypatch: pytest.MonkeyPatch) -> None:
    """Quantised some rows at a time it is the same; it takes half of bfloat16, and four bytes a row."""
    weight = gaussian(37, 96).bfloat16()
    whole = quantize(weight, kind)
    monkeypatch.setattr("kernels.quantize.AT_ONCE", 5 * 96)
    parts = quantize(weight, kind)
    assert torch.equal(whole.values.view(torch.int8), parts.values.view(torch.int8))
    assert torch.equal(whole.scales, parts.scales)
    assert (kind_of(whole), kind_of(weight)) == (kind, "bf16")
    assert stored_bytes(whole) == stored_bytes(weight) // 2 + 4 * 37
    assert dequantize(whole).dtype == torch.bfloat16 and whole.size(1) == 96 and whole.numel() == 37 * 96
