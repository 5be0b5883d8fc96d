"""Reference of the persistent decode hook: one step of any model over the paged cache, in plain torch.

On a GPU an engine that is told to use this one uses the resident kernel instead (kernels.decode_step), by its
path "persistent".
"""

from collections.abc import Callable
from typing import Protocol

import torch

from kernels.clustered_attention import clustered_attention
from kernels.pages import PagedCache

Attend = Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


class Steppable(Protocol):
    """What the step asks of a model; see engine.decoder."""

    def hidden(
        self, ids: torch.Tensor, previous_ids: torch.Tensor, positions: torch.Tensor, attend: Attend
    ) -> torch.Tensor: ...

    def logits(self, hidden: torch.Tensor) -> torch.Tensor: ...


def persistent_decode_step(
    model: Steppable,
    ids: torch.Tensor,
    kv_cache: PagedCache,
    *,
    attention_mask: torch.Tensor | None = None,
    token_mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """See kernels.stubs. Returns float32 logits [B, 1, V]."""

    def attend(layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        kv_cache.insert(layer, k, v)
        window, outputs = kv_cache.windows[layer], []
        for row in range(q.size(0)):
            keys, values = kv_cache.read(layer, row)
            if window is not None:
                keys, values = keys[-window - 1 :], values[-window - 1 :]
            query, keys, values = (x.transpose(0, 1)[None] for x in (q[row : row + 1], keys, values))
            grouped = query.size(1) != keys.size(1)
            outputs.append(clustered_attention(query, keys, values, enable_gqa=grouped)[0, :, 0])
        return torch.stack(outputs)

    positions = kv_cache.seq_lens - 1
    hidden = model.hidden(ids[:, 0], kv_cache.previous_ids[:, 0], positions, attend)
    return model.logits(hidden)[:, None]
