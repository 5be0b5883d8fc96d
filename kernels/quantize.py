"""Weights of eight bits with a scale for each output: how they are made, and what they stand for.

A row w of a projection is kept as whole numbers (int8) or short floats (fp8, e4m3) q with one float32 scale
s, so that w is about s * q and the largest |q| of the row is the format's largest number. Activations stay as
they are: only what is read from memory for a product is halved. Reference: `dequantize`;
kernels.triton.dequantize does the same on a device, kernels/cuda/skinny.cu inside its product.
kernels.cpu takes the same numbers, and rounds activations, too.
"""

from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch

Kind8 = Literal["int8", "fp8"]
WeightKind = Literal["bf16", "int8", "fp8"]

# The largest number of each format. int8 leaves -128 out, so that it is symmetric.
LARGEST: dict[Kind8, float] = {"int8": 127.0, "fp8": 448.0}
FORMATS: dict[Kind8, torch.dtype] = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}
# A row of zeros needs some scale, and smaller ones would not be normal numbers.
SMALLEST_SCALE = torch.finfo(torch.float32).tiny
AT_ONCE = 1 << 24  # numbers that are in float32 at one time


@dataclass(frozen=True, slots=True, eq=False)
class Weight8:
    """A projection [outputs, inputs] of eight bits.

    values: [outputs, inputs] int8 or float8_e4m3fn, contiguous, in the order that `in_pairs` makes. scales:
    [outputs] float32. dtype: of the weight that it was made of, and of the products' inputs and outputs.
    """

    values: torch.Tensor
    scales: torch.Tensor
    dtype: torch.dtype

    @property
    def kind(self) -> Kind8:
        return "int8" if self.values.dtype == torch.int8 else "fp8"

    @property
    def shape(self) -> torch.Size:
        return self.values.shape

    @property
    def device(self) -> torch.device:
        return self.values.device

    def size(self, dimension: int) -> int:
        return self.values.size(dimension)

    def numel(self) -> int:
        return self.values.numel()


Weight: TypeAlias = torch.Tensor | Weight8


def in_pairs(values: torch.Tensor) -> torch.Tensor:
    """[outputs, inputs] of eight bits with the channels of each four in the order 0, 2, 1, 3, or those back
    in theirs; as they are where inputs is no multiple of 4.

    Two channels that a product takes as a pair are then 16 bits apart, where masks alone make bf16 of both.
    """
    outputs, inputs = values.shape
    if inputs % 4:
        return values
    fours = values.view(torch.int8).view(outputs, inputs // 4, 2, 2)
    return fours.transpose(2, 3).reshape(outputs, inputs).view(values.dtype)


def kind_of(weight: Weight) -> WeightKind:
    """What a product must know of it; "bf16" stands for every weight that is in the model's own dtype."""
    return weight.kind if isinstance(weight, Weight8) else "bf16"


def stored_bytes(weight: Weight) -> int:
    """What a weight takes in memory, and what a product must read of it."""
    if isinstance(weight, Weight8):
        return weight.values.numel() + weight.scales.numel() * weight.scales.element_size()
    return weight.numel() * weight.element_size()


def quantize(weight: torch.Tensor, kind: Kind8, name: str = "a weight") -> Weight8:
    """weight: [outputs, inputs], floating point. Rounds to the nearest, ties to even; zeros stay zeros. name:
    for the error.

    Raises ValueError where a number is not finite: one such number would spoil the whole row's scale.
    """
    outputs, inputs = weight.shape
    values = torch.empty(outputs, inputs, dtype=FORMATS[kind], device=weight.device)
    scales = torch.empty(outputs, dtype=torch.float32, device=weight.device)
    rows = max(1, AT_ONCE // max(1, inputs))
    for first in range(0, outputs, rows):
        part = weight[first : first + rows].float()
        largest = part.abs().amax(dim=1)
        if not bool(torch.isfinite(largest).all()):
            raise ValueError(f"{name}: numbers are not finite, so that there is no {kind} of it")
        # A tensor, for a device divides by a plain number by way of its inverse, and rounds twice.
        most = torch.tensor(LARGEST[kind], device=weight.device)
        scale = (largest / most).clamp(SMALLEST_SCALE, _largest_scale(kind))
        scaled = (part / scale.unsqueeze(1)).clamp(-LARGEST[kind], LARGEST[kind])
        values[first : first + rows] = in_pairs(
            (scaled.round() if kind == "int8" else scaled).to(values.dtype)
        )
        scales[first : first + rows] = scale
    return Weight8(values, scales, weight.dtype)


def _largest_scale(kind: Kind8) -> float:
    """The one whose product with the format's largest number is still finite, whatever rounding does."""
    return torch.finfo(torch.float32).max / LARGEST[kind] * (1 - 2.0**-23)


def dequantize(weight: Weight8) -> torch.Tensor:
    """What it stands for, [outputs, inputs] in its dtype: value times scale in float32, rounded once."""
    return (in_pairs(weight.values).float() * weight.scales.unsqueeze(1)).to(weight.dtype)


def rounded(weight: torch.Tensor, kind: Kind8, name: str = "a weight") -> torch.Tensor:
    """A weight [outputs, inputs] as it is after having been kept in eight bits; see `quantize`."""
    return dequantize(quantize(weight, kind, name))
