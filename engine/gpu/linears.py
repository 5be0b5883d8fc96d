"""A network's projections, each with the fastest product for every number of rows."""

from dataclasses import dataclass, field

import torch

from engine.backend import Feature
from engine.gpu.weights import LayerWeights, NetworkWeights
from kernels.device_linear import DeviceLinear, LinearScratch, through_cublas, through_triton
from kernels.probe import Choices, Mode, Product, Projection, choose
from kernels.quantize import Weight, Weight8, kind_of
from kernels.skinny import Activation


@dataclass(slots=True)
class LayerLinears:
    """One block's projections (see engine.gpu.weights.LayerWeights)."""

    qkv: DeviceLinear
    o: DeviceLinear
    mlp_in: DeviceLinear
    mlp_out: DeviceLinear


@dataclass(slots=True)
class Linears:
    layers: list[LayerLinears]
    head: DeviceLinear
    features: list[Feature] = field(default_factory=list)


def build_linears(weights: NetworkWeights, mode: Mode, max_tokens: int, pdl: bool) -> Linears:
    """Measures, or looks up, what serves each projection; every mode but "auto" leaves no choice.

    pdl: kernels may start before the one in front of them has ended. Raises ValueError for what "skinny"
    or "triton" cannot serve.
    """
    first = weights.layers[0]
    device, dtype = weights.embedding.device, weights.embedding.dtype
    wide = first.mlp_in.size(0) if weights.activation == "swiglu" else 0
    matrices = [m for layer in weights.layers for m in (layer.qkv, layer.o, layer.mlp_in, layer.mlp_out)]
    full = max((m.numel() for m in [*matrices, weights.head] if isinstance(m, Weight8)), default=0)
    scratch = LinearScratch.allocate(max_tokens, weights.width, wide, dtype, device, full)
    choices = Choices()
    if device.type == "cuda":
        choices = choose(
            _projections(weights),
            through_cublas(scratch, pdl),
            medium=through_triton(scratch, pdl),
            mode=mode,
            pdl=pdl,
        )

    def linear(weight: Weight, bias: torch.Tensor | None = None) -> DeviceLinear:
        return DeviceLinear(weight, bias, choices=choices, scratch=scratch, pdl=pdl)

    layers = [
        LayerLinears(
            linear(layer.qkv),  # its bias is added with the rotation
            linear(layer.o, layer.o_bias),
            linear(layer.mlp_in, layer.mlp_in_bias),
            linear(layer.mlp_out, layer.mlp_out_bias),
        )
        for layer in weights.layers
    ]
    features: list[Feature] = [(what, mode, used, why) for what, used, why in choices.explain()]
    return Linears(layers, linear(weights.head), features)


def _projections(weights: NetworkWeights) -> list[Projection]:
    """What is to be measured: every projection without a bias that stands behind the product."""
    layers, act = weights.layers, weights.activation

    def one(name: str, found: list[Weight], norm: bool, activation: Activation, add: bool) -> Projection:
        n, k = found[0].shape
        return Projection(name, Product(n, k, norm, activation, add, kind_of(found[0])), found)

    def of(name: str) -> list[Weight]:
        return [getattr(layer, name) for layer in layers]

    projections = [one("qkv", of("qkv"), True, "none", False)]
    if not _biased(layers, "o_bias"):
        projections.append(one("o", of("o"), False, "none", True))
    if not _biased(layers, "mlp_in_bias"):
        projections.append(one("mlp in", of("mlp_in"), True, act, False))
    if not _biased(layers, "mlp_out_bias"):
        projections.append(one("mlp out", of("mlp_out"), False, "none", True))
    return [*projections, one("head", [weights.head], False, "none", False)]


def _biased(layers: list[LayerWeights], name: str) -> bool:
    return any(getattr(layer, name) is not None for layer in layers)
