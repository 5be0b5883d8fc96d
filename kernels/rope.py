"""Rotary position embedding, and the query-key norm of nanochat that follows it.

A table holds two factors for each position and channel, of a head's own half and of its other half:
rotated = x * own + swap_halves(x) * other. Which way a family turns is in its table.
"""

import torch

from kernels.autograd import RotateAndNorm, applied, fuses
from kernels.norm import rms_norm


def rope_table(
    length: int, head_dim: int, base: float, rounding: torch.dtype, device: torch.device | str = "cpu"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Factors of a head's own half and of its other half, each [length, head_dim] float32.

    The angle of channel i is position * base^(-2i / head_dim), and nanochat rotates by minus that angle: the
    first half is left * cos + right * sin, the second right * cos - left * sin. Hence (cos, cos) and (sin,
    -sin). Values are rounded through `rounding`: checkpoints of nanochat's first generations were trained
    with a table stored in bfloat16, and serve best with the same one.
    """
    exponent = torch.arange(0, head_dim, 2, dtype=torch.float32, device=device) / head_dim
    angle = torch.outer(torch.arange(length, dtype=torch.float32, device=device), 1.0 / base**exponent)
    cos, sin = angle.cos().to(rounding).float(), angle.sin().to(rounding).float()
    return torch.cat((cos, cos), dim=-1), torch.cat((sin, -sin), dim=-1)


def rotation_table(
    length: int, frequencies: torch.Tensor, scale: float = 1.0, device: torch.device | str = "cpu"
) -> tuple[torch.Tensor, torch.Tensor]:
    """The table of Llama and its relatives, each part [length, head_dim] float32.

    frequencies: [head_dim / 2] float32, radians per position of each pair of channels. They turn by plus that
    angle: the first half is left * cos - right * sin, the second right * cos + left * sin. scale multiplies
    the whole table.
    """
    angle = torch.outer(torch.arange(length, dtype=torch.float32, device=device), frequencies.to(device))
    cos, sin = angle.cos().mul_(scale), angle.sin().mul_(scale)
    return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)


def rotate(x: torch.Tensor, own: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Rotates each head. x: [tokens, heads, head_dim]; own, other: [tokens, 1, head_dim], rows of the table.

    Computed in float32; the result has x's dtype.
    """
    left, right = x.float().chunk(2, dim=-1)
    swapped = torch.cat((right, left), dim=-1)
    return torch.addcmul(x * own, swapped, other).to(x.dtype)


def rotate_and_norm(
    x: torch.Tensor, own: torch.Tensor, other: torch.Tensor, eps: float, scale: float
) -> torch.Tensor:
    """Rotation, then RMS norm per head, then a constant factor: what nanochat does to queries and keys."""
    half = x.size(-1) // 2
    if fuses(x) and half & (half - 1) == 0:
        return applied(RotateAndNorm, x, own, other, eps, scale)
    x = rms_norm(rotate(x, own, other), eps)
    return x if scale == 1.0 else x * scale
