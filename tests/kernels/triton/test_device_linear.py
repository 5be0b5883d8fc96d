"""The route through the library, with norm, activation and bias as kernels of their own."""

import pytest
import torch

from kernels.device_linear import DeviceLinear, LinearScratch
from kernels.probe import Choices
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
