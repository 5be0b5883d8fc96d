"""The paged KV cache as a decode step by a function of the user's own sees it (kernels.stubs)."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class PagedCache:
    """B rows of the cache, each with a new token whose place is reserved.

    k_pages, v_pages: [layers, blocks, block_size, kv_heads, head_dim]. block_table: [B, blocks of the longest
    row] int64, padded with block 0, which is nobody's. seq_lens: [B] int64, positions of each row, the new
    one included. previous_ids: [B, 1], the token before each new one. windows: per layer, keys visible to the
    left of the query's own (None: all).
    """

    k_pages: torch.Tensor
    v_pages: torch.Tensor
    block_table: torch.Tensor
    seq_lens: torch.Tensor
    previous_ids: torch.Tensor
    windows: tuple[int | None, ...]

    def insert(self, layer: int, k: torch.Tensor, v: torch.Tensor) -> None:
        """Stores the new tokens' keys and values, each [B, kv_heads, head_dim]. Values that are not finite
        are stored as zero: the next owner of the block must not meet them.
        """
        place = self.seq_lens - 1
        size = self.k_pages.size(2)
        block = self.block_table.gather(1, (place // size)[:, None])[:, 0]
        self.k_pages[layer, block, place % size] = k
        self.v_pages[layer, block, place % size] = v.nan_to_num(0.0, 0.0, 0.0)

    def read(self, layer: int, row: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of one row's positions, each [positions, kv_heads, head_dim]."""
        length, size = int(self.seq_lens[row]), self.k_pages.size(2)
        blocks = self.block_table[row, : -(-length // size)]
        keys, values = (pages[layer, blocks].flatten(0, 1)[:length] for pages in (self.k_pages, self.v_pages))
        return keys, values
