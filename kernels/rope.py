"""Rotary position embedding as nanochat has it, and the query-key norm that follows it."""

import torch

from kernels.norm import rms_norm


def rope_table(
    length: int, head_dim: int, base: float, rounding: torch.dtype, device: torch.device | str = "cpu"
) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin, each [length, head_dim / 2] float32, of position * base^(-2i / head_dim).

    Values are rounded through `rounding`: checkpoints of nanochat's first generations were trained with a table
    stored in bfloat16, and serve best with the same one.
    """
    exponent = torch.arange(0, head_dim, 2, dtype=torch.float32, device=device) / head_dim
    angle = torch.outer(torch.arange(length, dtype=torch.float32, device=device), 1.0 / base**exponent)
    return angle.cos().to(rounding).float(), angle.sin().to(rounding).float()


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotates the two halves of each head by minus the angle (nanochat's sign).

    x: [tokens, heads, head_dim]; cos, sin: [tokens, head_dim / 2]. The result has x's dtype.
    """
    left, right = x.float().chunk(2, dim=-1)
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    return torch.cat((left * cos + right * sin, right * cos - left * sin), dim=-1).to(x.dtype)


def rotate_and_norm(
    x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, eps: float, scale: float
) -> torch.Tensor:
    """Rotation, then RMS norm per head, then a constant factor: what nanochat does to queries and keys."""
    x = rms_norm(rotate(x, cos, sin), eps)
    return x if scale == 1.0 else x * scale
