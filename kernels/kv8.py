"""Keys and values of eight bits: how they are made, and what they stand for.

What one token has in one head, `head_dim` numbers after rotation and norms, is kept as short floats (e4m3) q
with one bfloat16 scale s, so that the numbers are about s * q and the largest |q| is the format's largest.
A scale for each token, not for a page: what is kept of a token then depends on that token alone, not on the
chunk that brought it, on its neighbours in the page, or on when the page was filled. Kernels multiply scores
by the keys' scales and weights by the values', so that nothing but the conversion is done for each number.

kernels.triton.rope_tiles does the same on a device.
"""

from typing import TypeAlias

import torch

# Of a layer's keys and of its values, each [blocks, block_size, kv_heads] bfloat16; both with the same
# strides.
Scales: TypeAlias = tuple[torch.Tensor, torch.Tensor]

FORMAT = torch.float8_e4m3fn
SCALE_FORMAT = torch.bfloat16
LARGEST = 448.0
# A vector of zeros needs some scale. From the largest one on, products with LARGEST are no bfloat16 numbers.
SMALLEST_SCALE, LARGEST_SCALE = 2.0**-126, 2.0**119
FP8_COMPUTE = (8, 9)  # from which on devices convert e4m3


def quantize_kv(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """x: [..., head_dim], of any float type: (q of the same shape, s [...]), to the nearest, ties to even.

    The scale is rounded before it is used, so that it costs no accuracy. A vector that is not finite
    throughout gets a scale that is no number: whoever reads it knows.
    """
    x = x.float()
    finite = torch.isfinite(x)
    largest = torch.where(finite, x, 0.0).abs().amax(dim=-1)
    # A tensor, for a device divides by a plain number by way of its inverse, and rounds twice.
    most = torch.tensor(LARGEST, device=x.device)
    scale = (largest / most).clamp(SMALLEST_SCALE, LARGEST_SCALE).to(SCALE_FORMAT)
    scaled = torch.where(finite, x, 0.0) * (1.0 / scale.float()).unsqueeze(-1)
    scale = torch.where(finite.all(dim=-1), scale, float("nan"))
    return scaled.clamp(-LARGEST, LARGEST).to(FORMAT), scale


def dequantize_kv(values: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """[..., head_dim] float32; exact. scales: [...]."""
    return values.float() * scales.float().unsqueeze(-1)
