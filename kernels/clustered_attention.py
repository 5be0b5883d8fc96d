"""Reference of the clustered attention hook: exact causal attention, of few queries behind many keys too."""

import torch
from torch.nn import functional as F


def clustered_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    attn_mask: torch.Tensor | None = None,
    causal: bool = True,
    num_sm_clusters: int | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """See kernels.stubs for the arguments. Ignores the hint: torch's kernels have no clusters.

    torch's own `is_causal` aligns the mask with the first key; a decode step's single query would then see
    that key alone.
    """
    queries, keys = q.size(-2), k.size(-2)
    mask = attn_mask
    if causal and queries > 1:
        at = torch.arange(keys - queries, keys, device=q.device)[:, None]
        seen = torch.arange(keys, device=q.device)[None, :] <= at
        mask = seen if mask is None else mask & seen
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=enable_gqa)
