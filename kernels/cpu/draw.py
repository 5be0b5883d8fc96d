"""Drawing a token from a row of logits, inside the compiled step: what kernels.sampling does for rows without
logprobs, biases and bans.

Without fast mathematics: numbers are added in the order of their ids and divided as torch does it, so that a
row's token is the reference's, but for the last bit of an exponential.
"""

import math

import numpy as np
from numba import njit

from kernels.cpu.machine import (
    load_f32,
    load_f64,
    load_i32,
    load_i64,
    load_u8,
    store_f64,
    store_i32,
    store_i64,
)
from kernels.cpu.program import Draw, DrawNumber

exact = njit(  # type: ignore[call-overload, unused-ignore]
    nogil=True, error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True
)

LOW, TO_HIGH = np.uint64(0xFFFFFFFF), np.uint64(32)
FIRST, SECOND = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
WEYL, OTHER_WEYL = 0x9E3779B9, 0xBB67AE85
ROUNDS = 10
# The least weight that the nucleus can have is found with this much to spare for rounding.
SPARE = 1 - 1e-6


@exact
def uniform(seed, choice, position):
    """A number in [0, 1): kernels.philox.uniform for one row."""
    key, other_key = np.uint64(seed) & LOW, np.uint64(seed) >> TO_HIGH
    c0, c1, c2, c3 = np.uint64(position), np.uint64(choice), np.uint64(0), np.uint64(0)
    for round in range(ROUNDS):
        product, other = c0 * FIRST, c2 * SECOND
        c0 = (other >> TO_HIGH) ^ c1 ^ ((key + np.uint64(round * WEYL & 0xFFFFFFFF)) & LOW)
        c1 = other & LOW
        c2 = (product >> TO_HIGH) ^ c3 ^ ((other_key + np.uint64(round * OTHER_WEYL & 0xFFFFFFFF)) & LOW)
        c3 = product & LOW
    return np.float64((c0 << np.uint64(21)) | (c1 >> np.uint64(11))) * 2.0**-53


@exact
def draw(logits, vocabulary, record, numbers, scratch, chosen):
    """logits: [vocabulary] float32, without a NaN unless `chosen` says so. record, numbers: see Draw and
    DrawNumber. scratch: 24 bytes for each id. chosen: int64, in: the best id or -1, which stays; out: the
    token, which the row's counts then hold once more.
    """
    if load_i64(chosen, 0) < 0:
        return
    temperature, counts = load_f64(numbers, DrawNumber.TEMPERATURE), load_i64(record, Draw.COUNTS)
    if temperature == 0 and counts == 0:
        return
    best = _adjusted(logits, vocabulary, record, numbers, scratch)
    if temperature > 0:
        best = _drawn(vocabulary, record, numbers, load_f64(scratch, best), scratch)
    store_i64(chosen, 0, best)
    if counts != 0:
        store_i32(counts, best, np.int32(load_i32(counts, best) + 1))


@exact
def _adjusted(logits, vocabulary, record, numbers, out):
    """Logits with their penalties, over the temperature if there is one, to `out`; the lowest of the best."""
    seen, counts = load_i64(record, Draw.SEEN), load_i64(record, Draw.COUNTS)
    repetition = np.float32(load_f64(numbers, DrawNumber.REPETITION))
    presence = np.float32(load_f64(numbers, DrawNumber.PRESENCE))
    frequency = np.float32(load_f64(numbers, DrawNumber.FREQUENCY))
    temperature = load_f64(numbers, DrawNumber.TEMPERATURE)
    if temperature == 0:
        temperature = 1.0
    best, most = np.int64(0), -np.inf
    for i in range(vocabulary):
        value = load_f32(logits, i)
        if counts != 0:
            count = load_i32(counts, i)
            if count > 0 or load_u8(seen, i) != 0:
                value = value / repetition if value > 0 else value * repetition
            value = np.float32(value - np.float32(frequency * np.float32(count)))
            if count > 0:
                value = np.float32(value - presence)
        over = np.float64(value) / temperature
        store_f64(out, i, over)
        if over > most:
            best, most = np.int64(i), over
    return best


@exact
def _drawn(vocabulary, record, numbers, most, scaled):
    """The id that the row's random number stands for among those that pass the filters."""
    weights, room = scaled + 8 * vocabulary, scaled + 16 * vocabulary
    for i in range(vocabulary):
        store_f64(scaled, i, load_f64(scaled, i) - most)
    threshold = load_f64(numbers, DrawNumber.LOG_MIN_P)
    top_k, top_p = load_i64(record, Draw.TOP_K), load_f64(numbers, DrawNumber.TOP_P)
    if 0 < top_k < vocabulary:
        threshold = max(threshold, _kth(scaled, vocabulary, top_k, room))
    total = _weigh(scaled, vocabulary, threshold, weights)
    if top_p < 1:
        least = _nucleus(scaled, weights, vocabulary, top_p, total, room)
        if least > threshold:
            threshold = least
            total = _weigh(scaled, vocabulary, threshold, weights)
    target = total * uniform(
        load_i64(record, Draw.SEED), load_i64(record, Draw.CHOICE), load_i64(record, Draw.POSITION)
    )
    reached = 0.0
    for i in range(vocabulary):
        reached += load_f64(weights, i)
        if reached > target:
            return np.int64(i)
    return np.int64(vocabulary - 1)


@exact
def _weigh(scaled, vocabulary, threshold, weights):
    """The exponentials of what is not below the threshold, 0 for the rest; returns their sum."""
    total = 0.0
    for i in range(vocabulary):
        value, weight = load_f64(scaled, i), 0.0
        if value >= threshold:
            weight = math.exp(value)
        store_f64(weights, i, weight)
        total += weight
    return total


@exact
def _kth(scaled, vocabulary, k, heap):
    """The k-th largest; the k largest so far are a heap, the least of them on top."""
    for i in range(k):
        store_f64(heap, i, -load_f64(scaled, i))
    for i in range(k // 2 - 1, -1, -1):
        _sink(heap, i, k)
    top = -load_f64(heap, 0)
    for i in range(k, vocabulary):
        value = load_f64(scaled, i)
        if value > top:
            store_f64(heap, 0, -value)
            _sink(heap, 0, k)
            top = -load_f64(heap, 0)
    return top


@exact
def _nucleus(scaled, weights, vocabulary, top_p, total, heap):
    """The least of the smallest set of largest that holds a share top_p of `total`.

    Ids of a weight below `cut` weigh less than 1 - top_p together, so the nucleus has none of them.
    """
    wanted, cut = top_p * total, (1 - top_p) * total / vocabulary * SPARE
    count = 0
    for i in range(vocabulary):
        weight = load_f64(weights, i)
        if weight > 0 and weight >= cut:
            store_f64(heap, count, load_f64(scaled, i))
            count += 1
    for i in range(count // 2 - 1, -1, -1):
        _sink(heap, i, count)
    mass, least = 0.0, load_f64(heap, 0)
    while count > 0:
        least = load_f64(heap, 0)
        mass += math.exp(least)
        if mass >= wanted:
            break
        count -= 1
        store_f64(heap, 0, load_f64(heap, count))
        _sink(heap, 0, count)
    return least


@exact
def _sink(heap, at, count):
    """Moves a number down until none below it is larger."""
    value = load_f64(heap, at)
    while True:
        child = 2 * at + 1
        if child >= count:
            break
        if child + 1 < count and load_f64(heap, child + 1) > load_f64(heap, child):
            child += 1
        if load_f64(heap, child) <= value:
            break
        store_f64(heap, at, load_f64(heap, child))
        at = child
    store_f64(heap, at, value)
