"""Weights of eight bits made full ones, against the torch reference."""

import pytest
import torch

from kernels import quantize
from kernels.quantize import FORMATS, Kind8, Weight8
from kernels.triton.dequantize import dequantize
from tests.kernels.triton.device import DEVICE, DTYPES, poisoned, randn

both = pytest.mark.parametrize("kind", ["int8", "fp8"])
bits = pytest.mark.parametrize("dtype", DTYPES, ids=["bf16", "fp32"])


@both
@bits
@pytest.mark.parametrize(("outputs", "inputs"), [(3, 2048), (5, 96), (2, 5504), (1, 32)])
def test_equals_the_reference(kind: Kind8, dtype: torch.dtype, outputs: int, inputs: int) -> None:
    packed = quantize.quantize(randn(outputs, inputs, dtype=dtype), kind)
    whole = poisoned(outputs + 1, inputs, dtype=dtype)
    dequantize(packed, whole[:outputs])
    assert torch.equal(whole[:outputs], quantize.dequantize(packed))
    assert whole[outputs:].isnan().all()


@both
def test_every_number_of_the_format(kind: Kind8) -> None:
    """All that quantisation may give, those below fp8's normal numbers included."""
    pattern = torch.arange(256, dtype=torch.int32).sub(128).to(torch.int8)
    values = pattern.view(FORMATS[kind])
    values = values[values.float().isfinite()].reshape(1, -1).to(DEVICE)
    packed = Weight8(values, torch.full((1,), 0.75, device=DEVICE), torch.float32)
    out = poisoned(*values.shape, dtype=torch.float32)
    dequantize(packed, out)
    assert torch.equal(out, quantize.in_pairs(values).float() * 0.75) and values.numel() in (254, 256)


def test_refuses_another_shape() -> None:
    packed = quantize.quantize(randn(4, 32, dtype=torch.float32), "int8")
    with pytest.raises(ValueError, match="into"):
        dequantize(packed, poisoned(4, 64, dtype=torch.float32))
