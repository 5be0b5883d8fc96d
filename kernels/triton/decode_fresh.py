"""What a decode program does with a projection's own output: keeps the new key and value, turns queries."""

import triton
import triton.language as tl

from kernels.triton.rope_tiles import finite, halves, keep, rotated


@triton.jit
def take_fresh(
    row,
    fresh,
    entry,
    position,
    end,
    kv_head,
    k_scales,
    v_scales,
    stride_k_block: tl.constexpr,
    stride_k_offset: tl.constexpr,
    stride_k_head: tl.constexpr,
    stride_v_block: tl.constexpr,
    stride_v_offset: tl.constexpr,
    stride_v_head: tl.constexpr,
    stride_s_block: tl.constexpr,
    stride_s_offset: tl.constexpr,
    KV: tl.constexpr,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    D: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    ORDER: tl.constexpr,
):
    """The queries of a kv head's group as they are, and the position's rows of the table, for `turned`. The
    unit that ends with the entry's own position has put its key and value into their page by then, where all
    of the program's threads see them; no other unit reads that slot.

    row: the entry's, of the projection. fresh: as kernels.triton.decode.Fresh.arguments has it. k_scales,
    v_scales: of the kv head, or None. Strides of pages: in words of four numbers where there are scales.
    """
    own, other, bias, _, k_weight, slots, k_kept, v_kept, stride_own, stride_other, eps, scale = fresh
    dtype: tl.constexpr = row.dtype.element_ty
    own += position.to(tl.int64) * stride_own
    other += position.to(tl.int64) * stride_other
    member = tl.arange(0, ROWS)[:, None]
    alone = tl.arange(0, 1)[:, None]
    channel = tl.arange(0, D // 2)[None, :]
    left, right = halves(row, bias, (kv_head * GROUP + member) * D + channel, member < GROUP, D, dtype)
    # In every unit, beside the queries: in the one that needs them there is one wait for all.
    head = KV * GROUP + kv_head + alone
    k_left, k_right = halves(row, bias, head * D + channel, alone < 1, D, dtype)
    v_left, v_right = halves(row, bias, (head + KV) * D + channel, alone < 1, D, dtype)
    slot = tl.load(slots + entry)
    if end > position:
        SIZE: tl.constexpr = 4 if k_scales is not None else 1
        block, offset = (slot // BLOCK_SIZE).to(tl.int64), slot % BLOCK_SIZE
        stored = (slot >= 0) & (alone < 1)
        page = k_kept + (block * stride_k_block + offset * stride_k_offset + kv_head * stride_k_head) * SIZE
        place = block * stride_s_block + offset * stride_s_offset + alone
        new_left, new_right = rotated(k_left, k_right, own, other, k_weight, eps, scale, D, ORDER, dtype)
        keep(page + channel, k_scales, place, new_left, new_right, stored, D, dtype)
        page = v_kept + (block * stride_v_block + offset * stride_v_offset + kv_head * stride_v_head) * SIZE
        keep(page + channel, v_scales, place, finite(v_left), finite(v_right), stored, D, dtype)
        tl.debug_barrier()
    return left, right, own, other


@triton.jit
def turned(raw, fresh, D: tl.constexpr, ORDER: tl.constexpr, dtype: tl.constexpr):
    """[ROWS, D]: the queries of `take_fresh` as attention wants them, zeros behind the group's."""
    left, right, own, other = raw
    _, _, _, weight, _, _, _, _, _, _, eps, scale = fresh
    left, right = rotated(left, right, own, other, weight, eps, scale, D, ORDER, dtype)
    both = tl.join(left.to(dtype), right.to(dtype))
    return tl.reshape(tl.permute(both, (0, 2, 1)), [left.shape[0], D])
