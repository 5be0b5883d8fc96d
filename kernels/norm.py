"""RMS normalisation without a learned scale, the only norm that nanochat has."""

import torch
import torch.nn.functional as F


def rms_norm(x: torch.Tensor, eps: float) -> torch.Tensor:
    """x / sqrt(mean(x^2) + eps) over the last dimension, computed in float32, returned in x's dtype."""
    return F.rms_norm(x, (x.size(-1),), eps=eps)
