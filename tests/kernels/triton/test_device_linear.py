"""The route through the library, with norm, activation and bias as kernels of their own."""

import pytest
import torch

from kernels.device_linear import DeviceLinear, LinearScratch
from kernels.probe import Choices
from kernels.quantize import Kind8, dequantize, quantize
from kernels.skinny import Activation
from tests.kernels.test_skinny import exact

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
EPS = 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
def test_all_methods(dtype: torch.dtype, bias: bool) -> None:
    torch.manual_seed(0)
    n, k, m = 48, 32, 5
    x, weight = torch.randn(m, k).to(DEVICE, dtype), (torch.randn(n, k) / k**0.5).to(DEVICE, dtype)
    added = torch.randn(n).to(DEVICE, dtype) if bias else None
    scratch = LinearScratch.allocate(8, k, n, dtype, DEVICE)
    linear = DeviceLinear(weight, added, choices=Choices(), scratch=scratch)
    out, half = (
        torch.empty(m, n, dtype=dtype, device=DEVICE),
        torch.empty(m, n // 2, dtype=dtype, device=DEVICE),
    )
    residual = torch.randn(m, n).to(DEVICE, dtype)
    tolerance = 1e-5 if dtype == torch.float32 else 8e-3

    def check(
        got: torch.Tensor, eps: float | None, activation: Activation, before: torch.Tensor | None
    ) -> None:
        # A bias as one more input channel; the norm's factor must not touch it.
        scale = 1.0 if eps is None else (x.double().square().mean(1, keepdim=True) + eps).rsqrt()
        wide, offset = x.double() * scale, torch.zeros(n) if added is None else added
        ones = torch.cat((wide, torch.ones(m, 1, device=DEVICE)), 1)
        want = exact(
            ones,
            torch.cat((weight.double(), offset.double()[:, None].to(DEVICE)), 1),
            None,
            activation,
            before,
        )
        assert (got.double() - want).norm() / want.norm() < tolerance

    linear.linear(x, out)
    check(out, None, "none", None)
    linear.norm_linear(x, out, EPS)
    check(out, EPS, "none", None)
    linear.norm_linear_activation(x, out, EPS, "relu2")
    check(out, EPS, "relu2", None)
    linear.norm_linear_activation(x, half, EPS, "swiglu")
    check(half, EPS, "swiglu", None)
    got = residual.clone()
    linear.linear_residual(x, got)
    check(got, None, "none", residual)


@pytest.mark.parametrize(
    ("dtype", "kind"),
    [
        (torch.float32, "int8"),
        (torch.bfloat16, "fp8"),
        pytest.param(torch.float32, "fp8", marks=pytest.mark.slow),
        pytest.param(torch.bfloat16, "int8", marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_a_weight_of_eight_bits(kind: Kind8, dtype: torch.dtype) -> None:
    """It is what a full one with the same numbers is, also behind a larger one that used the same buffer."""
    torch.manual_seed(1)
    n, k, m, more = 16, 64, 5, 32  # few outputs: the interpreter takes each by itself
    x = torch.randn(m, k).to(DEVICE, dtype)
    wide, bias = torch.randn(more, k).to(DEVICE, dtype), torch.randn(n).to(DEVICE, dtype)
    packed = quantize((torch.randn(n, k) / k**0.5).to(DEVICE, dtype), kind)
    scratch = LinearScratch.allocate(8, k, n, dtype, DEVICE, more * k)
    assert (
        scratch.full.numel() == more * k
        and scratch.bytes > LinearScratch.allocate(8, k, n, dtype, DEVICE).bytes
    )
    residual = torch.randn(m, n).to(DEVICE, dtype)

    def results(linear: DeviceLinear) -> list[torch.Tensor]:
        outs = [torch.empty(m, width, dtype=dtype, device=DEVICE) for width in (n, n, n, n // 2)]
        linear.linear(x, outs[0])
        linear.norm_linear(x, outs[1], EPS)
        linear.norm_linear_activation(x, outs[2], EPS, "relu2")
        linear.norm_linear_activation(x, outs[3], EPS, "swiglu")
        added = residual.clone()
        linear.linear_residual(x, added)
        return [*outs, added]

    for added in (None, bias):
        eight = DeviceLinear(packed, added, choices=Choices(), scratch=scratch)
        full = DeviceLinear(dequantize(packed), added, choices=Choices(), scratch=scratch)
        larger = DeviceLinear(quantize(wide, kind), choices=Choices(), scratch=scratch)
        larger.linear(x, torch.empty(m, more, dtype=dtype, device=DEVICE))
        for got, want in zip(results(eight), results(full), strict=True):
            assert torch.equal(got, want)
