"""What a decoder asks of a projection on a device, whoever computes it."""

from typing import Protocol

import torch

from kernels.skinny import Activation


class FusedLinear(Protocol):
    """y = x W^T + b, with what a decoder puts around it (kernels.device_linear, kernels.te_linear).

    In all methods x is [rows, inputs], and out has unit stride inside a row. A call only queues work, the
    same for the same number of rows, so that it can be captured in a graph once it has run outside of one.
    """

    def linear(self, x: torch.Tensor, out: torch.Tensor) -> None:
        """out = x W^T + b."""
        ...

    def norm_linear(self, x: torch.Tensor, out: torch.Tensor, eps: float) -> None:
        """out = norm(x) W^T + b, the norm an RMS norm without weight."""
        ...

    def norm_linear_activation(
        self, x: torch.Tensor, out: torch.Tensor, eps: float, activation: Activation
    ) -> None:
        """out = activation(norm(x) W^T + b). swiglu: W interleaved in groups of 8, out half as wide."""
        ...

    def linear_residual(self, x: torch.Tensor, residual: torch.Tensor) -> None:
        """residual += x W^T + b, in place."""
        ...
