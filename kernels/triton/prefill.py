"""Paged attention of chunks: consecutive queries of several rows over their cached keys, causal. Reference:
kernels.attention.

A program takes a tile of one chunk's queries with the heads that share a kv head as rows of one matrix, and
walks over the keys: first those left of every query's window edge, then the tiles that all of its queries
see in full, then the diagonal. The grid depends on the step's shape only; which tile is whose is found on the
device, and where a step has more chunks than its grid was made for, programs take several tiles in turn.

A step with few queries has too few tiles for the device, and each walks alone over what may be thousands of
keys. There several programs share a tile, each a stretch of its keys, and the one that arrives last merges
what they found, in the stretches' order, so that the result does not depend on who that was.
"""

import math
from dataclasses import dataclass

import torch
import triton

from kernels.kv8 import Scales
from kernels.triton.prefill_config import SLOT_ROWS, PrefillConfig, config_for
from kernels.triton.prefill_kernel import prefill_kernel

LOG2_E = math.log2(math.e)
SPLIT_KEYS = 256  # a stretch is no shorter: merging costs about as much as walking over half of that
SLOTS = 512  # partial tiles that a workspace holds
FEW_CHUNKS = 8  # that a grid is made for: each may have a tile that is not full


@dataclass(frozen=True, slots=True)
class PrefillWorkspace:
    """What programs that share a tile leave for the one that merges.

    partials: [SLOTS, SLOT_ROWS * head_dim] float32, accumulators. stats: [SLOTS, SLOT_ROWS, 2], their maxima
    (in powers of two) and sums. counters: [SLOTS] int32, programs of a tile that have arrived; zero between
    calls. A graph that was captured with it needs it as long as it lives.
    """

    partials: torch.Tensor
    stats: torch.Tensor
    counters: torch.Tensor

    @classmethod
    def allocate(cls, head_dim: int, device: torch.device | str, slots: int = SLOTS) -> "PrefillWorkspace":
        """slots: 0 for one that nothing is split with."""
        return cls(
            torch.zeros(slots, SLOT_ROWS * head_dim, dtype=torch.float32, device=device),
            torch.zeros(slots, SLOT_ROWS, 2, dtype=torch.float32, device=device),
            torch.zeros(slots, dtype=torch.int32, device=device),
        )

    def tiles(self, heads: int, splits: int) -> int:
        """Tiles of a step that can be split, the others being walked by one program. heads: tiles beside
        each other."""
        return self.counters.size(0) // (heads * splits) if splits > 1 else 0


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
    scales: Scales | None = None,
    workspace: PrefillWorkspace | None = None,
    config: PrefillConfig | None = None,
    pdl: bool = False,
) -> None:
    """Causal attention of each chunk's queries over its row's keys, cached ones and its own, which are in
    the pages.

    q: [tokens, heads, head_dim], a view with any strides but the last, which is 1. k_pages, v_pages:
    [blocks, block_size, kv_heads, head_dim] likewise, of q's type, or with scales in eight bits
    (kernels.kv8). block_tables: [rows, blocks of a row] int32. chunk_rows, contexts: [chunks] int32, the row
    of each chunk and how many positions it has, the chunk's own included. cu_queries: [chunks + 1] int32:
    chunk c's queries are tokens cu_queries[c]..cu_queries[c + 1]. A chunk of length 0 or row -1 is unused.
    window: keys visible to the left of a query's own (None: all). out: [tokens, heads * head_dim]; other
    tokens than the chunks' are left alone. workspace: None: no tile's keys are split. ValueError: a head_dim
    or block size that is no power of two, or heads of one group that do not fit a tile.
    """
    tokens, heads, head_dim = q.shape
    k_scales, v_scales = scales or (None, None)
    chunks, block_size, kv_heads = chunk_rows.size(0), k_pages.size(1), k_pages.size(2)
    group = heads // kv_heads
    if config is None:
        config = config_for(group, heads, head_dim, tokens, q.element_size())
    if block_size & (block_size - 1) or head_dim & (head_dim - 1):
        raise ValueError(f"block size {block_size} and head_dim {head_dim} must be powers of two")
    if config.pack and group > config.block_m:
        raise ValueError(f"{group} heads of a group do not fit a tile of {config.block_m} rows")
    packed, queries = (group if config.pack else 1), config.queries(group)
    tiles = -(-tokens // queries) + min(chunks, FEW_CHUNKS)
    splits = config.splits if workspace is not None else 1
    space = workspace or PrefillWorkspace(out, out, out)  # never looked at
    prefill_kernel[(tiles * (heads // packed) * splits,)](
        q,
        k_pages,
        v_pages,
        k_scales,
        v_scales,
        block_tables,
        chunk_rows,
        cu_queries,
        contexts,
        out,
        space.partials,
        space.stats,
        space.counters,
        chunks,
        tiles,
        splits,
        space.tiles(heads // packed, splits),
        window or 0,
        *q.stride()[:2],
        *k_pages.stride()[:3],
        *v_pages.stride()[:3],
        *(k_scales.stride() if k_scales is not None else (0, 0, 0)),
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
        # Small tiles are the same kernel for any number of splits, one included.
        SPLIT=workspace is not None and config.block_m <= SLOT_ROWS,
        SPLIT_KEYS=SPLIT_KEYS,
        SLOT_ROWS=SLOT_ROWS,
        PDL=pdl,
        num_warps=config.num_warps,
        launch_pdl=pdl,
    )
