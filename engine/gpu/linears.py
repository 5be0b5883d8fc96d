"""A network's projections, each with the fastest product for every number of rows."""

from dataclasses import dataclass, field

import torch

from engine.backend import Feature
from engine.gpu.weights import MATRICES, Held, LayerWeights, NetworkWeights
from kernels.device_linear import DeviceLinear, LinearScratch, through_cublas
from kernels.fused_linear import FusedLinear
from kernels.linear_families import families
from kernels.probe import Choices, Mode, Projection, choose
from kernels.product import Product
from kernels.quantize import Weight8, kind_of
from kernels.skinny import Activation
from kernels.te_linear import TeLinear, TeMaker, TeScratch, TeWeight


@dataclass(slots=True)
class LayerLinears:
    """One block's projections (see engine.gpu.weights.LayerWeights)."""

    qkv: FusedLinear
    o: FusedLinear
    mlp_in: FusedLinear
    mlp_out: FusedLinear


@dataclass(slots=True)
class Linears:
    """choices: what serves the projections, chosen as `mode` says. te: those of them that are Transformer
    Engine's. te_scratch: what these share."""

    layers: list[LayerLinears]
    head: FusedLinear
    choices: Choices = field(default_factory=Choices)
    mode: Mode = "auto"
    te: list[TeLinear] = field(default_factory=list)
    te_scratch: TeScratch | None = None

    @property
    def features(self) -> list[Feature]:
        """Rows for the start-up table."""
        return [(what, self.mode, used, why) for what, used, why in self.choices.explain()]


def build_linears(
    weights: NetworkWeights, mode: Mode, max_tokens: int, pdl: bool, maker: TeMaker | None = None
) -> Linears:
    """Measures, or looks up, what serves each projection; every mode but "auto" leaves no choice.

    pdl: kernels may start before the one in front of them has ended. maker: of those weights that are
    Transformer Engine's, which serves them at any number of rows. Raises ValueError for what the kernels
    that `mode` names cannot serve.
    """
    first = weights.layers[0]
    device, dtype = weights.embedding.device, weights.embedding.dtype
    wide = first.mlp_in.size(0) if weights.activation == "swiglu" else 0
    held = [*weights.matrices, weights.head]
    full = max((m.numel() for m in held if isinstance(m, Weight8)), default=0)
    scratch = LinearScratch.allocate(max_tokens, weights.width, wide, dtype, device, full)
    choices = Choices()
    projections = _projections(weights)
    if device.type == "cuda" and projections:
        choices = choose(
            projections,
            through_cublas(scratch, pdl),
            families(scratch, pdl),
            mode=mode,
            pdl=pdl,
        )

    te: list[TeLinear] = []
    te_scratch = None
    if maker is not None:
        te_scratch = TeScratch(maker.precision.rows, scratch.normed)

    def linear(weight: Held, bias: torch.Tensor | None = None) -> FusedLinear:
        if not isinstance(weight, TeWeight):
            return DeviceLinear(weight, bias, choices=choices, scratch=scratch, pdl=pdl)
        assert maker is not None and te_scratch is not None
        te.append(TeLinear(weight, bias, maker=maker, scratch=te_scratch, pdl=pdl))
        return te[-1]

    layers = [
        LayerLinears(
            linear(layer.qkv),  # its bias is added with the rotation
            linear(layer.o, layer.o_bias),
            linear(layer.mlp_in, layer.mlp_in_bias),
            linear(layer.mlp_out, layer.mlp_out_bias),
        )
        for layer in weights.layers
    ]
    return Linears(layers, linear(weights.head), choices, mode, te, te_scratch)


def _projections(weights: NetworkWeights) -> list[Projection]:
    """What is to be measured: every projection of ours without a bias that stands behind the product."""
    layers, act = weights.layers, weights.activation
    # Name in the table; with norm; activation; added to what is there; the bias behind it.
    kinds: dict[str, tuple[str, bool, Activation, bool, str | None]] = {
        "qkv": ("qkv", True, "none", False, None),
        "o": ("o", False, "none", True, "o_bias"),
        "mlp_in": ("mlp in", True, act, False, "mlp_in_bias"),
        "mlp_out": ("mlp out", False, "none", True, "mlp_out_bias"),
    }
    found = [(kinds[name], [getattr(layer, name) for layer in layers]) for name in MATRICES]
    found.append((("head", False, "none", False, None), [weights.head]))
    projections: list[Projection] = []
    for (name, norm, activation, add, bias), matrices in found:
        first = matrices[0]
        if isinstance(first, TeWeight) or (bias is not None and _biased(layers, bias)):
            continue
        n, k = first.shape
        product = Product(n, k, norm, activation, add, kind_of(first))
        projections.append(Projection(name, product, matrices))
    return projections


def _biased(layers: list[LayerWeights], name: str) -> bool:
    return any(getattr(layer, name) is not None for layer in layers)
