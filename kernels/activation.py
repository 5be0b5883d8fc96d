"""Elementwise functions whose value for one element must not depend on its neighbours.

torch's CPU loops compute full vectors with one implementation of exp and tanh and the remainder of a tensor
with another, so the last bit of an element depends on where it lies. In float64 the two differ far below
float32's resolution, and rounding makes them equal.
"""

import torch

from kernels.autograd import ReluSquared, applied, fuses


def sigmoid(x: torch.Tensor) -> torch.Tensor:
    """1 / (1 + exp(-x)) in x's dtype."""
    if x.device.type == "cpu" and not x.requires_grad:
        return torch.sigmoid(x.double()).to(x.dtype)
    return torch.sigmoid(x)


def softcap(logits: torch.Tensor, cap: float) -> torch.Tensor:
    """cap * tanh(logits / cap), float32 whatever the input."""
    if logits.device.type == "cpu" and not logits.requires_grad:
        return (logits.double().div_(cap).tanh_().mul_(cap)).float()
    return cap * torch.tanh(logits.float() / cap)


def relu_squared(x: torch.Tensor) -> torch.Tensor:
    """max(x, 0)^2 in x's dtype."""
    if fuses(x):
        return applied(ReluSquared, x)
    return torch.relu(x).square()


def silu(x: torch.Tensor) -> torch.Tensor:
    """x * sigmoid(x) in x's dtype."""
    if x.device.type == "cpu" and not x.requires_grad:
        wide = x.double()
        return wide.mul(wide.sigmoid()).to(x.dtype)
    return torch.nn.functional.silu(x)


def swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up."""
    return silu(gate).mul_(up) if not gate.requires_grad else silu(gate) * up
