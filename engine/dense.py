"""Causal attention over whole rows, without a cache: the `attend` of training and of `GPT.forward`.

Padding is not masked but taken out: the network works on a flat token axis, so the padded positions of a
batch need not be computed at all. Only attention looks at rows, and there each row's tokens are moved to its
front, where causality alone hides what follows them.
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from engine.config import GPTConfig


def _sdp(flash: bool) -> AbstractContextManager[object]:
    """Leaves torch its choice of kernels, or admits its plain one only."""
    return nullcontext() if flash else sdpa_kernel(SDPBackend.MATH)


class DenseAttention:
    """Rows of equal length, one behind the other on the token axis."""

    def __init__(self, config: GPTConfig, batch: int, time: int) -> None:
        self.config = config
        self.batch = batch
        self.time = time

    def __call__(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        split = (self.batch, self.time, -1, self.config.head_dim)
        q, k, v = (t.view(split).transpose(1, 2) for t in (q, k, v))
        window = self.config.window(layer)
        grouped = q.size(1) != k.size(1)
        with _sdp(self.config.use_flash_sdp):
            if window is None or window >= self.time:
                out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
            else:
                row = torch.arange(self.time, device=q.device)
                distance = row.unsqueeze(1) - row.unsqueeze(0)
                mask = (distance >= 0) & (distance <= window)
                out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=grouped)
        return out.transpose(1, 2).reshape(self.batch * self.time, -1, self.config.head_dim)


@dataclass(frozen=True, slots=True)
class KeptTokens:
    """The tokens of a padded batch that a mask keeps, row after row.

    keep: [batch, time] bool. positions: [kept] int64, each token's place among the kept ones of its row.
    slots: [kept] int64, the same on an axis of batch * longest. longest: kept tokens of the longest row.
    """

    keep: torch.Tensor
    positions: torch.Tensor
    slots: torch.Tensor
    longest: int

    @classmethod
    def of(cls, mask: torch.Tensor, batch: int, time: int) -> "KeptTokens":
        """mask: [batch, time] bool or whole numbers, True or 1 for a token. Padding may be on either side.

        Raises ValueError for another shape or type, and where nothing is kept.
        """
        if mask.shape != (batch, time):
            raise ValueError(f"attention_mask is {tuple(mask.shape)}, the ids are {(batch, time)}")
        if mask.is_floating_point() or mask.is_complex():
            raise ValueError(f"attention_mask holds {mask.dtype}; it must be bool, True for a token")
        keep = mask.bool()
        counts = keep.sum(dim=1)
        longest = int(counts.max()) if batch else 0
        if longest == 0:
            raise ValueError("attention_mask keeps no token")
        positions = (keep.cumsum(dim=1) - 1)[keep]
        row = torch.arange(batch, device=mask.device).repeat_interleave(counts)
        return cls(keep, positions, row * longest + positions, longest)

    def previous(self, ids: torch.Tensor) -> torch.Tensor:
        """The id before each token in its row, 0 before the first. ids: [kept] -> [kept]."""
        return torch.where(self.positions > 0, F.pad(ids[:-1], (1, 0)), 0)

    def spread(self, values: torch.Tensor) -> torch.Tensor:
        """Values of the kept tokens at their places in the batch, zero at the padding. [kept, n] -> [batch,
        time, n].
        """
        out = values.new_zeros(*self.keep.shape, values.size(-1))
        out[self.keep] = values
        return out


class PaddedAttention:
    """Attention within the rows of a padded batch; q, k and v hold its kept tokens only."""

    def __init__(self, config: GPTConfig, kept: KeptTokens) -> None:
        self.kept = kept
        self._rows = DenseAttention(config, kept.keep.size(0), kept.longest)

    def __call__(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        slots = self.kept.slots
        return self._rows(layer, *(self._at_front(t) for t in (q, k, v)))[slots]

    def _at_front(self, values: torch.Tensor) -> torch.Tensor:
        """Each row's tokens at the front of its `longest` places.

        [kept, heads, d] -> [batch * longest, heads, d].
        """
        places = values.new_zeros(self.kept.keep.size(0) * self.kept.longest, *values.shape[1:])
        return places.index_copy(0, self.kept.slots, values)
