"""Counter-based random numbers: Philox4x32-10, vectorised with numpy.

One draw is a pure function of (seed, choice, position), so a row's samples depend on nothing but its own
request. Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

import numpy as np
import numpy.typing as npt

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)
_LOW = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)
_ROUNDS = 10

Words = npt.NDArray[np.uint64]


def philox(seed: Words, counter: tuple[Words, Words, Words, Words]) -> tuple[Words, Words, Words, Words]:
    """Four 32-bit words (in uint64 arrays) for each 64-bit seed and four-word counter."""
    key0, key1 = seed & _LOW, seed >> _SHIFT
    c0, c1, c2, c3 = counter
    for round in range(_ROUNDS):
        product0, product1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            (product1 >> _SHIFT) ^ c1 ^ ((key0 + np.uint64(round * _WEYL[0] & 0xFFFFFFFF)) & _LOW),
            product1 & _LOW,
            (product0 >> _SHIFT) ^ c3 ^ ((key1 + np.uint64(round * _WEYL[1] & 0xFFFFFFFF)) & _LOW),
            product0 & _LOW,
        )
    return c0, c1, c2, c3


def uniform(
    seeds: npt.NDArray[np.int64], choices: npt.NDArray[np.int64], positions: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    """One number in [0, 1) with 53 random bits for each (seed, choice, position), all three [rows]."""
    zero = np.zeros(len(seeds), dtype=np.uint64)
    counter = (positions.astype(np.uint64), choices.astype(np.uint64), zero, zero)
    high, low, _, _ = philox(seeds.view(np.uint64), counter)
    return ((high << np.uint64(21)) | (low >> np.uint64(11))).astype(np.float64) * 2.0**-53
