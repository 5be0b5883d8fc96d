"""Second half of the sampler: one program turns the groups of an entry into its token."""

import triton
import triton.language as tl

from kernels.triton.parts import begin
from kernels.triton.sampling_filters import (
    LIST,
    collect,
    listed_values,
    mass_threshold,
    philox_uniform,
    pick,
    rank_threshold,
    row_draw,
    row_mass,
    row_threshold,
    weights_of,
)
from kernels.triton.sampling_groups import (
    GROUP,
    TILE_GROUPS,
    group_tops,
    inverse_of,
    regroup,
    row_values,
    wants_sums,
)

NUCLEUS_GUESS = tl.constexpr(64)  # candidates that nearly always hold a nucleus
MOST_COUNTED = tl.constexpr(32767)


@triton.jit
def finish_kernel(
    logits,
    entry_rows,
    entry_positions,
    temperature,
    top_k,
    top_p,
    min_p,
    seed,
    choice,
    stop_count,
    stop_ids,
    penalised,
    output_counts,
    adjusted,
    saved,
    state,
    group_max,
    group_sum,
    raw_max,
    group_list,
    list_ids,
    list_values,
    tokens,
    valid,
    stride_logits,
    stride_stop,
    stride_counts,
    stride_adjusted,
    stride_saved,
    stride_groups,
    softcap,
    VOCAB: tl.constexpr,
    GROUP_BLOCK: tl.constexpr,
    STOP_BLOCK: tl.constexpr,
    FULL: tl.constexpr,
    PDL: tl.constexpr,
):
    """Token and validity of one entry. A padding entry gets token 0, not valid."""
    entry = tl.program_id(0).to(tl.int64)
    begin(PDL)
    row = tl.load(entry_rows + entry).to(tl.int64)
    token, finite = 0, 0
    if row >= 0:
        source = logits + entry * stride_logits
        target, is_adjusted = source, 0
        if FULL:
            target = adjusted + entry * stride_adjusted
            is_adjusted = tl.load(state + entry)
        part = entry * stride_groups
        heat = tl.load(temperature + row)
        limit, least_share = tl.load(top_k + row), tl.load(min_p + row)
        best = tl.max(group_tops(group_max + part, VOCAB, GROUP_BLOCK), axis=0)
        raw = best
        if FULL:
            if is_adjusted != 0:
                raw = tl.max(group_tops(raw_max + part, VOCAB, GROUP_BLOCK), axis=0)
            if (is_adjusted == 2) & (best == float("-inf")):
                _unban(
                    target,
                    stop_ids + row * stride_stop,
                    saved + entry * stride_saved,
                    tl.load(stop_count + row),
                    group_max + part,
                    group_sum + part,
                    wants_sums(heat, limit, least_share, VOCAB),
                    inverse_of(heat),
                    VOCAB,
                    STOP_BLOCK,
                )
                best = tl.max(group_tops(group_max + part, VOCAB, GROUP_BLOCK), axis=0)
        finite = (tl.abs(raw) < float("inf")).to(tl.int32)
        if (heat > 0.0) & (finite != 0) & (tl.abs(best) < float("inf")):
            share = philox_uniform(
                tl.load(seed + row), tl.load(choice + row), tl.load(entry_positions + entry)
            )
            token = _sampled(
                best,
                heat,
                limit,
                tl.load(top_p + row),
                least_share,
                share,
                source,
                target,
                is_adjusted,
                group_max + part,
                group_sum + part,
                group_list + part,
                list_ids + entry * LIST,
                list_values + entry * LIST,
                softcap,
                VOCAB,
                GROUP_BLOCK,
                FULL,
            )
        else:
            token = _greedy(
                best, source, target, is_adjusted, group_max + part, softcap, VOCAB, GROUP_BLOCK, FULL
            )
        if FULL and output_counts is not None and tl.load(penalised + row) != 0:
            counted = output_counts + row * stride_counts + token
            tl.store(counted, tl.minimum(tl.load(counted).to(tl.int32) + 1, MOST_COUNTED).to(tl.int16))
    tl.store(tokens + entry, token)
    tl.store(valid + entry, finite)


@triton.jit
def _greedy(
    best,
    logits,
    adjusted,
    is_adjusted,
    group_max,
    softcap,
    VOCAB: tl.constexpr,
    GROUP_BLOCK: tl.constexpr,
    FULL: tl.constexpr,
):
    """The lowest id that holds the best value."""
    place = tl.arange(0, GROUP_BLOCK)
    here = (group_tops(group_max, VOCAB, GROUP_BLOCK) == best) & (place < (VOCAB + GROUP - 1) // GROUP)
    group = tl.min(tl.where(here, place, (VOCAB - 1) // GROUP), axis=0)
    ids = group * GROUP + tl.arange(0, GROUP)
    x = row_values(logits, adjusted, is_adjusted, ids, ids < VOCAB, softcap, FULL)
    return tl.min(tl.where((x >= best) & (ids < VOCAB), ids, VOCAB - 1), axis=0)


@triton.jit
def _unban(
    adjusted,
    stop_ids,
    saved,
    bans,
    group_max,
    group_sum,
    summed,
    inverse,
    VOCAB: tl.constexpr,
    STOP_BLOCK: tl.constexpr,
):
    """Gives a row its logits back from before the bans: every id was banned, and it must still end."""
    TILES: tl.constexpr = (VOCAB + GROUP * TILE_GROUPS - 1) // (GROUP * TILE_GROUPS)
    listed = tl.arange(0, STOP_BLOCK)
    ids = tl.load(stop_ids + listed, mask=listed < bans, other=-1)
    named = (ids >= 0) & (ids < VOCAB)
    tl.store(adjusted + ids, tl.load(saved + listed, mask=named, other=0.0), mask=named)
    tl.debug_barrier()
    for tile in range(0, TILES):
        regroup(adjusted, group_max, group_sum, tile, summed, inverse, VOCAB)
    tl.debug_barrier()


@triton.jit
def _sampled(
    best,
    heat,
    limit,
    nucleus,
    least_share,
    share,
    logits,
    adjusted,
    is_adjusted,
    group_max,
    group_sum,
    group_list,
    list_ids,
    list_values,
    softcap,
    VOCAB: tl.constexpr,
    GROUP_BLOCK: tl.constexpr,
    FULL: tl.constexpr,
):
    """One draw of a row; returns the id. share: the uniform number."""
    limited = (limit > 0) & (limit < VOCAB)
    floored = least_share > 0.0
    shared = nucleus < 1.0
    mass = share * 0.0
    if shared & ((limited | floored) == 0):
        mass = tl.sum(_masses(group_max, group_sum, best, heat, VOCAB, GROUP_BLOCK), axis=0)
    if limited | floored | shared:
        token = _filtered(
            best,
            heat,
            limited,
            limit,
            shared,
            nucleus,
            _floor(best, heat, least_share),
            mass,
            share,
            logits,
            adjusted,
            is_adjusted,
            group_max,
            group_list,
            list_ids,
            list_values,
            softcap,
            VOCAB,
            GROUP_BLOCK,
            FULL,
        )
    else:
        masses = _masses(group_max, group_sum, best, heat, VOCAB, GROUP_BLOCK)
        group, rest = pick(masses, share, GROUP_BLOCK)
        ids = group * GROUP + tl.arange(0, GROUP)
        x = row_values(logits, adjusted, is_adjusted, ids, ids < VOCAB, softcap, FULL)
        chosen, _rest = pick(weights_of(x, best, heat), rest, GROUP)
        token = group * GROUP + chosen
    return token


@triton.jit
def _masses(group_max, group_sum, best, heat, VOCAB: tl.constexpr, GROUP_BLOCK: tl.constexpr):
    """Mass of each group relative to the row's best, float64."""
    place = tl.arange(0, GROUP_BLOCK)
    sums = tl.load(group_sum + place, mask=place < (VOCAB + GROUP - 1) // GROUP, other=0.0)
    apart = (group_tops(group_max, VOCAB, GROUP_BLOCK) - best) * inverse_of(heat)
    return sums.to(tl.float64) * tl.exp(apart).to(tl.float64)


@triton.jit
def _floor(best, heat, least_share):
    """The least float32 value that min_p keeps: (value - best) / temperature >= log(min_p)."""
    exact = best.to(tl.float64) + heat.to(tl.float64) * tl.log(tl.maximum(least_share, 1e-45).to(tl.float64))
    near = exact.to(tl.float32)
    bits = near.to(tl.int32, bitcast=True)
    # The next number up: from a negative one towards zero, and from either zero to the least positive one.
    above = tl.where(near == 0.0, 1, tl.where(bits < 0, bits - 1, bits + 1)).to(tl.float32, bitcast=True)
    floor = tl.where(near.to(tl.float64) < exact, above, near)
    return tl.where(least_share > 0.0, floor, float("-inf"))


@triton.jit
def _filtered(
    best,
    heat,
    limited,
    limit,
    shared,
    nucleus,
    floor,
    mass,
    share,
    logits,
    adjusted,
    is_adjusted,
    group_max,
    group_list,
    list_ids,
    list_values,
    softcap,
    VOCAB: tl.constexpr,
    GROUP_BLOCK: tl.constexpr,
    FULL: tl.constexpr,
):
    """A draw under top-k, top-p, min-p. mass: of the whole row, where only top-p is on, else unused."""
    GROUPS: tl.constexpr = (VOCAB + GROUP - 1) // GROUP
    only_shared = (limited == 0) & (floor == float("-inf"))
    nucleus64 = nucleus.to(tl.float64)
    wanted = nucleus64 * mass
    # `need` groups reach the bound, so at least as many ids do.
    need = tl.where(limited, limit, tl.where(only_shared, tl.minimum(NUCLEUS_GUESS, GROUPS), 0))
    found, held, bound, more = 0, wanted, floor, True
    while more:
        bound = floor
        tops = group_tops(group_max, VOCAB, GROUP_BLOCK)
        # Fewer groups than needed cannot tell.
        if (need > 0) & (tl.sum((tops > float("-inf")).to(tl.int32), axis=0) >= need):
            bound = tl.maximum(floor, rank_threshold(tops, best, need, need // 4))
        found = collect(
            tops,
            bound,
            logits,
            adjusted,
            is_adjusted,
            group_list,
            list_ids,
            list_values,
            softcap,
            VOCAB,
            GROUP_BLOCK,
            FULL,
        )
        more = False
        if only_shared:
            held = tl.sum(weights_of(listed_values(list_values, found), best, heat), axis=0)
            if (held < wanted) & (found <= LIST) & (need < GROUPS * 3 // 4):
                need = GROUPS * 3 // 4
                more = True
    if (found <= LIST) & ((only_shared == 0) | (held >= wanted)):
        values = listed_values(list_values, found)
        weights = weights_of(values, best, heat)
        if limited:
            weights = tl.where(values >= rank_threshold(values, best, limit, 0), weights, 0.0)
        if shared:
            if only_shared == 0:
                wanted = nucleus64 * tl.sum(weights, axis=0)
            weights = tl.where(values >= mass_threshold(values, weights, best, wanted), weights, 0.0)
        place, _rest = pick(weights, share, LIST)
        token = tl.load(list_ids + place)
    else:
        token = _filtered_row(
            best,
            heat,
            limited,
            limit,
            shared,
            nucleus64,
            floor,
            share,
            logits,
            adjusted,
            is_adjusted,
            softcap,
            VOCAB,
            FULL,
        )
    return token


@triton.jit
def _filtered_row(
    best,
    heat,
    limited,
    limit,
    shared,
    nucleus,
    floor,
    share,
    logits,
    adjusted,
    is_adjusted,
    softcap,
    VOCAB: tl.constexpr,
    FULL: tl.constexpr,
):
    """The same over the whole row, for what no list holds."""
    inverse = inverse_of(heat)
    bound = floor
    if limited:
        need64 = limit.to(tl.float64)
        lowest = tl.minimum(best, -3.4028234e38)
        ranked = row_threshold(
            logits, adjusted, is_adjusted, lowest, best, need64, inverse, softcap, VOCAB, False, FULL
        )
        bound = tl.maximum(floor, ranked)
    if shared:
        mass = row_mass(logits, adjusted, is_adjusted, best, bound, inverse, softcap, VOCAB, FULL)
        # Whatever lies below this holds less than 1 - top_p of the mass, even all of it together.
        spare = tl.maximum((1.0 - nucleus) * mass * (0.5 / VOCAB), 1e-300)
        low = (best.to(tl.float64) + heat.to(tl.float64) * tl.log(spare)).to(tl.float32)
        low = tl.maximum(tl.maximum(low, bound), -3.4028234e38)
        wanted = nucleus * mass
        bound = row_threshold(
            logits, adjusted, is_adjusted, low, best, wanted, inverse, softcap, VOCAB, True, FULL
        )
    return row_draw(logits, adjusted, is_adjusted, best, bound, inverse, share, softcap, VOCAB, FULL)
