"""Attention in plain torch, one row after the other: the reference on a device that keeps its tables there.

It reads lengths on the host, so no graph can hold it. For comparison and for finding faults, not for serving.
"""

import torch

from kernels.backends.base import AttentionSpec
from kernels.kv8 import FORMAT, Scales, dequantize_kv


class TorchBackend:
    name = "torch"
    version: str = torch.__version__
    capture_safe = False

    def __init__(self, spec: AttentionSpec) -> None:
        pass

    def plan(
        self, rows: torch.Tensor, positions: torch.Tensor, *, window: int | None, pdl: bool = False
    ) -> None:
        pass

    def decode(
        self,
        q: torch.Tensor,
        k_pages: torch.Tensor,
        v_pages: torch.Tensor,
        block_tables: torch.Tensor,
        rows: torch.Tensor,
        positions: torch.Tensor,
        out: torch.Tensor,
        *,
        scale: float,
        window: int | None,
        scales: Scales | None = None,
        pdl: bool = False,
    ) -> None:
        for entry, (row, position) in enumerate(zip(rows.tolist(), positions.tolist(), strict=True)):
            if row >= 0:
                keys, values = read_row(k_pages, v_pages, scales, block_tables[row], position + 1)
                out[entry] = self.attend(q[entry : entry + 1], keys, values, scale, window)[0]

    def prefill(
        self,
        q: torch.Tensor,
        k_pages: torch.Tensor,
        v_pages: torch.Tensor,
        block_tables: torch.Tensor,
        chunk_rows: torch.Tensor,
        cu_queries: torch.Tensor,
        contexts: torch.Tensor,
        out: torch.Tensor,
        *,
        scale: float,
        window: int | None,
        scales: Scales | None = None,
        pdl: bool = False,
    ) -> None:
        borders = cu_queries.tolist()
        for chunk, (row, context) in enumerate(zip(chunk_rows.tolist(), contexts.tolist(), strict=True)):
            first, last = borders[chunk], borders[chunk + 1]
            if row >= 0 and first < last:
                keys, values = read_row(k_pages, v_pages, scales, block_tables[row], context)
                out[first:last] = self.attend(q[first:last], keys, values, scale, window)

    def attend(
        self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scale: float, window: int | None
    ) -> torch.Tensor:
        """query: [count, heads, head_dim], at the last positions of keys and values [context, kv_heads,
        head_dim]; [count, heads * head_dim], computed in float32.
        """
        count, heads, _ = query.shape
        context, group = keys.size(0), heads // keys.size(1)
        keys, values = (x.float().repeat_interleave(group, dim=1) for x in (keys, values))
        scores = torch.einsum("qhd,khd->hqk", query.float(), keys) * scale
        at = torch.arange(context - count, context, device=query.device).unsqueeze(1)
        key = torch.arange(context, device=query.device).unsqueeze(0)
        hidden = key > at if window is None else (key > at) | (key < at - window)
        # Values of keys that nobody sees may belong to others by now.
        values = values.masked_fill(hidden.all(dim=0)[:, None, None], 0.0)
        weights = torch.softmax(scores.masked_fill(hidden, float("-inf")), dim=-1)
        return torch.einsum("hqk,khd->qhd", weights, values).flatten(1).to(query.dtype)


def read_row(
    k_pages: torch.Tensor,
    v_pages: torch.Tensor,
    scales: Scales | None,
    table: torch.Tensor,
    context: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values [context, kv_heads, head_dim] of one row; float32 where they are kept in eight bits."""
    blocks = table[: -(-context // k_pages.size(1))].long()
    if scales is not None:
        kept = zip((k_pages, v_pages), scales, strict=True)
        keys, values = (
            dequantize_kv(pages.view(torch.int8)[blocks].view(FORMAT), own[blocks]).flatten(0, 1)[:context]
            for pages, own in kept
        )
        return keys, values
    keys, values = (pages[blocks].flatten(0, 1)[:context] for pages in (k_pages, v_pages))
    return keys, values
