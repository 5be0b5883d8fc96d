"""Packed products: right, and bit-equal for a row whatever the number of rows."""

import pytest
import torch

from kernels.linear import PackedLinear

SHAPES = [(64, 64), (256, 64), (64, 256), (512, 1536), (2048, 512), (512, 8192)]


@pytest.mark.parametrize("inputs, outputs", SHAPES)
def test_rows_do_not_depend_on_their_number(inputs: int, outputs: int) -> None:
    generator = torch.Generator().manual_seed(inputs + outputs)
    weight = torch.randn(outputs, inputs, generator=generator) / inputs**0.5
    x = torch.randn(300, inputs, generator=generator)
    linear = PackedLinear(weight)
    whole = linear(x)
    torch.testing.assert_close(whole.double(), x.double() @ weight.double().T, rtol=0, atol=1e-5)
    if not linear.packed:
        pytest.skip("no packed layout on this processor; rows are equal within rounding only")
    for rows in (1, 2, 3, 4, 7, 8, 9, 16, 31, 64, 129, 256):
        assert torch.equal(linear(x[:rows]), whole[:rows]), rows
        assert torch.equal(linear(x[300 - rows :]), whole[300 - rows :]), rows


def test_unpacked_types_keep_their_weight() -> None:
    weight = torch.randn(8, 4, dtype=torch.float64)
    linear = PackedLinear(weight)
    x = torch.randn(3, 4, dtype=torch.float64)
    assert not linear.packed
    assert torch.equal(linear(x), x @ weight.T)
