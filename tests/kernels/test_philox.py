"""Known answers and independence of the counter-based generator."""

import numpy as np
import pytest

from kernels.philox import philox, uniform

# The vectors published with Random123 for philox4x32-10: key, counter and result words.
KNOWN = [
    ((0, 0), (0, 0, 0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 2, (0xFFFFFFFF,) * 4, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0xA4093822, 0x299F31D0),
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize("key, counter, expected", KNOWN)
def test_known_answers(key: tuple[int, int], counter: tuple[int, ...], expected: tuple[int, ...]) -> None:
    seed = np.array([key[0] | key[1] << 32], dtype=np.uint64)
    c0, c1, c2, c3 = (np.array([word], dtype=np.uint64) for word in counter)
    assert tuple(int(word[0]) for word in philox(seed, (c0, c1, c2, c3))) == expected


def test_a_draw_depends_on_its_own_counter_only() -> None:
    seeds = np.array([7, -3, 2**62, 7, 7], dtype=np.int64)
    choices = np.array([0, 1, 0, 1, 0], dtype=np.int64)
    positions = np.array([5, 5, 9, 5, 6], dtype=np.int64)
    together = uniform(seeds, choices, positions)
    alone = [uniform(seeds[i : i + 1], choices[i : i + 1], positions[i : i + 1])[0] for i in range(5)]
    assert together.tolist() == alone
    assert len(set(alone)) == 5


def test_draws_are_uniform() -> None:
    n = 100_000
    draws = uniform(np.full(n, 42), np.zeros(n, dtype=np.int64), np.arange(n))
    counts = np.histogram(draws, bins=100, range=(0, 1))[0]
    chi_square = ((counts - n / 100) ** 2 / (n / 100)).sum()
    assert 50 < chi_square < 160  # 99 degrees of freedom; both tails below 1e-4
