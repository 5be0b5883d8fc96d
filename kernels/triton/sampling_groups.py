"""First half of the sampler: what each group of 64 neighbouring ids holds, and the adjusted logits of rows
that have penalties, biases, masks or bans.

A group's largest value says whether any of its ids can pass a filter, so what follows looks at some dozen
groups and not at the vocabulary. Groups do not depend on how many programs share a row, so a row's bits do
not depend on its company.
"""

import triton
import triton.language as tl

from kernels.triton.parts import begin

GROUP = tl.constexpr(64)  # ids
TILE_GROUPS = tl.constexpr(32)  # groups that one program looks at together


@triton.jit
def soft_capped(x, cap):
    """cap * tanh(x / cap) within 2e-7 * cap. Infinite numbers stay: they mark what is broken."""
    ratio = tl.abs(x) * (1.0 / cap)
    square = ratio * ratio
    power = tl.exp(-2.0 * ratio)
    # Below 0.1 the quotient would cancel; four terms of the series are exact to float32 there.
    series = ratio * (1.0 + square * (-1.0 / 3 + square * (2.0 / 15 + square * (-17.0 / 315))))
    value = cap * tl.where(ratio < 0.1, series, (1.0 - power) / (1.0 + power))
    value = tl.where(x < 0.0, -value, value)
    return tl.where(tl.abs(x) == float("inf"), x, value)


@triton.jit
def raw_values(logits, ids, inside, softcap):
    """A row's logits, float32: soft-capped where softcap is given, NaN as inf, -inf where not inside."""
    x = tl.load(logits + ids, mask=inside, other=float("-inf")).to(tl.float32)
    x = tl.where(x != x, float("inf"), x)
    if softcap is not None:
        x = soft_capped(x, softcap)
    return x


@triton.jit
def row_values(logits, adjusted, is_adjusted, ids, inside, softcap, FULL: tl.constexpr):
    """What a row samples from: its adjusted logits if it has such, else its raw ones."""
    if FULL:
        raw = raw_values(logits, ids, inside & (is_adjusted == 0), softcap)
        other = tl.load(adjusted + ids, mask=inside & (is_adjusted != 0), other=float("-inf"))
        return tl.where(is_adjusted != 0, other, raw)
    return raw_values(logits, ids, inside, softcap)


@triton.jit
def inverse_of(temperature):
    """1 / temperature, finite, so that 0 times it is 0."""
    return (1.0 / tl.maximum(temperature, 1e-30).to(tl.float64)).to(tl.float32)


@triton.jit
def group_sums(x, top, inverse):
    """Sum of exp((x - top) * inverse) over the ids of each group. x: [groups, ids]. top: [groups]."""
    start = tl.where(top == float("-inf"), 0.0, top)
    return tl.sum(tl.exp((x - start[:, None]) * inverse), axis=1)


@triton.jit
def group_tops(group_max, VOCAB: tl.constexpr, GROUP_BLOCK: tl.constexpr):
    """The largest value of each group. Load it where it is used: held all along it takes many registers."""
    place = tl.arange(0, GROUP_BLOCK)
    exists = place < (VOCAB + GROUP - 1) // GROUP
    return tl.load(group_max + place, mask=exists, other=float("-inf"))


@triton.jit
def wants_sums(temperature, top_k, min_p, VOCAB: tl.constexpr):
    """Whether a row needs the mass of the whole vocabulary: it draws, and neither top-k nor min-p is on."""
    return (temperature > 0.0) & ((top_k <= 0) | (top_k >= VOCAB)) & (min_p <= 0.0)


@triton.jit(do_not_specialize=["tiles_each"])
def groups_kernel(
    logits,
    entry_rows,
    temperature,
    top_k,
    min_p,
    logprobs,
    group_max,
    group_sum,
    raw_max,
    raw_sum,
    stride_logits,
    stride_groups,
    softcap,
    tiles_each,
    VOCAB: tl.constexpr,
    FULL: tl.constexpr,
    PDL: tl.constexpr,
):
    """Per group of the raw logits: the largest, and the mass relative to it for rows that need it. Grid:
    parts of the vocabulary, entries."""
    GROUPS: tl.constexpr = (VOCAB + GROUP - 1) // GROUP
    TILES: tl.constexpr = (GROUPS + TILE_GROUPS - 1) // TILE_GROUPS
    TILE: tl.constexpr = TILE_GROUPS * GROUP
    entry = tl.program_id(1).to(tl.int64)
    begin(PDL)
    row = tl.load(entry_rows + entry)
    if row >= 0:
        heat = tl.load(temperature + row)
        summed = wants_sums(heat, tl.load(top_k + row), tl.load(min_p + row), VOCAB)
        inverse = inverse_of(heat)
        reported = False
        if FULL:
            reported = tl.load(logprobs + row) >= 0
        source = logits + entry * stride_logits
        first = tl.program_id(0) * tiles_each
        lane = tl.arange(0, TILE_GROUPS)
        offset = lane[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
        for tile in range(first, tl.minimum(first + tiles_each, TILES)):
            ids = tile * TILE + offset
            if (tile + 1) * TILE <= VOCAB:  # without a mask, loads are wide whatever the vocabulary
                x = tl.load(source + ids).to(tl.float32)
            else:
                x = tl.load(source + ids, mask=ids < VOCAB, other=float("-inf")).to(tl.float32)
            x = tl.where(x != x, float("inf"), x)
            top = tl.max(x, axis=1)
            if softcap is not None:  # never decreasing, so the largest stays the largest
                top = soft_capped(top, softcap)
            group = tile * TILE_GROUPS + lane
            place = entry * stride_groups + group
            exists = group < GROUPS
            tl.store(group_max + place, top, mask=exists)
            if FULL:
                tl.store(raw_max + place, top, mask=exists)
            if summed | reported:
                if softcap is not None:
                    x = soft_capped(x, softcap)
                if summed:
                    tl.store(group_sum + place, group_sums(x, top, inverse), mask=exists)
                if reported:
                    tl.store(raw_sum + place, group_sums(x, top, 1.0), mask=exists)


@triton.jit(do_not_specialize=["tiles_each"])
def adjust_kernel(
    logits,
    entry_rows,
    entry_positions,
    temperature,
    top_k,
    min_p,
    repetition,
    presence,
    frequency,
    min_position,
    stop_count,
    stop_ids,
    bias_count,
    bias_ids,
    bias_values,
    penalised,
    masked,
    masks,
    prompt_seen,
    output_counts,
    adjusted,
    saved,
    state,
    group_max,
    group_sum,
    stride_logits,
    stride_stop,
    stride_bias,
    stride_masks,
    stride_counts,
    stride_adjusted,
    stride_saved,
    stride_groups,
    softcap,
    tiles_each,
    VOCAB: tl.constexpr,
    STOP_BLOCK: tl.constexpr,
    BIAS_BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """Bias, penalties, masks and bans of rows that have some, and their groups anew. Grid as groups_kernel.

    state: [entries], 0 where the raw logits are sampled from, 1 where the adjusted ones are, 2 with bans in
    them. saved: what the banned ids had before.
    """
    GROUPS: tl.constexpr = (VOCAB + GROUP - 1) // GROUP
    TILES: tl.constexpr = (GROUPS + TILE_GROUPS - 1) // TILE_GROUPS
    TILE: tl.constexpr = TILE_GROUPS * GROUP
    entry = tl.program_id(1).to(tl.int64)
    begin(PDL)
    row = tl.load(entry_rows + entry).to(tl.int64)
    if row >= 0:
        first = tl.program_id(0) * tiles_each
        last = tl.minimum(first + tiles_each, TILES)
        biases = tl.load(bias_count + row)
        counted = tl.load(penalised + row) != 0
        formed = tl.load(masked + row) != 0
        bans = tl.load(stop_count + row)
        bans = tl.where(tl.load(entry_positions + entry) < tl.load(min_position + row), bans, 0)
        touched = (biases > 0) | counted | formed | (bans > 0)
        if tl.program_id(0) == 0:
            tl.store(state + entry, tl.where(bans > 0, 2, touched.to(tl.int32)))
        if touched:
            source = logits + entry * stride_logits
            target = adjusted + entry * stride_adjusted
            lane = tl.arange(0, TILE)
            for tile in range(first, last):
                ids = tile * TILE + lane
                x = raw_values(source, ids, ids < VOCAB, softcap)
                tl.store(target + ids, x, mask=ids < VOCAB)
            if biases > 0:
                tl.debug_barrier()
                listed = tl.arange(0, BIAS_BLOCK)
                named = listed < biases
                ids = tl.load(bias_ids + row * stride_bias + listed, mask=named, other=-1)
                named = named & (ids >= first * TILE) & (ids < tl.minimum(last * TILE, VOCAB))
                value = tl.load(bias_values + row * stride_bias + listed, mask=named, other=0.0)
                # Each id is named once, so no two lanes meet.
                tl.store(target + ids, tl.load(target + ids, mask=named, other=0.0) + value, mask=named)
            if output_counts is not None and counted:
                tl.debug_barrier()
                again, once, often = (
                    tl.load(repetition + row),
                    tl.load(presence + row),
                    tl.load(frequency + row),
                )
                for tile in range(first, last):
                    ids = tile * TILE + lane
                    inside = ids < VOCAB
                    x = tl.load(target + ids, mask=inside, other=0.0)
                    x = _penalised(
                        x,
                        tl.load(prompt_seen + row * stride_counts + ids, mask=inside, other=0),
                        tl.load(output_counts + row * stride_counts + ids, mask=inside, other=0),
                        again,
                        once,
                        often,
                    )
                    tl.store(target + ids, x, mask=inside)
            if formed:
                tl.debug_barrier()
                for tile in range(first, last):
                    ids = tile * TILE + lane
                    inside = ids < VOCAB
                    word = tl.load(masks + row * stride_masks + ids // 32, mask=inside, other=0)
                    x = tl.load(target + ids, mask=inside, other=0.0)
                    x = tl.where(((word >> (ids % 32)) & 1) != 0, x, float("-inf"))
                    tl.store(target + ids, x, mask=inside)
            tl.debug_barrier()
            if bans > 0:
                listed = tl.arange(0, STOP_BLOCK)
                ids = tl.load(stop_ids + row * stride_stop + listed, mask=listed < bans, other=-1)
                named = (ids >= first * TILE) & (ids < tl.minimum(last * TILE, VOCAB))
                before = tl.load(target + ids, mask=named, other=0.0)
                tl.store(saved + entry * stride_saved + listed, before, mask=named)
                tl.debug_barrier()  # an id may be listed twice
                tl.store(target + ids, tl.full([STOP_BLOCK], float("-inf"), tl.float32), mask=named)
                tl.debug_barrier()
            heat = tl.load(temperature + row)
            summed = wants_sums(heat, tl.load(top_k + row), tl.load(min_p + row), VOCAB)
            part = entry * stride_groups
            for tile in range(first, last):
                regroup(target, group_max + part, group_sum + part, tile, summed, inverse_of(heat), VOCAB)


@triton.jit
def _penalised(x, seen, count, again, once, often):
    """The penalties in the reference's order. seen: in the prompt; count: how often in the output."""
    count = count.to(tl.float32)
    sampled = count > 0.0
    factor = tl.where((seen != 0) | sampled, again, 1.0)
    x = tl.where(x > 0.0, tl.div_rn(x, factor), x * factor)
    x = x - often * count
    return x - once * sampled.to(tl.float32)


@triton.jit
def regroup(adjusted, group_max, group_sum, tile, summed, inverse, VOCAB: tl.constexpr):
    """Maxima and masses of one tile's groups from a row of adjusted logits; pointers are to the row's own."""
    GROUPS: tl.constexpr = (VOCAB + GROUP - 1) // GROUP
    group = tile * TILE_GROUPS + tl.arange(0, TILE_GROUPS)
    ids = group[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    x = tl.load(adjusted + ids, mask=ids < VOCAB, other=float("-inf"))
    top = tl.max(x, axis=1)
    tl.store(group_max + group, top, mask=group < GROUPS)
    if summed:
        tl.store(group_sum + group, group_sums(x, top, inverse), mask=group < GROUPS)
