"""Paged attention of chunks: consecutive queries of several rows over their cached keys, causal. Reference:
kernels.attention.

A program takes a tile of one chunk's queries with the heads that share a kv head as rows of one matrix, and
walks over the keys: first those left of every query's window edge, then the tiles that all of its queries
see in full, then the diagonal. The grid is an upper bound that depends on the step's shape only; which tile
is whose is found on the device.
"""

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from kernels.triton.parts import begin

LOG2_E = math.log2(math.e)
ENOUGH_PROGRAMS = 128  # for the 132 multiprocessors of a Hopper


@dataclass(frozen=True, slots=True)
class PrefillConfig:
    """block_m: rows of a tile, queries times the heads packed beside each. block_n: keys of a tile. pack:
    heads that share a kv head go into one tile. section: heads whose tiles run side by side, so that L2
    holds their keys.

    ValueError: tiles that no matrix instruction takes.
    """

    block_m: int = 128
    block_n: int = 128
    num_warps: int = 8
    num_stages: int = 2
    pack: bool = True
    section: int = 8

    def __post_init__(self) -> None:
        for name in ("block_m", "block_n"):
            value = getattr(self, name)
            if value < 16 or value & (value - 1):
                raise ValueError(f"{name} is {value}; it must be a power of two of at least 16")

    def queries(self, group: int) -> int:
        """Queries of a tile, for `group` heads per kv head."""
        return max(1, self.block_m // group) if self.pack else self.block_m


def config_for(group: int, heads: int, head_dim: int, tokens: int, itemsize: int) -> PrefillConfig:
    """The configuration for a step of up to `tokens`, in chunks of whatever lengths.

    The larger a tile, the fewer times keys and values are read; but there should be programs for the whole
    device, and a step of few tokens must be cut small for that.
    """
    if itemsize > 2:
        return PrefillConfig(block_m=max(32, group_rows(group)), block_n=32, num_warps=8, num_stages=1)
    # Tiles of one program: queries, and a stage of keys and values.
    wide = head_dim > 128
    if tokens * heads < 64 * ENOUGH_PROGRAMS and group <= 16:
        return PrefillConfig(block_m=16, block_n=64, num_warps=4, num_stages=2 if wide else 3)
    if tokens * heads < 128 * ENOUGH_PROGRAMS or wide:
        block_m = max(64, group_rows(group))
        return PrefillConfig(
            block_m=block_m, block_n=64, num_warps=8 if wide else block_m // 16, num_stages=2
        )
    return PrefillConfig(block_m=max(128, group_rows(group)), block_n=128, num_warps=8, num_stages=2)


def group_rows(group: int) -> int:
    """Rows that a tile must have to hold one query's heads."""
    return int(triton.next_power_of_2(group))


def tiles_of(tokens: int, chunks: int, queries: int) -> int:
    """Tiles that `chunks` chunks of `tokens` in all can have at most: a remainder each."""
    return tokens // queries + chunks


@triton.jit
def _find_chunk(cu_queries, chunks, tile, QUERIES: tl.constexpr, CHUNKS: tl.constexpr):
    """The chunk that a tile belongs to, and the tile's place in it: chunk c's tiles begin at c + (queries
    before it) // QUERIES, which leaves a gap of one where a chunk ends on a border."""
    chunk = tl.arange(0, CHUNKS)
    origin = tl.load(cu_queries)
    before = tl.load(cu_queries + chunk, mask=chunk < chunks, other=0) - origin
    first = before // QUERIES + chunk
    found = tl.sum(((chunk < chunks) & (first <= tile)).to(tl.int32), axis=0) - 1
    return found, tile - tl.sum(tl.where(chunk == found, first, 0), axis=0)


@triton.jit
def _walk(
    query,
    keys,
    values,
    table,
    stride_k_block: tl.constexpr,
    stride_k_offset: tl.constexpr,
    stride_v_block: tl.constexpr,
    stride_v_offset: tl.constexpr,
    position,
    least,
    start,
    stop,
    context,
    window,
    scale,
    most,
    total,
    mixed,
    D: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    MASKED: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Keys start..stop into the running maxima, sums [M] and accumulators [M, D].

    MASKED: not every query sees all of them. position: [M], of the queries. least: the first key that one of
    them sees: those before it may lie in blocks that are no longer the row's.
    """
    channel = tl.arange(0, D)
    for tile in tl.range(start, stop, BLOCK_N, num_stages=STAGES):
        place = tile + tl.arange(0, BLOCK_N)
        if BLOCK_N <= BLOCK_SIZE:
            page = tl.load(table + tile // BLOCK_SIZE).to(tl.int64)
            offset = tile % BLOCK_SIZE + tl.arange(0, BLOCK_N)
        else:
            if MASKED:
                page = tl.load(table + place // BLOCK_SIZE, mask=place < context, other=0).to(tl.int64)
            else:
                page = tl.load(table + place // BLOCK_SIZE).to(tl.int64)
            offset = place % BLOCK_SIZE
        k_place = (page * stride_k_block + offset * stride_k_offset)[:, None] + channel[None, :]
        v_place = (page * stride_v_block + offset * stride_v_offset)[:, None] + channel[None, :]
        if MASKED:
            exists = place < context
            if HAS_WINDOW:
                exists = exists & (place >= least)
            key = tl.load(keys + k_place, mask=exists[:, None], other=0.0)
            value = tl.load(values + v_place, mask=exists[:, None], other=0.0)
        else:
            key = tl.load(keys + k_place)
            value = tl.load(values + v_place)
        score = tl.dot(query, tl.trans(key), input_precision="ieee")
        if MASKED:
            seen = place[None, :] <= position[:, None]
            if HAS_WINDOW:
                seen = seen & (place[None, :] >= position[:, None] - window)
            score = tl.where(seen, score, float("-inf"))
            peak = tl.maximum(most, tl.max(score, axis=1) * scale)
            # A query that sees none of the keys so far has no maximum; nothing minus nothing is no number.
            safe = tl.where(peak == float("-inf"), 0.0, peak)
        else:
            peak = tl.maximum(most, tl.max(score, axis=1) * scale)
            safe = peak
        weight = tl.exp2(score * scale - safe[:, None])
        fade = tl.exp2(most - safe)
        total = total * fade + tl.sum(weight, axis=1)
        mixed = mixed * fade[:, None]
        mixed = tl.dot(weight.to(value.dtype), value, mixed, input_precision="ieee")
        most = peak
    return most, total, mixed


# Strides are constants of an engine: known to the compiler, addresses take less arithmetic.
@triton.jit(do_not_specialize=["chunks", "tiles", "window", "stride_table"])
def _prefill_kernel(
    q,
    k_pages,
    v_pages,
    block_tables,
    chunk_rows,
    cu_queries,
    contexts,
    out,
    chunks,
    tiles,
    window,
    stride_q: tl.constexpr,
    stride_q_head: tl.constexpr,
    stride_k_block: tl.constexpr,
    stride_k_offset: tl.constexpr,
    stride_k_head: tl.constexpr,
    stride_v_block: tl.constexpr,
    stride_v_offset: tl.constexpr,
    stride_v_head: tl.constexpr,
    stride_table,
    stride_out: tl.constexpr,
    scale,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    PACKED: tl.constexpr,
    QUERIES: tl.constexpr,
    SECTION: tl.constexpr,
    CHUNKS: tl.constexpr,
    D: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    STAGES: tl.constexpr,
    PDL: tl.constexpr,
):
    begin(PDL)
    # A section's heads side by side, the last tiles first: they have the most keys and should not start late.
    program = tl.program_id(0)
    section, rest = program // (tiles * SECTION), program % (tiles * SECTION)
    head = (section * SECTION + rest % SECTION) * PACKED
    chunk, tile = _find_chunk(cu_queries, chunks, tiles - 1 - rest // SECTION, QUERIES, CHUNKS)
    first = tl.load(cu_queries + chunk)
    length = tl.load(cu_queries + chunk + 1) - first
    row = tl.load(chunk_rows + chunk).to(tl.int64)
    context = tl.load(contexts + chunk)
    if (tile * QUERIES < length) & (row >= 0):
        index = tl.arange(0, BLOCK_M)
        number, member = tile * QUERIES + index // PACKED, index % PACKED
        inside = (index < QUERIES * PACKED) & (number < length)
        position = context - length + number
        token = (first + number).to(tl.int64)
        channel = tl.arange(0, D)
        place = (token * stride_q + (head + member) * stride_q_head)[:, None] + channel[None, :]
        query = tl.load(q + place, mask=inside[:, None], other=0.0)
        kv_head = (head // GROUP).to(tl.int64)
        keys, values = k_pages + kv_head * stride_k_head, v_pages + kv_head * stride_v_head
        table = block_tables + row * stride_table
        # Keys 0..lowest are seen by all of the tile's queries, none behind highest by any.
        lowest = context - length + tile * QUERIES
        highest = context - length + tl.minimum(tile * QUERIES + QUERIES, length) - 1
        least, left = 0, 0
        if HAS_WINDOW:
            least = tl.maximum(lowest - window, 0)
            left = (tl.maximum(highest - window, 0) + BLOCK_N - 1) // BLOCK_N * BLOCK_N
        right = (lowest + 1) // BLOCK_N * BLOCK_N
        most = tl.full([BLOCK_M], float("-inf"), tl.float32)
        total = tl.zeros([BLOCK_M], tl.float32)
        mixed = tl.zeros([BLOCK_M, D], tl.float32)
        if HAS_WINDOW:
            left = tl.minimum(left, highest + 1)
            right = tl.maximum(left, right)
            most, total, mixed = _walk(
                query,
                keys,
                values,
                table,
                stride_k_block,
                stride_k_offset,
                stride_v_block,
                stride_v_offset,
                position,
                least,
                least // BLOCK_N * BLOCK_N,
                left,
                context,
                window,
                scale,
                most,
                total,
                mixed,
                D,
                BLOCK_SIZE,
                BLOCK_N,
                HAS_WINDOW,
                True,
                1,
            )
        most, total, mixed = _walk(
            query,
            keys,
            values,
            table,
            stride_k_block,
            stride_k_offset,
            stride_v_block,
            stride_v_offset,
            position,
            least,
            left,
            right,
            context,
            window,
            scale,
            most,
            total,
            mixed,
            D,
            BLOCK_SIZE,
            BLOCK_N,
            HAS_WINDOW,
            False,
            STAGES,
        )
        most, total, mixed = _walk(
            query,
            keys,
            values,
            table,
            stride_k_block,
            stride_k_offset,
            stride_v_block,
            stride_v_offset,
            position,
            least,
            right,
            highest + 1,
            context,
            window,
            scale,
            most,
            total,
            mixed,
            D,
            BLOCK_SIZE,
            BLOCK_N,
            HAS_WINDOW,
            True,
            1,
        )
        result = mixed / tl.where(total == 0.0, 1.0, total)[:, None]
        place = (token * stride_out + (head + member) * D)[:, None] + channel[None, :]
        tl.store(out + place, result.to(out.dtype.element_ty), mask=inside[:, None])


def paged_prefill(
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
    max_tiles: int | None = None,
    config: PrefillConfig | None = None,
    pdl: bool = False,
) -> None:
    """Causal attention of each chunk's queries over its row's keys, cached ones and its own, which are in
    the pages.

    q: [tokens, heads, head_dim], a view with any strides but the last, which is 1. k_pages, v_pages:
    [blocks, block_size, kv_heads, head_dim] likewise. block_tables: [rows, blocks of a row] int32.
    chunk_rows, contexts: [chunks] int32, the row of each chunk and how many positions it has, the chunk's
    own included. cu_queries: [chunks + 1] int32: chunk c's queries are tokens cu_queries[c]..cu_queries[c +
    1]. A chunk of length 0 or row -1 is unused. window: keys visible to the left of a query's own (None:
    all). out: [tokens, heads * head_dim]; other tokens than the chunks' are left alone. max_tiles: a bound
    on the tiles of all chunks, where a tighter one is known than tokens and chunks give. ValueError: a
    head_dim or block size that is no power of two, or heads of one group that do not fit a tile.
    """
    tokens, heads, head_dim = q.shape
    chunks, block_size, kv_heads = chunk_rows.size(0), k_pages.size(1), k_pages.size(2)
    group = heads // kv_heads
    if config is None:
        config = config_for(group, heads, head_dim, tokens, q.element_size())
    if block_size & (block_size - 1) or head_dim & (head_dim - 1):
        raise ValueError(f"block size {block_size} and head_dim {head_dim} must be powers of two")
    if config.pack and group > config.block_m:
        raise ValueError(f"{group} heads of a group do not fit a tile of {config.block_m} rows")
    packed, queries = (group if config.pack else 1), config.queries(group)
    tiles = tiles_of(tokens, chunks, queries) if max_tiles is None else max_tiles
    _prefill_kernel[(tiles * (heads // packed),)](
        q,
        k_pages,
        v_pages,
        block_tables,
        chunk_rows,
        cu_queries,
        contexts,
        out,
        chunks,
        tiles,
        window or 0,
        *q.stride()[:2],
        *k_pages.stride()[:3],
        *v_pages.stride()[:3],
        block_tables.stride(0),
        out.stride(0),
        scale * LOG2_E,
        HEADS=heads,
        GROUP=group,
        PACKED=packed,
        QUERIES=queries,
        SECTION=math.gcd(config.section, heads // packed),
        CHUNKS=triton.next_power_of_2(chunks),
        D=head_dim,
        BLOCK_SIZE=block_size,
        BLOCK_M=config.block_m,
        BLOCK_N=config.block_n,
        HAS_WINDOW=window is not None,
        STAGES=config.num_stages,
        PDL=pdl,
        num_warps=config.num_warps,
        launch_pdl=pdl,
    )
