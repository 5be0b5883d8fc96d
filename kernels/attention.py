"""Paged attention, reference version: plain torch, any device, one span of queries at a time.

Layout of the cache, per layer: keys and values are each [blocks, block_size, kv_heads, head_dim]. A block table
lists a sequence's blocks in order, so position p lives in block table[p // block_size] at offset p % block_size.
Block 0 is never part of a sequence: tables are padded with it.

A query's result does not depend on how many queries share the call, on the block size, nor on what else is in the
batch. That takes three habits, each for one way in which matrix libraries change their order of additions:
queries are padded to at least `MIN_QUERIES` rows, keys to a multiple of `KEY_TILE` (their weights are exact zeros),
and the product with the values is accumulated over tiles of `VALUE_TILE` keys.
"""

from dataclasses import dataclass

import torch

MIN_QUERIES = 8
QUERY_TILE = 128  # bounds the score matrix to heads x QUERY_TILE x keys
KEY_TILE = 64
VALUE_TILE = 256


@dataclass(slots=True)
class KVCache:
    """Keys and values of all layers: each [layers, blocks, block_size, kv_heads * head_dim]."""

    keys: torch.Tensor
    values: torch.Tensor
    block_size: int

    @classmethod
    def allocate(
        cls,
        layers: int,
        num_blocks: int,
        block_size: int,
        kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> "KVCache":
        shape = (layers, num_blocks, block_size, kv_heads * head_dim)
        return cls(
            torch.zeros(shape, dtype=dtype, device=device),
            torch.zeros(shape, dtype=dtype, device=device),
            block_size,
        )

    def write(self, layer: int, slots: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Stores one key and value per token. slots: [tokens], block * block_size + offset."""
        width = self.keys.size(-1)
        self.keys[layer].view(-1, width).index_copy_(0, slots, keys.reshape(-1, width))
        self.values[layer].view(-1, width).index_copy_(0, slots, values.reshape(-1, width))


@dataclass(slots=True)
class Span:
    """Consecutive queries of one sequence: rows [start, start + length) of the step's token axis.

    context: positions of the sequence that exist after this step's write; the last query sits at context - 1.
    table: the sequence's block ids on the device, padded with block 0 to cover a multiple of KEY_TILE positions.
    """

    start: int
    length: int
    context: int
    table: torch.Tensor

    @property
    def padded_context(self) -> int:
        return padded_context(self.context)


def padded_context(context: int) -> int:
    """Positions that a span's table must cover."""
    return -(-context // KEY_TILE) * KEY_TILE


def table_blocks(context: int, block_size: int) -> int:
    """Entries that a span's table must have."""
    return -(-padded_context(context) // block_size)


def paged_attention(
    query: torch.Tensor, cache: KVCache, layer: int, spans: list[Span], window: int | None
) -> torch.Tensor:
    """Causal attention of each span's queries over its sequence's cached keys and values.

    query: [tokens, heads, head_dim], scaled by nothing yet; the keys of these tokens are already in the cache.
    window: keys visible to the left of the query's own position (None: all). Returns [tokens, heads, head_dim].
    """
    out = torch.empty_like(query)
    for span in spans:
        keys = _gather(cache.keys[layer], span)
        values = _gather(cache.values[layer], span)
        if span.padded_context > span.context:
            # What an unused position holds is another request's past; not even its NaNs may leak (0 * NaN is NaN).
            values[span.context :] = 0
        head_dim = query.size(-1)
        keys = keys.view(span.padded_context, -1, head_dim)
        values = values.view(span.padded_context, -1, head_dim)
        for first in range(0, span.length, QUERY_TILE):
            count = min(QUERY_TILE, span.length - first)
            rows = slice(span.start + first, span.start + first + count)
            position = span.context - span.length + first
            out[rows] = _attend(query[rows], keys, values, position, span.context, window)
    return out


def _gather(pool: torch.Tensor, span: Span) -> torch.Tensor:
    """[padded context, kv_heads * head_dim] of one sequence, copied out of its blocks."""
    blocks = pool.view(pool.size(0), -1).index_select(0, span.table)
    return blocks.view(-1, pool.size(-1))[: span.padded_context]


def _attend(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    position: int,
    context: int,
    window: int | None,
) -> torch.Tensor:
    """query [count, heads, d] at positions position.. over keys, values [length, kv_heads, d]."""
    count, heads, head_dim = query.shape
    length, kv_heads, _ = keys.shape
    group = heads // kv_heads
    # Query heads that share a kv head become rows of one product: [kv_heads, group * count, d].
    rows = query.view(count, kv_heads, group, head_dim).permute(1, 2, 0, 3).reshape(kv_heads, -1, head_dim)
    if rows.size(1) < MIN_QUERIES:
        rows = torch.cat((rows, rows.new_zeros(kv_heads, MIN_QUERIES - rows.size(1), head_dim)), dim=1)
    scores = torch.bmm(rows * head_dim**-0.5, keys.permute(1, 2, 0)).float()  # [kv_heads, rows, length]
    if count == 1:
        scores[:, :, context:] = float("-inf")
        if window is not None and position > window:
            scores[:, :, : position - window] = float("-inf")
    else:
        hidden = _hidden(position, count, length, window, query.device)
        scores[:, : group * count].view(kv_heads, group, count, length).masked_fill_(hidden, float("-inf"))
    weights = torch.softmax(scores, dim=-1).to(values.dtype)
    values = values.transpose(0, 1)  # [kv_heads, length, d]
    result = torch.bmm(weights[:, :, :VALUE_TILE], values[:, :VALUE_TILE])
    for first in range(VALUE_TILE, length, VALUE_TILE):
        tile = slice(first, first + VALUE_TILE)
        result = result + torch.bmm(weights[:, :, tile], values[:, tile])
    result = result[:, : group * count].view(kv_heads, group, count, head_dim)
    return result.permute(2, 0, 1, 3).reshape(count, heads, head_dim)


def _hidden(
    position: int, count: int, length: int, window: int | None, device: torch.device
) -> torch.Tensor:
    """[count, length] bool: keys that a query may not see, because they are later or left of its window."""
    queries = torch.arange(position, position + count, device=device).unsqueeze(1)
    keys = torch.arange(length, device=device).unsqueeze(0)
    hidden = keys > queries
    return hidden if window is None else hidden | (keys < queries - window)
