"""A projection on a GPU: for each number of rows the fastest product that was measured.

For few rows kernels.skinny reads the weight once and does what stands around the product on the way, for some
dozens kernels.triton.gemm does; cuBLAS serves the rest, with norm, activation and bias as kernels of their
own. kernels.probe decides between them. A weight of eight bits (kernels.quantize) is served by the first as
it is, and made a full one in front of cuBLAS.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from kernels.probe import MEASURED_ROWS, Choices, Library, Medium, Product
from kernels.quantize import Weight, Weight8, kind_of
from kernels.skinny import Activation, skinny_linear
from kernels.triton.activation import relu_squared, swiglu
from kernels.triton.dequantize import dequantize
from kernels.triton.gemm import GemmWorkspace, Kind, fused_gemm, prepare, prepare_all
from kernels.triton.gemm_config import GemmConfig
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
        pdl: ours may start before the previous kernel has ended.
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
            self._product(self._normed(x, eps), out)

    def norm_linear_activation(
        self, x: torch.Tensor, out: torch.Tensor, eps: float, activation: Activation
    ) -> None:
        """out = activation(norm(x) W^T + b). swiglu: W interleaved in groups of 8, out half as wide."""
        if self._fused(x, out, eps, activation, False):
            return
        normed = self._normed(x, eps)
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
        variant = self.choices.variant(product, x.size(0))
        if variant is None:
            return False
        if isinstance(variant, GemmConfig):
            self.medium(x, out, eps, activation, accumulate, variant)
            return True
        skinny_linear(
            x,
            self.weight,
            out,
            eps=eps,
            activation=activation,
            accumulate=accumulate,
            variant=variant,
            pdl=self.pdl,
        )
        return True

    def medium(
        self,
        x: torch.Tensor,
        out: torch.Tensor,
        eps: float | None,
        activation: Activation,
        accumulate: bool,
        config: GemmConfig,
    ) -> None:
        """The product by kernels.triton.gemm, cut as `config` says, the norm inside it or in front. Not of
        eight bits."""
        assert isinstance(self.weight, torch.Tensor)
        if eps is not None and not config.norm_inside:
            x, eps = self._normed(x, eps), None
        fused_gemm(
            x,
            self.weight,
            out,
            eps=eps,
            activation=activation,
            accumulate=accumulate,
            config=config,
            workspace=self.scratch.parts,
            pdl=self.pdl,
        )

    def _normed(self, x: torch.Tensor, eps: float) -> torch.Tensor:
        normed = self.scratch.normed[: x.numel()].view(x.shape)
        rms_norm(x, None, eps, normed, pdl=self.pdl)
        return normed

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


def through_triton(scratch: LinearScratch, pdl: bool = False) -> Medium:
    """kernels.triton.gemm as kernels.probe measures it."""
    device = scratch.normed.device

    def run(
        product: Product,
        x: torch.Tensor,
        weight: Weight,
        out: torch.Tensor,
        eps: float,
        config: GemmConfig,
    ) -> None:
        linear = DeviceLinear(weight, choices=Choices(), scratch=scratch, pdl=pdl)
        given = eps if product.norm else None
        linear.medium(x, out, given, product.activation, product.accumulate, config)

    def kind(product: Product, config: GemmConfig) -> Kind:
        norm = product.norm and config.norm_inside
        return config, norm, product.activation == "swiglu", pdl

    def ready(product: Product, config: GemmConfig) -> None:
        prepare(kind(product, config), device)

    def all_ready(wanted: Sequence[tuple[Product, GemmConfig]]) -> None:
        prepare_all([kind(product, config) for product, config in wanted], device)

    return Medium(run, ready, all_ready)
