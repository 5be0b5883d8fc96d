"""The device side of `kernels.triton.decode`: one unit of keys, one kv head."""

import triton
import triton.language as tl

from kernels.triton.decode_fresh import take_fresh, turned
from kernels.triton.decode_groups import attend_group
from kernels.triton.decode_tiles import attend_single
from kernels.triton.parts import begin


@triton.jit
def _merge(
    partials,
    stats,
    base,
    units,
    kv_head,
    KV: tl.constexpr,
    GROUP: tl.constexpr,
    PADDED: tl.constexpr,
    D: tl.constexpr,
    MERGE: tl.constexpr,
):
    """[PADDED, D]: an entry's units put together in their order, MERGE of them at a time."""
    member = tl.arange(0, PADDED)
    most = tl.full([PADDED], float("-inf"), tl.float32)
    total = tl.zeros([PADDED], tl.float32)
    mixed = tl.zeros([PADDED, D], tl.float32)
    for first in range(0, units, MERGE):
        unit = first + tl.arange(0, MERGE)
        head = ((base + unit) * KV + kv_head)[:, None] * GROUP + member[None, :]
        inside = (unit < units)[:, None] & (member < GROUP)[None, :]
        # Written by other multiprocessors: not to be looked for in this one's own cache.
        peak = tl.load(stats + head * 2, mask=inside, other=float("-inf"), cache_modifier=".cg")
        part = tl.load(stats + head * 2 + 1, mask=inside, other=0.0, cache_modifier=".cg")
        place = head.to(tl.int64)[:, :, None] * D + tl.arange(0, D)[None, None, :]
        value = tl.load(partials + place, mask=inside[:, :, None], other=0.0, cache_modifier=".cg")
        highest = tl.maximum(most, tl.max(peak, axis=0))
        safe = tl.where(highest == float("-inf"), 0.0, highest)
        fade, weight = tl.exp2(most - safe), tl.exp2(peak - safe[None, :])
        total = total * fade + tl.sum(weight * part, axis=0)
        mixed = mixed * fade[:, None] + tl.sum(weight[:, :, None] * value, axis=0)
        most = highest
    return mixed / tl.where(total == 0.0, 1.0, total)[:, None]


@triton.jit
def _item(items, unit, ITEM: tl.constexpr):
    """entry, row, first key, end, first visible key, entry's first unit, its units, its position."""
    item = items + unit * ITEM
    entry, row = tl.load(item).to(tl.int64), tl.load(item + 1).to(tl.int64)
    start, end, seen = tl.load(item + 2), tl.load(item + 3), tl.load(item + 4)
    return entry, row, start, end, seen, tl.load(item + 5), tl.load(item + 6), tl.load(item + 7)


@triton.jit
def _unit(
    entry,
    row,
    start,
    end,
    seen,
    base,
    units,
    position,
    kv_head,
    q,
    fresh,
    k_pages,
    v_pages,
    k_scales,
    v_scales,
    block_tables,
    out,
    partials,
    stats,
    counters,
    unit,
    stride_q: tl.constexpr,
    stride_q_head: tl.constexpr,
    stride_k_block: tl.constexpr,
    stride_k_offset: tl.constexpr,
    stride_k_head: tl.constexpr,
    stride_v_block: tl.constexpr,
    stride_v_offset: tl.constexpr,
    stride_v_head: tl.constexpr,
    stride_s_block: tl.constexpr,
    stride_s_offset: tl.constexpr,
    stride_s_head: tl.constexpr,
    stride_table,
    stride_out: tl.constexpr,
    scale,
    KV: tl.constexpr,
    GROUP: tl.constexpr,
    PADDED: tl.constexpr,
    D: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
    MERGE: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    PREFETCH: tl.constexpr,
    STAGES: tl.constexpr,
    ORDER: tl.constexpr,
):
    ROWS: tl.constexpr = 1 if GROUP == 1 else PADDED if PADDED > 16 else 16
    table = block_tables + row * stride_table
    keys = k_pages + kv_head.to(tl.int64) * stride_k_head
    values = v_pages + kv_head.to(tl.int64) * stride_v_head
    if k_scales is not None:
        k_scales += kv_head.to(tl.int64) * stride_s_head
        v_scales += kv_head.to(tl.int64) * stride_s_head
    query = q + entry * stride_q + kv_head * GROUP * stride_q_head
    channel = tl.arange(0, D)
    dtype: tl.constexpr = q.dtype.element_ty
    if ORDER is not None:
        raw = take_fresh(
            q + entry * stride_q,
            fresh,
            entry,
            position,
            end,
            kv_head,
            k_scales,
            v_scales,
            stride_k_block,
            stride_k_offset,
            stride_k_head,
            stride_v_block,
            stride_v_offset,
            stride_v_head,
            stride_s_block,
            stride_s_offset,
            KV,
            GROUP,
            ROWS,
            D,
            BLOCK_SIZE,
            ORDER,
        )
    if GROUP == 1:
        if ORDER is None:
            single = tl.load(query + channel).to(tl.float32) * scale
        else:
            single = raw
        most, total, mixed = attend_single(
            single,
            fresh,
            keys,
            values,
            k_scales,
            v_scales,
            table,
            stride_k_block,
            stride_k_offset,
            stride_v_block,
            stride_v_offset,
            stride_s_block,
            stride_s_offset,
            start,
            end,
            seen,
            scale,
            D,
            BLOCK_SIZE,
            BLOCK_KEYS,
            HAS_WINDOW,
            PREFETCH,
            STAGES,
            ORDER,
            dtype,
        )
        if units == 1:
            tl.store(
                out + entry * stride_out + kv_head * D + channel, (mixed / total).to(out.dtype.element_ty)
            )
        else:
            head = (unit * KV + kv_head).to(tl.int64)
            tl.store(partials + head * D + channel, mixed)
            tl.store(stats + head * 2, most)
            tl.store(stats + head * 2 + 1, total)
    else:
        member = tl.arange(0, ROWS)
        inside = (member < GROUP)[:, None]
        if ORDER is None:
            place = member[:, None] * stride_q_head + channel[None, :]
            group = tl.load(query + place, mask=inside, other=0.0)
        else:
            group = turned(raw, fresh, D, ORDER, dtype)
        most, total, mixed = attend_group(
            group,
            keys,
            values,
            k_scales,
            v_scales,
            table,
            stride_k_block,
            stride_k_offset,
            stride_v_block,
            stride_v_offset,
            stride_s_block,
            stride_s_offset,
            start,
            end,
            seen,
            scale,
            ROWS,
            D,
            BLOCK_SIZE,
            BLOCK_KEYS,
            HAS_WINDOW,
            STAGES,
        )
        place = member[:, None] * D + channel[None, :]
        if units == 1:
            result = (mixed / total[:, None]).to(out.dtype.element_ty)
            tl.store(out + entry * stride_out + kv_head * GROUP * D + place, result, mask=inside)
        else:
            head = (unit * KV + kv_head).to(tl.int64) * GROUP
            tl.store(partials + head * D + place, mixed, mask=inside)
            tl.store(stats + (head + member) * 2, most, mask=member < GROUP)
            tl.store(stats + (head + member) * 2 + 1, total, mask=member < GROUP)
    if units > 1:
        # All of the program's stores come before the one thread that announces them.
        tl.debug_barrier()
        counter = counters + entry * KV + kv_head
        if tl.atomic_add(counter, 1, sem="acq_rel", scope="gpu") == units - 1:
            merged = _merge(partials, stats, base, units, kv_head, KV, GROUP, PADDED, D, MERGE)
            which = tl.arange(0, PADDED)[:, None]
            target = out + entry * stride_out + (kv_head * GROUP + which) * D + channel[None, :]
            tl.store(target, merged.to(out.dtype.element_ty), mask=which < GROUP)
            tl.store(counter, 0)


# Strides are constants of an engine: known to the compiler, most of them end up inside the load instructions.
@triton.jit(do_not_specialize=["stride_table"])
def decode_kernel(
    q,
    fresh,
    k_pages,
    v_pages,
    k_scales,
    v_scales,
    block_tables,
    out,
    items,
    live,
    partials,
    stats,
    counters,
    stride_q: tl.constexpr,
    stride_q_head: tl.constexpr,
    stride_k_block: tl.constexpr,
    stride_k_offset: tl.constexpr,
    stride_k_head: tl.constexpr,
    stride_v_block: tl.constexpr,
    stride_v_offset: tl.constexpr,
    stride_v_head: tl.constexpr,
    stride_s_block: tl.constexpr,
    stride_s_offset: tl.constexpr,
    stride_s_head: tl.constexpr,
    stride_table,
    stride_out: tl.constexpr,
    scale,
    KV: tl.constexpr,
    GROUP: tl.constexpr,
    PADDED: tl.constexpr,
    D: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
    MERGE: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    PREFETCH: tl.constexpr,
    STAGES: tl.constexpr,
    PERSISTENT: tl.constexpr,
    ITEM: tl.constexpr,
    ORDER: tl.constexpr,
    PDL: tl.constexpr,
):
    begin(PDL)
    work = tl.program_id(0)
    existing = tl.load(live) * KV
    if PERSISTENT:
        programs = tl.num_programs(0)
        for turn in tl.range(0, (existing - work + programs - 1) // programs, num_stages=1):
            task = work + turn * programs
            entry, row, start, end, seen, base, units, position = _item(items, task // KV, ITEM)
            _unit(
                entry,
                row,
                start,
                end,
                seen,
                base,
                units,
                position,
                task % KV,
                q,
                fresh,
                k_pages,
                v_pages,
                k_scales,
                v_scales,
                block_tables,
                out,
                partials,
                stats,
                counters,
                task // KV,
                stride_q,
                stride_q_head,
                stride_k_block,
                stride_k_offset,
                stride_k_head,
                stride_v_block,
                stride_v_offset,
                stride_v_head,
                stride_s_block,
                stride_s_offset,
                stride_s_head,
                stride_table,
                stride_out,
                scale,
                KV,
                GROUP,
                PADDED,
                D,
                BLOCK_SIZE,
                BLOCK_KEYS,
                MERGE,
                HAS_WINDOW,
                PREFETCH,
                STAGES,
                ORDER,
            )
    else:
        # Loaded before it is known whether there is such a unit, so that one wait covers both.
        entry, row, start, end, seen, base, units, position = _item(items, work // KV, ITEM)
        if work < existing:
            _unit(
                entry,
                row,
                start,
                end,
                seen,
                base,
                units,
                position,
                work % KV,
                q,
                fresh,
                k_pages,
                v_pages,
                k_scales,
                v_scales,
                block_tables,
                out,
                partials,
                stats,
                counters,
                work // KV,
                stride_q,
                stride_q_head,
                stride_k_block,
                stride_k_offset,
                stride_k_head,
                stride_v_block,
                stride_v_offset,
                stride_v_head,
                stride_s_block,
                stride_s_offset,
                stride_s_head,
                stride_table,
                stride_out,
                scale,
                KV,
                GROUP,
                PADDED,
                D,
                BLOCK_SIZE,
                BLOCK_KEYS,
                MERGE,
                HAS_WINDOW,
                PREFETCH,
                STAGES,
                ORDER,
            )
