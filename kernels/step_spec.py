"""What the kernels that run a whole decode step are told of a network."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch

from kernels.quantize import Weight, WeightKind

# How a pure decode step runs: a launch for each operation, a few for each layer, or one for all layers.
StepPath = Literal["graph", "chained", "persistent"]


@dataclass(frozen=True, slots=True)
class StepSpec:
    """A network of equal layers: norm, qkv, rotation, attention, o, norm, mlp in, activation, mlp out.

    width: of the residual stream. inner: channels inside the MLP; padded_inner: inputs of its second
    projection, those beyond `inner` being zero. head_rows: rows of the output projection. eps: of every norm.
    order, qk_scale: what queries and keys go through (kernels.triton.rope.RotarySpec). kind: of every
    projection. block_size: positions of a block of keys and values. biased: q, k and v have a bias. fp8_kv:
    keys and values are kept in eight bits (kernels.kv8).
    """

    width: int
    inner: int
    padded_inner: int
    heads: int
    kv_heads: int
    head_dim: int
    head_rows: int
    layers: int
    eps: float
    activation: Literal["relu2", "swiglu"]
    order: Literal["rope", "rope_norm", "norm_rope"]
    qk_scale: float
    kind: WeightKind
    block_size: int
    biased: bool = False
    fp8_kv: bool = False


class StepLayer(NamedTuple):
    """One layer's weights, matrices [outputs, inputs]. qkv_bias: [outputs of qkv] where `biased`. q_norm,
    k_norm: [head_dim], of the order "norm_rope".
    """

    qkv: Weight
    o: Weight
    mlp_in: Weight
    mlp_out: Weight
    qkv_bias: torch.Tensor | None = None
    q_norm: torch.Tensor | None = None
    k_norm: torch.Tensor | None = None
