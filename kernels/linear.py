"""Matrix products with weights, in a form whose rows do not depend on each other.

On a CPU, `PackedLinear` holds its weight in oneDNN's blocked layout. That is the fastest product there for
two rows and more, and each row's result is bit-equal whatever the number of rows, which a plain `F.linear`
does not promise (its library picks other kernels, with another order of additions, by row count). A single
row is padded to two, the one case in which oneDNN switches kernels too.
"""

import torch
import torch.nn.functional as F
from torch import nn

from kernels.activation import relu_squared

_pointwise = torch.ops.mkldnn._linear_pointwise


def can_pack(weight: torch.Tensor) -> bool:
    """Whether this weight has a oneDNN layout here."""
    return (
        weight.device.type == "cpu"
        and weight.dtype in (torch.float32, torch.bfloat16)
        and torch._C._has_mkldnn
    )


class PackedLinear:
    """y = x W^T for inference, with a copy of the weight; unpacked on devices without such a layout."""

    def __init__(self, weight: torch.Tensor) -> None:
        """weight: [out_features, in_features]."""
        self.out_features, self.in_features = weight.shape
        self.packed = can_pack(weight)
        weight = weight.detach()
        if self.packed:
            # A row count of None lets oneDNN choose a layout that serves every batch size.
            self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), None)
        else:
            self.weight = weight.contiguous()

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x: [rows, in_features] -> [rows, out_features]."""
        return self._product(x, "none") if self.packed else F.linear(x, self.weight)

    def relu(self, x: torch.Tensor) -> torch.Tensor:
        """max(x W^T, 0)."""
        return self._product(x, "relu") if self.packed else F.relu(F.linear(x, self.weight))

    def add(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """residual + x W^T. residual: [rows, out_features]."""
        if not self.packed:
            return residual + F.linear(x, self.weight)
        if x.size(0) == 1:
            return self.add(x.expand(2, -1).contiguous(), residual.expand(2, -1).contiguous())[:1]
        out: torch.Tensor = _pointwise.binary(x, residual, self.weight, None, "add")
        return out

    def _product(self, x: torch.Tensor, activation: str) -> torch.Tensor:
        if x.size(0) == 1:
            return self._product(x.expand(2, -1).contiguous(), activation)[:1]
        out: torch.Tensor = _pointwise(x, self.weight, None, activation, [], "")
        return out


# A layer of a model for training, or one packed for serving.
Projection = nn.Module | PackedLinear


def project_relu_squared(projection: Projection, x: torch.Tensor) -> torch.Tensor:
    """max(projection(x), 0)^2; where the projection is packed, the maximum is part of its call."""
    if isinstance(projection, PackedLinear):
        return projection.relu(x).square()
    return relu_squared(projection(x))


def project_add(projection: Projection, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
    """residual + projection(x), in one call where the projection is packed."""
    if isinstance(projection, PackedLinear):
        return projection.add(x, residual)
    out: torch.Tensor = residual + projection(x)
    return out
