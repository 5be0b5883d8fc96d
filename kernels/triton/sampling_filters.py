"""Thresholds and draws over numbers that one program holds, or over a row that it walks; no sort anywhere.

Thresholds are found by bisection. What is compared are the values themselves, so ties stay or go together.
Weights are exp((value - best) / temperature).
"""

import triton
import triton.language as tl

from kernels.triton.sampling_groups import GROUP, row_values

LIST = tl.constexpr(2048)  # candidates that a program can hold
ROW_TILE = tl.constexpr(2048)  # ids of one round over a whole row


@triton.jit
def philox_uniform(seed, choice, position):
    """The number that kernels.philox.uniform gives, float64: 53 bits of Philox4x32-10."""
    high, low, _c2, _c3 = tl.philox(seed, position.to(tl.uint32), choice.to(tl.uint32), 0, 0, n_rounds=10)
    bits = (high.to(tl.int64) << 21) | (low.to(tl.int64) >> 11)
    return bits.to(tl.float64) * (1.0 / 9007199254740992.0)


@triton.jit
def _key(x):
    """An integer for a float32 number, in the same order, as int64."""
    bits = x.to(tl.int32, bitcast=True)
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(tl.int64)


@triton.jit
def _number(key):
    """The number that a key stands for."""
    bits = key.to(tl.int32)
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(tl.float32, bitcast=True)


@triton.jit
def rank_threshold(values, best, need, slack):
    """A number that at least `need` values reach, and no more than need + slack unless they tie; the least
    value where fewer are finite. -inf among the values stands for nothing. best: the largest."""
    least = tl.min(tl.where(values > float("-inf"), values, best), axis=0)
    low, high = _key(least), _key(best) + 1
    count = tl.sum((values >= least).to(tl.int32), axis=0)
    while (high - low > 1) & (count > need + slack):
        middle = low + (high - low) // 2
        reaching = tl.sum((values >= _number(middle)).to(tl.int32), axis=0)
        enough = reaching >= need
        low = tl.where(enough, middle, low)
        count = tl.where(enough, reaching, count)
        high = tl.where(enough, high, middle)
    return _number(low)


@triton.jit
def mass_threshold(values, weights, best, wanted):
    """The largest number such that the weights, float64, of the values that reach it sum up to `wanted`."""
    least = tl.min(tl.where(weights > 0.0, values, best), axis=0)
    low, high = _key(least), _key(best) + 1
    while high - low > 1:
        middle = low + (high - low) // 2
        enough = tl.sum(tl.where(values >= _number(middle), weights, 0.0), axis=0) >= wanted
        low = tl.where(enough, middle, low)
        high = tl.where(enough, high, middle)
    return _number(low)


@triton.jit
def weights_of(values, best, temperature):
    """float64, so that a list of candidates is filtered and drawn from as the reference does it."""
    return tl.exp((values.to(tl.float64) - best.to(tl.float64)) / temperature.to(tl.float64))


@triton.jit
def pick(weights, share, SIZE: tl.constexpr):
    """The first place whose running sum exceeds share * sum, and how far into its own weight that is."""
    place = tl.arange(0, SIZE)
    running = tl.cumsum(weights, axis=0)
    target = share * tl.max(running, axis=0)
    possible = weights > 0.0
    # The last possible one, should rounding have put the target behind the end.
    last = tl.max(tl.where(possible, place, 0), axis=0)
    chosen = tl.min(tl.where(possible & (running > target), place, last), axis=0)
    own = tl.sum(tl.where(place == chosen, weights, 0.0), axis=0)
    before = tl.sum(tl.where(place == chosen, running - weights, 0.0), axis=0)
    return chosen, tl.minimum(tl.maximum((target - before) / own, 0.0), 1.0)


@triton.jit
def collect(
    tops,
    bound,
    logits,
    adjusted,
    is_adjusted,
    group_list,
    list_ids,
    list_values,
    softcap,
    VOCAB: tl.constexpr,
    GROUP_BLOCK: tl.constexpr,
    FULL: tl.constexpr,
):
    """Lists every id whose value reaches the bound, in order; returns how many there are.

    Those beyond LIST are counted and not listed. tops: [GROUP_BLOCK], the largest value of each group.
    """
    tl.debug_barrier()  # an earlier list may still be in use
    chosen = (tops >= bound) & (tops > float("-inf"))
    count = tl.sum(chosen.to(tl.int32), axis=0)
    listed_group = group_list + tl.cumsum(chosen.to(tl.int32), axis=0) - 1
    tl.store(listed_group, tl.arange(0, GROUP_BLOCK), mask=chosen)
    tl.debug_barrier()
    found = 0
    for start in range(0, count * GROUP, LIST):
        index = start + tl.arange(0, LIST)
        inside = index < count * GROUP
        ids = tl.load(group_list + index // GROUP, mask=inside, other=0) * GROUP + index % GROUP
        inside = inside & (ids < VOCAB)
        x = row_values(logits, adjusted, is_adjusted, ids, inside, softcap, FULL)
        kept = (x >= bound) & (x > float("-inf"))
        place = found + tl.cumsum(kept.to(tl.int32), axis=0) - 1
        listed = kept & (place < LIST)
        tl.store(list_ids + place, ids, mask=listed)
        tl.store(list_values + place, x, mask=listed)
        found += tl.sum(kept.to(tl.int32), axis=0)
    tl.debug_barrier()
    return found


@triton.jit
def listed_values(list_values, found):
    place = tl.arange(0, LIST)
    return tl.load(list_values + place, mask=place < found, other=float("-inf"))


# What follows walks the whole row, for what no list can hold: a flat distribution under top-p, a very large
# top-k, hundreds of ties. Right for every row, at some microseconds for each round.


@triton.jit
def row_mass(
    logits, adjusted, is_adjusted, best, bound, inverse, softcap, VOCAB: tl.constexpr, FULL: tl.constexpr
):
    """Sum of the weights of the values that reach the bound, float64."""
    lane = tl.arange(0, ROW_TILE)
    mass = tl.zeros([ROW_TILE], tl.float64)
    for start in range(0, VOCAB, ROW_TILE):
        ids = start + lane
        x = row_values(logits, adjusted, is_adjusted, ids, ids < VOCAB, softcap, FULL)
        mass += tl.where(x >= bound, tl.exp((x - best) * inverse), 0.0).to(tl.float64)
    return tl.sum(mass, axis=0)


@triton.jit
def row_threshold(
    logits,
    adjusted,
    is_adjusted,
    low,
    best,
    need,
    inverse,
    softcap,
    VOCAB: tl.constexpr,
    BY_MASS: tl.constexpr,
    FULL: tl.constexpr,
):
    """The largest value such that the values that reach it are `need`, or hold that mass; low: known to do.

    Each round tries three numbers between the ends, and the last is when one distinct value is left. They lie
    evenly between the ends, which suits logits, and every other time evenly among the float32 numbers, which
    comes to an end whatever the values.
    """
    lane = tl.arange(0, ROW_TILE)
    high = _number(_key(best) + 1)
    lowest, highest = low, high
    turn = 0
    while lowest < highest:
        step = tl.maximum((_key(high) - _key(low)) // 4, 1)
        evenly = turn % 2 == 0
        first = tl.where(evenly, low * 0.75 + high * 0.25, _number(_key(low) + step))
        second = tl.where(evenly, low * 0.5 + high * 0.5, _number(_key(low) + 2 * step))
        third = tl.where(evenly, low * 0.25 + high * 0.75, _number(_key(low) + 3 * step))
        first = tl.minimum(tl.maximum(first, low), high)
        second = tl.minimum(tl.maximum(second, low), high)
        third = tl.minimum(tl.maximum(third, low), high)
        at_first = tl.zeros([ROW_TILE], tl.float64)
        at_second = tl.zeros([ROW_TILE], tl.float64)
        at_third = tl.zeros([ROW_TILE], tl.float64)
        smallest = tl.full([ROW_TILE], float("inf"), tl.float32)
        largest = tl.full([ROW_TILE], float("-inf"), tl.float32)
        for start in range(0, VOCAB, ROW_TILE):
            ids = start + lane
            x = row_values(logits, adjusted, is_adjusted, ids, ids < VOCAB, softcap, FULL)
            weight = tl.where(x > float("-inf"), 1.0, 0.0)
            if BY_MASS:
                weight = tl.exp((x - best) * inverse)
            at_first += tl.where(x >= first, weight, 0.0).to(tl.float64)
            at_second += tl.where(x >= second, weight, 0.0).to(tl.float64)
            at_third += tl.where(x >= third, weight, 0.0).to(tl.float64)
            smallest = tl.minimum(smallest, tl.where(x >= low, x, float("inf")))
            largest = tl.maximum(largest, tl.where(x < high, x, float("-inf")))
        lowest, highest = tl.min(smallest, axis=0), tl.max(largest, axis=0)
        enough_first = tl.sum(at_first, axis=0) >= need
        enough_second = tl.sum(at_second, axis=0) >= need
        enough_third = tl.sum(at_third, axis=0) >= need
        high = tl.where(
            enough_third, high, tl.where(enough_second, third, tl.where(enough_first, second, first))
        )
        low = tl.where(
            enough_third, third, tl.where(enough_second, second, tl.where(enough_first, first, low))
        )
        turn += 1
    return lowest


@triton.jit
def row_draw(
    logits,
    adjusted,
    is_adjusted,
    best,
    bound,
    inverse,
    share,
    softcap,
    VOCAB: tl.constexpr,
    FULL: tl.constexpr,
):
    """Draws from the whole row what reaches the bound: finds the tile first, then the id in it."""
    mass = row_mass(logits, adjusted, is_adjusted, best, bound, inverse, softcap, VOCAB, FULL)
    target = share * mass
    lane = tl.arange(0, ROW_TILE)
    before = target * 0.0
    # Of the tile in which the target lies, else, should rounding have put it behind the end, of the last one.
    tile, part, chosen = 0, before + 1.0, 0
    for index in range(0, (VOCAB + ROW_TILE - 1) // ROW_TILE):
        if chosen == 0:
            ids = index * ROW_TILE + lane
            x = row_values(logits, adjusted, is_adjusted, ids, ids < VOCAB, softcap, FULL)
            weight = tl.where(x >= bound, tl.exp((x - best) * inverse), 0.0).to(tl.float64)
            held = tl.sum(weight, axis=0)
            if held > 0.0:
                tile = index
                if before + held > target:
                    part = (target - before) / held
                    chosen = 1
            before += held
    ids = tile * ROW_TILE + lane
    x = row_values(logits, adjusted, is_adjusted, ids, ids < VOCAB, softcap, FULL)
    weight = tl.where(x >= bound, tl.exp((x - best) * inverse), 0.0).to(tl.float64)
    place, _rest = pick(weight, part, ROW_TILE)
    return tile * ROW_TILE + place
