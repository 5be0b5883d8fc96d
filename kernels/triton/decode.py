"""Paged attention of single queries: split over keys, merged by whoever finishes last. Reference:
kernels.attention.

Once per step a plan kernel cuts the batch into units, each a stretch of one entry's keys, long enough to
keep the number of units near what the GPU runs at once and short enough to fill it. A program takes one unit
and one kv head. Where an entry has several units, each leaves its (maximum, sum, accumulator) in the
workspace, and the one that arrives last merges them in the units' order, so that the result does not depend
on who that was.

Queries come rotated, their keys in the pages; or a step's projections come as they are (`Fresh`), and each
program does for its unit what kernels.triton.rope does in a launch of its own.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import triton
import triton.language as tl

from kernels.kv8 import Scales
from kernels.triton.decode_config import DecodeConfig, config_for
from kernels.triton.decode_kernel import decode_kernel
from kernels.triton.parts import begin
from kernels.triton.rope import RotarySpec

# int32 of one unit: entry, row, first key, end, first visible key, the entry's first unit, its units, its own
# position.
ITEM = 8
LOG2_E = math.log2(math.e)
PLANNED = 256  # entries that the plan kernel is compiled for; more make another kernel
MERGE_NUMBERS = 2048  # per warp, of the partial results that a merge holds at once


# How a batch of so many entries is run.
Rule = Callable[[int], DecodeConfig]


@dataclass(slots=True)
class WorkList:
    """The units of a step for one window. items: [units, ITEM] int32. live: [1] int32, how many there are."""

    items: torch.Tensor
    live: torch.Tensor


@dataclass(slots=True)
class DecodeWorkspace:
    """What decode steps of one model on one device share, layer after layer and bucket after bucket.

    partials: [units, heads, head_dim] float32, accumulators of units that must be merged; stats: [units,
    heads, 2], their maxima (in powers of two) and sums. counters: [rows, kv_heads] int32, units that have
    arrived; zero between calls. A graph that was captured with it needs it as long as it lives.
    """

    heads: int
    kv_heads: int
    head_dim: int
    max_rows: int
    multiprocessors: int
    itemsize: int
    partials: torch.Tensor
    stats: torch.Tensor
    counters: torch.Tensor
    rule: Rule | None = None
    lists: dict[int | None, WorkList] = field(default_factory=dict)

    @classmethod
    def allocate(
        cls,
        max_rows: int,
        heads: int,
        kv_heads: int,
        head_dim: int,
        max_context: int,
        device: torch.device | str,
        *,
        dtype: torch.dtype = torch.bfloat16,
        config: DecodeConfig | Rule | None = None,
        windows: tuple[int | None, ...] = (None,),
        multiprocessors: int | None = None,
    ) -> "DecodeWorkspace":
        """max_context: keys of the longest row. dtype: of keys and values. config: used for every bucket, or
        that of each, instead of the table's.
        windows: those for which work lists are made now; others follow when first planned. multiprocessors:
        instead of the device's.

        ValueError: heads that are no multiple of kv_heads, a head_dim that is no power of two of at least
        16, or more keys in all than 32 bits count.
        """
        if max_rows * max_context >= 2**31:
            raise ValueError(f"{max_rows} rows of {max_context} keys are too many to count")
        if heads % kv_heads:
            raise ValueError(f"{heads} heads are no multiple of {kv_heads} kv heads")
        if head_dim & (head_dim - 1) or head_dim < 16:
            raise ValueError(f"head_dim {head_dim} must be a power of two of at least 16")
        device = torch.device(device)
        count = multiprocessors or _multiprocessors(device)
        itemsize = dtype.itemsize
        empty = torch.empty(0)
        rule = (lambda _: config) if isinstance(config, DecodeConfig) else config
        space = cls(heads, kv_heads, head_dim, max_rows, count, itemsize, empty, empty, empty, rule)
        units = max(space.units(entries) for entries in range(1, max_rows + 1))
        space.partials = torch.zeros(units, heads, head_dim, dtype=torch.float32, device=device)
        space.stats = torch.zeros(units, heads, 2, dtype=torch.float32, device=device)
        space.counters = torch.zeros(max_rows, kv_heads, dtype=torch.int32, device=device)
        for window in windows:
            space.work_list(window)
        return space

    @property
    def group(self) -> int:
        return self.heads // self.kv_heads

    def settings(self, entries: int) -> DecodeConfig:
        """How a batch of `entries` is run: the same for the plan and for the attention that follows it."""
        if self.rule is not None:
            return self.rule(entries)
        return config_for(self.group, self.head_dim, entries, self.itemsize)

    def target(self, entries: int) -> int:
        """Units that the plan aims at when there is enough work."""
        return max(1, self.settings(entries).units_per_sm * self.multiprocessors // self.kv_heads)

    def units(self, entries: int) -> int:
        """Units that a batch of `entries` can have at most: a remainder each, beside the target."""
        return entries + self.target(entries)

    def work_list(self, window: int | None) -> WorkList:
        found = self.lists.get(window)
        if found is None:
            ints = torch.zeros(
                self.partials.size(0) + 1, ITEM, dtype=torch.int32, device=self.partials.device
            )
            found = self.lists[window] = WorkList(ints[1:], ints[0, :1])
        return found


@dataclass(frozen=True, slots=True)
class Fresh:
    """What a step of single positions has before rotation, as kernels.triton.rope.rotate_and_store takes it.

    qkv: [entries, (heads + 2 kv_heads) * head_dim], rows of any stride, only read. slots: [entries] int32,
    where each entry's key and value go; with a negative one they go nowhere. own, other: [positions,
    head_dim] float32. bias: [(heads + 2 kv_heads) * head_dim]. q_weight, k_weight: [head_dim].
    """

    qkv: torch.Tensor
    slots: torch.Tensor
    own: torch.Tensor
    other: torch.Tensor
    spec: RotarySpec
    bias: torch.Tensor | None = None
    q_weight: torch.Tensor | None = None
    k_weight: torch.Tensor | None = None

    @property
    def query(self) -> torch.Tensor:
        """[entries, heads, head_dim], a view."""
        heads, dim = self.spec.heads, self.spec.head_dim
        return self.qkv[:, : heads * dim].unflatten(1, (heads, dim))

    def arguments(self, k_pages: torch.Tensor, v_pages: torch.Tensor) -> tuple[object, ...]:
        """For the kernel, in the order of decode_fresh.take_fresh; pages in the type they are kept in."""
        weights = (self.bias, self.q_weight, self.k_weight)
        strides = (self.own.stride(0), self.other.stride(0))
        spec = self.spec
        return (
            *(self.own, self.other, *weights, self.slots, k_pages, v_pages, *strides),
            *(spec.eps, spec.qk_scale),
        )


def _multiprocessors(device: torch.device) -> int:
    if device.type != "cuda":
        return 4
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


@triton.jit(do_not_specialize=["entries", "target", "window", "min_chunk"])
def _plan_kernel(
    rows,
    positions,
    items,
    live,
    entries,
    target,
    window,
    min_chunk,
    BLOCK: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    ITEM: tl.constexpr,
    PDL: tl.constexpr,
):
    begin(PDL)
    entry = tl.arange(0, BLOCK)
    row = tl.load(rows + entry, mask=entry < entries, other=-1)
    position = tl.load(positions + entry, mask=row >= 0, other=-1)
    end = tl.where(row >= 0, position + 1, 0)
    seen = tl.zeros([BLOCK], tl.int32)
    if HAS_WINDOW:
        seen = tl.maximum(position - window, 0)
    first = seen // BLOCK_KEYS * BLOCK_KEYS
    length = end - first
    total = tl.sum(length, axis=0)
    chunk = tl.maximum((total + target - 1) // target, min_chunk)
    # Up to half a chunk more stays with the others: to cut an entry in two for that costs more than it saves.
    # Its units are of one size, so that none is left with a few keys only.
    slack = chunk // 2 // BLOCK_KEYS * BLOCK_KEYS
    units = tl.where(length > 0, tl.maximum((length - slack + chunk - 1) // chunk, 1), 0)
    size = (length + tl.maximum(units, 1) - 1) // tl.maximum(units, 1)
    size = tl.maximum((size + BLOCK_KEYS - 1) // BLOCK_KEYS, 1) * BLOCK_KEYS
    units = (length + size - 1) // size
    base = tl.cumsum(units, axis=0) - units
    tl.store(live, tl.sum(units, axis=0))
    for unit in range(0, tl.max(units, axis=0)):
        inside = unit < units
        start = first + unit * size
        item = items + (base + unit) * ITEM
        tl.store(item, entry, mask=inside)
        tl.store(item + 1, row, mask=inside)
        tl.store(item + 2, start, mask=inside)
        tl.store(item + 3, tl.minimum(start + size, end), mask=inside)
        tl.store(item + 4, seen, mask=inside)
        tl.store(item + 5, base, mask=inside)
        tl.store(item + 6, units, mask=inside)
        tl.store(item + 7, position, mask=inside)


def plan_decode(
    rows: torch.Tensor,
    positions: torch.Tensor,
    workspace: DecodeWorkspace,
    *,
    window: int | None,
    pdl: bool = False,
) -> None:
    """Cuts a batch into units, once per step and window.

    rows: [entries] int32, -1 for padding. positions: [entries] int32, that of the entry's query; keys
    0..position exist. window: keys visible to the left of the query's own (None: all). ValueError: more
    entries than the workspace has rows.
    """
    entries = rows.size(0)
    if entries > workspace.max_rows:
        raise ValueError(f"{entries} entries do not fit a workspace of {workspace.max_rows} rows")
    config, work = workspace.settings(entries), workspace.work_list(window)
    block = max(PLANNED, triton.next_power_of_2(entries))
    _plan_kernel[(1,)](
        rows,
        positions,
        work.items,
        work.live,
        entries,
        workspace.target(entries),
        window or 0,
        config.min_chunk,
        BLOCK=block,
        BLOCK_KEYS=config.block_keys,
        HAS_WINDOW=window is not None,
        ITEM=ITEM,
        PDL=pdl,
        num_warps=max(1, min(8, block // 32)),
        launch_pdl=pdl,
    )


def paged_decode(
    q: torch.Tensor,
    k_pages: torch.Tensor,
    v_pages: torch.Tensor,
    block_tables: torch.Tensor,
    rows: torch.Tensor,
    positions: torch.Tensor,
    out: torch.Tensor,
    workspace: DecodeWorkspace,
    *,
    scale: float,
    window: int | None,
    scales: Scales | None = None,
    fresh: Fresh | None = None,
    pdl: bool = False,
) -> None:
    """Attention of one query per entry over keys 0..positions[entry] of its row, or the window's part of
    them.

    q: [entries, heads, head_dim], a view with any strides but the last, which is 1. k_pages, v_pages:
    [blocks, block_size, kv_heads, head_dim] likewise, of q's type, or with scales in eight bits
    (kernels.kv8). block_tables: [rows, blocks of a row] int32. rows, positions: as given to `plan_decode`,
    which must have run for this batch and window. out: [entries, heads * head_dim]; that of padding is left
    alone. Slots beyond a row's context may hold anything. fresh: q is its `query`, not rotated yet, and the
    entries' own keys and values are not in the pages yet; they are afterwards, and `qkv` is as it was.
    ValueError: shapes that do not fit the workspace, a block size that is no power of two, or a q that is
    not fresh's.
    """
    entries, heads, head_dim = q.shape
    block_size = k_pages.size(1)
    if (heads, k_pages.size(2), head_dim) != (workspace.heads, workspace.kv_heads, workspace.head_dim):
        raise ValueError(f"{heads} heads of {head_dim} over {k_pages.size(2)} do not fit the workspace")
    if block_size & (block_size - 1):
        raise ValueError(f"block size {block_size} must be a power of two")
    raw: tuple[object, ...] | None = None
    if fresh is not None:
        own = fresh.query
        if (q.data_ptr(), q.shape, q.stride()) != (own.data_ptr(), own.shape, own.stride()):
            raise ValueError("the queries are not those of what is fresh")
        raw = fresh.arguments(k_pages, v_pages)
    config, work, group = workspace.settings(entries), workspace.work_list(window), workspace.group
    padded = triton.next_power_of_2(group)
    k_scales, v_scales = scales or (None, None)
    if scales is not None:
        k_pages, v_pages = k_pages.view(torch.int32), v_pages.view(torch.int32)
    programs = workspace.units(entries) * workspace.kv_heads
    if config.persistent:
        programs = min(programs, config.units_per_sm * workspace.multiprocessors)
    decode_kernel[(programs,)](
        q,
        raw,
        k_pages,
        v_pages,
        k_scales,
        v_scales,
        block_tables,
        out,
        work.items,
        work.live,
        workspace.partials,
        workspace.stats,
        workspace.counters,
        *q.stride()[:2],
        *k_pages.stride()[:3],
        *v_pages.stride()[:3],
        *(k_scales.stride() if k_scales is not None else (0, 0, 0)),
        block_tables.stride(0),
        out.stride(0),
        scale * LOG2_E,
        KV=workspace.kv_heads,
        GROUP=group,
        PADDED=padded,
        D=head_dim,
        BLOCK_SIZE=block_size,
        BLOCK_KEYS=config.block_keys,
        MERGE=max(2, min(32, MERGE_NUMBERS * config.num_warps // (padded * head_dim))),
        HAS_WINDOW=window is not None,
        PREFETCH=config.prefetch,
        STAGES=config.num_stages,
        PERSISTENT=config.persistent,
        ITEM=ITEM,
        ORDER=fresh.spec.order if fresh is not None else None,
        PDL=pdl,
        num_warps=config.num_warps,
        launch_pdl=pdl,
    )
