"""RMS normalisation without a learned scale, the only norm that nanochat has."""

import torch
import torch.nn.functional as F


def rms_norm(x: torch.Tensor, eps: float) -> torch.Tensor:
    """x / sqrt(mean(x^2) + eps) over the last dimension, computed in float32, returned in x's dtype."""
    if x.dtype == torch.float32 and x.device.type == "cpu" and not x.requires_grad:
        # The same in fewer passes than torch's composite.
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        return x * norm.square_().mul_(1 / x.size(-1)).add_(eps).rsqrt_()
    return F.rms_norm(x, (x.size(-1),), eps=eps)
