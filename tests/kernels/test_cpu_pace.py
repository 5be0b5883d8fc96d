"""Finding out how many threads a step should have: on a simulated machine, with seeded noise."""

import random

import pytest

from kernels.cpu.pace import PERIOD, TRIAL, Pace


def serve(pace: Pace, steps: int, free: int, rng: random.Random, tokens: int = 1) -> tuple[float, list[int]]:
    """Steps on a machine of which so many cores are free: a team that needs more waits sometimes."""
    total, chosen = 0.0, []
    for _ in range(steps):
        threads = pace.choose(tokens)
        seconds = tokens * (0.2 + 0.8 / min(threads, free)) * rng.uniform(0.9, 1.2)
        if threads > free and rng.random() < 0.7:
            seconds += 4
        pace.took(tokens, threads, seconds)
        total += seconds
        chosen.append(threads)
    return total, chosen


@pytest.mark.parametrize("most", [1, 2, 3, 8])
def test_a_free_machine_keeps_its_whole_team(most: int) -> None:
    for seed in range(5):
        _, chosen = serve(Pace(most), 40 * PERIOD, most, random.Random(seed))
        fewer = sum(threads != most for threads in chosen)
        assert fewer <= 40 * TRIAL and set(chosen) <= {most // 2, most} - {0}
        assert set(chosen[: PERIOD - TRIAL - 1]) == {most}


@pytest.mark.parametrize("most, free", [(2, 1), (4, 3), (8, 6)])
def test_cores_that_are_taken_are_left_alone_and_come_back(most: int, free: int) -> None:
    for seed in range(5):
        rng, pace = random.Random(seed), Pace(most)
        serve(pace, 2 * PERIOD, most, rng)
        serve(pace, 12 * PERIOD, free, rng)
        taken, chosen = serve(pace, 10 * PERIOD, free, rng)
        assert sum(threads == free for threads in chosen) > 0.9 * len(chosen)
        assert taken < 0.5 * 10 * PERIOD * 2.8  # of what the whole team would have waited
        serve(pace, 30 * PERIOD, most, rng)
        _, chosen = serve(pace, 10 * PERIOD, most, rng)
        assert sum(threads == most for threads in chosen) > 0.9 * len(chosen)


def test_sizes_are_apart() -> None:
    rng, pace = random.Random(0), Pace(2)
    serve(pace, 10 * PERIOD, 1, rng, tokens=1)
    assert pace.choose(1) == 1 and pace.choose(8) == 2
