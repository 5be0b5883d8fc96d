"""Attention by torch's scaled_dot_product_attention, one row after the other over its gathered keys.

The seed's flag `use_flash_sdp` chooses between torch's flash kernels and its plain one. It reads lengths on
the host, so no graph can hold it. For comparison, not for serving.
"""

import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.bias import CausalBias, causal_lower_right

from kernels.backends.base import AttentionSpec
from kernels.backends.reference import TorchBackend

FLASH = [SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]


class SdpaBackend(TorchBackend):
    name = "sdpa"

    def __init__(self, spec: AttentionSpec, flash: bool = True) -> None:
        """flash: torch's fast kernels where they can; its plain one serves the rest, or everything."""
        super().__init__(spec)
        self.kernels = [*(FLASH if flash else []), SDPBackend.MATH]

    def attend(
        self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scale: float, window: int | None
    ) -> torch.Tensor:
        """As the reference's, in the tensors' own precision."""
        count, context = query.size(0), keys.size(0)
        if window is not None:  # what none of the queries sees may belong to others by now
            first = max(0, context - count - window)
            keys, values, context = keys[first:], values[first:], context - first
        mask: torch.Tensor | None = None
        if window is not None and context - 1 > window:
            at = torch.arange(context - count, context, device=query.device)[:, None]
            key = torch.arange(context, device=query.device)[None, :]
            mask = (key <= at) & (key >= at - window)
        elif count > 1:
            mask = causal_lower_right(count, context)
        q, k, v = (x.to(query.dtype).transpose(0, 1)[None] for x in (query, keys, values))
        grouped = q.size(1) != k.size(1)
        if grouped and isinstance(mask, CausalBias):  # which torch's flash kernels take with equal heads only
            k, v = (x.repeat_interleave(q.size(1) // k.size(1), dim=1) for x in (k, v))
            grouped = False
        with sdpa_kernel(self.kernels):
            result = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, enable_gqa=grouped)
        return result[0].transpose(0, 1).flatten(1)
