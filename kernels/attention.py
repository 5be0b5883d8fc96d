"""Paged attention, reference version: plain torch, any device, one span of queries at a time.

Layout of the cache, per layer: keys and values are each [blocks, block_size, kv_heads, head_dim]. A block
table lists a sequence's blocks in order, so position p lives in block table[p // block_size] at offset p %
block_size. Block 0 is never part of a sequence: tables are padded with it.

A query's result does not depend on how many queries share the call, on the block size, on where the blocks
lie, nor on what else is in the batch. That takes three habits, each for one way in which matrix libraries
change their order of additions: queries are padded to at least `MIN_QUERIES` rows, the product with the
values is accumulated over tiles of `VALUE_TILE` keys, and keys are padded so that the last of these has one
of a few lengths, `VALUE_ENDS` (their weights are exact zeros).

Padded positions hold whatever was written there before. The cache admits finite numbers only, so that a
weight of zero silences them.
"""

from dataclasses import dataclass, field

import torch

MIN_QUERIES = 8  # half of it is enough for heads of up to 64 channels
QUERY_TILE = 128  # bounds the score matrix to heads x QUERY_TILE x keys
VALUE_TILE = 256
VALUE_ENDS = (0, 64, 128, VALUE_TILE)  # 192 keys are summed in another order on some processors


@dataclass(slots=True)
class KVCache:
    """Keys and values of all layers: each [layers, blocks, block_size, kv_heads * head_dim]."""

    keys: torch.Tensor
    values: torch.Tensor
    block_size: int
    # Per layer, keys and values as [blocks * block_size, kv_heads * head_dim]: views made once.
    slots: list[tuple[torch.Tensor, torch.Tensor]] = field(init=False)

    def __post_init__(self) -> None:
        self._view()

    def _view(self) -> None:
        width = self.keys.size(-1)
        flat = (pool.view(pool.size(0), -1, width).unbind(0) for pool in (self.keys, self.values))
        self.slots = list(zip(*flat, strict=True))

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

    def grow(self, blocks: int) -> None:
        """Gives every layer this many blocks; the present ones keep their numbers and contents. Nobody may
        read or write meanwhile. Raises what the allocator raises; nothing has changed then.

        For a while there are both, the old memory and the new: each of the two tensors holds all layers.
        """
        old = self.keys.size(1)
        shape = (self.keys.size(0), blocks, *self.keys.shape[2:])
        keys, values = self.keys.new_zeros(shape), self.values.new_zeros(shape)
        keys[:, :old].copy_(self.keys)
        values[:, :old].copy_(self.values)
        self.keys, self.values = keys, values
        self._view()

    def write(self, layer: int, slots: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Stores one key and value per token. slots: [tokens], block * block_size + offset.

        A value that is not finite is stored as zero: the sequence that it belongs to is lost anyway (its
        residual stream holds the same number), and must not spoil the one that gets the block next (0 * NaN
        is NaN).
        """
        cached_keys, cached_values = self.slots[layer]
        cached_keys.index_copy_(0, slots, keys.flatten(1))
        cached_values.index_copy_(0, slots, values.flatten(1).nan_to_num(0.0, 0.0, 0.0))


@dataclass(slots=True)
class Span:
    """Consecutive queries of one sequence: rows [start, start + length) of the step's token axis.

    context: positions of the sequence that exist after this step's write; the last query sits at context - 1.
    table: the sequence's block ids on the device, padded with block 0 to cover `padded_context`
    positions. first: the first block, if the blocks are consecutive; their keys and values are then read
    where they lie.
    """

    start: int
    length: int
    context: int
    table: torch.Tensor
    first: int | None = None

    @property
    def padded_context(self) -> int:
        return padded_context(self.context)


def padded_context(context: int) -> int:
    """Positions that a span's table must cover: the last value tile is one of VALUE_ENDS."""
    whole, rest = context - context % VALUE_TILE, context % VALUE_TILE
    return whole + next(end for end in VALUE_ENDS if rest <= end)


def table_blocks(context: int, block_size: int) -> int:
    """Entries that a span's table must have."""
    return -(-padded_context(context) // block_size)


def paged_attention(
    query: torch.Tensor, cache: KVCache, layer: int, spans: list[Span], window: int | None
) -> torch.Tensor:
    """Causal attention of each span's queries over its sequence's cached keys and values.

    query: [tokens, heads, head_dim], scaled by nothing yet; the keys of these tokens are already in the
    cache. window: keys visible to the left of the query's own position (None: all). Returns [tokens, heads,
    head_dim].
    """
    head_dim = query.size(-1)
    scaled = query * head_dim**-0.5
    out = torch.zeros_like(query)
    for span in spans:
        keys, values = (_read(pool, span, cache.block_size, head_dim) for pool in cache.slots[layer])
        for first in range(0, span.length, QUERY_TILE):
            count = min(QUERY_TILE, span.length - first)
            rows = slice(span.start + first, span.start + first + count)
            position = span.context - span.length + first
            out[rows] = _attend(scaled[rows], keys, values, position, span.context, window)
    return out


def gathered(cache: KVCache, layer: int, span: Span, head_dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values of one sequence's positions, each [context, kv_heads, head_dim]."""
    keys, values = (_read(pool, span, cache.block_size, head_dim) for pool in cache.slots[layer])
    return keys[: span.context], values[: span.context]


def _read(pool: torch.Tensor, span: Span, block_size: int, head_dim: int) -> torch.Tensor:
    """[padded context, kv_heads, head_dim] of one sequence: a view of consecutive blocks, else a copy.

    pool: [blocks * block_size, kv_heads * head_dim].
    """
    size, width = span.padded_context, pool.size(1)
    if span.first is not None:
        start = span.first * block_size
        if start + size <= pool.size(0):
            return pool[start : start + size].view(size, -1, head_dim)
    blocks = pool.view(-1, block_size * width).index_select(0, span.table)
    return blocks.view(-1, width // head_dim, head_dim)[:size]


def _attend(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    position: int,
    context: int,
    window: int | None,
) -> torch.Tensor:
    """query [count, heads, d], scaled, at positions position.. over keys, values [length, kv_heads, d]."""
    count, heads, head_dim = query.shape
    length, kv_heads, _ = keys.shape
    group = heads // kv_heads
    # Query heads that share a kv head become rows of one product: [kv_heads, group * count, d].
    if group == 1:
        rows = query.transpose(0, 1)
    else:
        grouped = query.view(count, kv_heads, group, head_dim)
        rows = grouped.permute(1, 2, 0, 3).reshape(kv_heads, group * count, head_dim)
    least = MIN_QUERIES if head_dim > 64 else MIN_QUERIES // 2
    if group * count < least:
        padded = rows.new_zeros(kv_heads, least, head_dim)
        padded[:, : group * count] = rows
        rows = padded
    scores = torch.bmm(rows, keys.permute(1, 2, 0)).float()  # [kv_heads, rows, length]
    if count == 1:
        if context < length:
            scores[:, :, context:] = float("-inf")
        if window is not None and position > window:
            scores[:, :, : position - window] = float("-inf")
    else:
        hidden = _hidden(position, count, length, window, query.device)
        scores[:, : group * count].view(kv_heads, group, count, length).masked_fill_(hidden, float("-inf"))
    weights = torch.softmax(scores, dim=-1).to(values.dtype)
    values = values.transpose(0, 1)  # [kv_heads, length, d]
    if length <= VALUE_TILE:
        result = torch.bmm(weights, values)
    else:
        result = torch.bmm(weights[:, :, :VALUE_TILE], values[:, :VALUE_TILE])
    for first in range(VALUE_TILE, length, VALUE_TILE):
        tile = slice(first, first + VALUE_TILE)
        result += torch.bmm(weights[:, :, tile], values[:, tile])
    if group == 1:
        return result[:, :count].transpose(0, 1)
    result = result[:, : group * count].reshape(kv_heads, group, count, head_dim)
    return result.permute(2, 0, 1, 3).reshape(count, heads, head_dim)


def _hidden(position: int, count: int, length: int, window: int | None, device: torch.device) -> torch.Tensor:
    """[count, length] bool: keys that a query may not see, because they are later or left of its window."""
    queries = torch.arange(position, position + count, device=device).unsqueeze(1)
    keys = torch.arange(length, device=device).unsqueeze(0)
    hidden = keys > queries
    return hidden if window is None else hidden | (keys < queries - window)
