"""A projection on a GPU: for each number of rows the fastest product that was measured.

For few rows the kernels of kernels.linear_families read the weight once and do what stands around the product
on the way; cuBLAS serves the rest, with norm, activation and bias as kernels of their own. kernels.probe
decides between them. A weight of eight bits (kernels.quantize) is made a full one in front of cuBLAS.
"""

from dataclasses import dataclass

import torch

from kernels.probe import MEASURED_ROWS, Choices
from kernels.product import Library, Product
from kernels.quantize import Weight, Weight8, kind_of
from kernels.skinny import Activation
from kernels.triton.activation import relu_squared, swiglu
from kernels.triton.dequantize import dequantize
from kernels.triton.gemm import GemmWorkspace
from kernels.triton.norm import rms_norm


@dataclass(frozen=True, slots=True)
class LinearScratch:
    """Buffers that all projections of a network share.

    normed: normalised inputs, flat. wide: products in front of a swiglu, flat; empty where there is none.
    parts: sums of parts of a product; empty where kernels.triton.gemm does not serve. full: the weight of the
    product that runs, flat, where it is kept in eight bits; empty where none is.
    """

    normed: torch.Tensor
    wide: torch.Tensor
    parts: GemmWorkspace
    full: torch.Tensor

    @classmethod
    def allocate(
        cls, tokens: int, inputs: int, wide: int, dtype: torch.dtype, device: torch.device, full: int = 0
    ) -> "LinearScratch":
        """inputs: the widest input behind a norm. wide: the most outputs of a projection with swiglu, or 0.
        full: numbers of the largest weight that is kept in eight bits, or 0.
        """
        tokens = max(tokens, MEASURED_ROWS[-1])
        options = {"dtype": dtype, "device": device}
        normed, products = (torch.zeros(tokens * width, **options) for width in (inputs, wide))  # type: ignore[call-overload]
        serves = device.type == "cuda" and dtype == torch.bfloat16
        parts = GemmWorkspace.allocate(device) if serves else GemmWorkspace.allocate(device, 0)
        return cls(normed, products, parts, torch.zeros(full, **options))  # type: ignore[call-overload]

    @property
    def bytes(self) -> int:
        numbers = self.normed.numel() + self.wide.numel() + self.full.numel()
        return numbers * self.normed.element_size() + self.parts.bytes

    def normed_rows(self, x: torch.Tensor, eps: float, pdl: bool) -> torch.Tensor:
        """Queues the norm of x, [rows, inputs]; the result is valid until the next one's."""
        normed = self.normed[: x.numel()].view(x.shape)
        rms_norm(x, None, eps, normed, pdl=pdl)
        return normed


class DeviceLinear:
    """y = x W^T + b, with what a decoder puts around it. Every call only queues work and allocates nothing.

    In all methods x is [rows, inputs], and out has unit stride inside a row.
    """

    def __init__(
        self,
        weight: Weight,
        bias: torch.Tensor | None = None,
        *,
        choices: Choices,
        scratch: LinearScratch,
        pdl: bool = False,
    ) -> None:
        """weight: [outputs, inputs], contiguous; of eight bits, scratch.full must have room for it.
        pdl: ours around cuBLAS may start before the previous kernel has ended.
        """
        self.weight, self.bias = weight, bias
        self.out_features, self.in_features = weight.shape
        self.choices, self.scratch, self.pdl = choices, scratch, pdl

    def linear(self, x: torch.Tensor, out: torch.Tensor) -> None:
        """out = x W^T + b."""
        if not self._fused(x, out, None, "none", False):
            self._product(x, out)

    def norm_linear(self, x: torch.Tensor, out: torch.Tensor, eps: float) -> None:
        """out = norm(x) W^T + b, the norm an RMS norm without weight."""
        if not self._fused(x, out, eps, "none", False):
            self._product(self.scratch.normed_rows(x, eps, self.pdl), out)

    def norm_linear_activation(
        self, x: torch.Tensor, out: torch.Tensor, eps: float, activation: Activation
    ) -> None:
        """out = activation(norm(x) W^T + b). swiglu: W interleaved in groups of 8, out half as wide."""
        if self._fused(x, out, eps, activation, False):
            return
        normed = self.scratch.normed_rows(x, eps, self.pdl)
        if activation == "swiglu":
            wide = self.scratch.wide[: x.size(0) * self.out_features].view(x.size(0), self.out_features)
            self._product(normed, wide)
            swiglu(wide, out, pdl=self.pdl)
            return
        self._product(normed, out)
        if activation == "relu2":
            relu_squared(out, out, pdl=self.pdl)

    def linear_residual(self, x: torch.Tensor, residual: torch.Tensor) -> None:
        """residual += x W^T + b, in place."""
        if self._fused(x, residual, None, "none", True):
            return
        torch.addmm(residual, x, self._full().t(), out=residual)
        if self.bias is not None:
            residual.add_(self.bias)

    def _fused(
        self, x: torch.Tensor, out: torch.Tensor, eps: float | None, activation: Activation, accumulate: bool
    ) -> bool:
        """Whether the measured choice is a kernel of ours; if so, queues it."""
        if self.bias is not None:
            return False
        product = Product(
            self.out_features, self.in_features, eps is not None, activation, accumulate, kind_of(self.weight)
        )
        return self.choices.serve(product, x, self.weight, out, eps or 0.0)

    def _product(self, x: torch.Tensor, out: torch.Tensor) -> None:
        if self.bias is None:
            torch.mm(x, self._full().t(), out=out)
        else:
            torch.addmm(self.bias, x, self._full().t(), out=out)

    def _full(self) -> torch.Tensor:
        """The weight as cuBLAS takes it; of eight bits it is valid until the next projection's."""
        if not isinstance(self.weight, Weight8):
            return self.weight
        full = self.scratch.full[: self.weight.numel()].view(self.weight.shape)
        dequantize(self.weight, full, pdl=self.pdl)
        return full


def through_cublas(scratch: LinearScratch, pdl: bool = False) -> Library:
    """The route that kernels.probe compares with."""

    def run(product: Product, x: torch.Tensor, weight: Weight, out: torch.Tensor, eps: float) -> None:
        linear = DeviceLinear(weight, choices=Choices(), scratch=scratch, pdl=pdl)
        if product.accumulate:
            linear.linear_residual(x, out)
        elif product.norm:
            linear.norm_linear_activation(x, out, eps, product.activation)
        else:
            linear.linear(x, out)

    return run
