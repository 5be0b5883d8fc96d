"""What the emulation of CUDA kernels (emulation.h) notices, on tiny kernels, right and wrong."""

import ctypes

import pytest
import torch

from tests.kernels.conftest import HostCode

SEEDS = range(12)  # 0: threads take turns, copies and stores are done at once
NANS = -1  # what memory holds that nobody has written yet, or that a copy is about to overwrite


class Emulated:
    """The functions of emulate_primitives.cpp."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.library = library
        library.failure.restype = ctypes.c_char_p

    def __call__(self, kernel: str, *arguments: int | torch.Tensor, seed: int = 0) -> str:
        """Why the run failed, or nothing."""
        values = [ctypes.c_void_p(a.data_ptr()) if isinstance(a, torch.Tensor) else a for a in arguments]
        status: int = getattr(self.library, kernel)(*values, ctypes.c_uint(seed))
        failure: bytes = self.library.failure()
        assert bool(status) == bool(failure)
        return failure.decode()


@pytest.fixture(scope="module")
def run(host_code: HostCode) -> Emulated:
    return Emulated(host_code("emulate_primitives.cpp", {}))


def numbers(*shape: int) -> torch.Tensor:
    """int32, at a multiple of 16 bytes."""
    count = torch.Size(shape).numel()
    room = torch.zeros(count + 4, dtype=torch.int32)
    skip = -room.data_ptr() // 4 % 4
    return room[skip : skip + count].view(shape)


def counting(*shape: int) -> torch.Tensor:
    room = numbers(*shape)
    room.copy_(torch.arange(room.numel()).view(shape) * 3 + 1)
    return room


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("bulk", [0, 1])
def test_a_missing_wait_is_seen(bulk: int, seed: int, run: Emulated) -> None:
    data, out = counting(32), numbers(32)
    assert run("copied", bulk, 1, 0, data, out, seed=seed) == ""
    assert torch.equal(out, data)
    if bulk:
        assert run("copied", bulk, 0, 0, data, out, seed=seed) == ""
        assert (out == NANS).all()
    else:
        run("copied", bulk, 0, 0, data, out, seed=seed)
        assert (out == NANS).all()
    assert "source was written" in run("copied", bulk, 1, 1, data, out, seed=seed)


@pytest.mark.parametrize("seed", SEEDS)
def test_parity(seed: int, run: Emulated) -> None:
    """A wait for p ends when the phase with parity p, of those over, is the last: by counting arrivals."""
    for count in (1, 2, 3):
        for arrivals in range(3 * count + 1):
            phases = arrivals // count
            for parity in (0, 1):
                failed = run("waited", count, arrivals, parity, seed=seed)
                over = (phases - 1) % 2 == parity
                assert ("for ever" in failed) == (not over), (count, arrivals, parity)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("warps", [2, 4])
def test_a_ring(warps: int, seed: int, run: Emulated) -> None:
    for tiles in (1, 3, 4, 20):
        data, out = counting(tiles, 32), numbers(warps - 1, 32)
        assert run("ring", warps, tiles, 1, data, out, seed=seed) == ""
        assert torch.equal(out, data.sum(0, dtype=torch.int32).expand(warps - 1, -1))
    data, out = counting(20, 32), numbers(warps - 1, 32)
    failed = run("ring", warps, 20, 0, data, out, seed=seed)  # nobody waits for a place to be free
    assert failed or not torch.equal(out, data.sum(0, dtype=torch.int32).expand(warps - 1, -1))


def exchanged(grid: int, rounds: int) -> torch.Tensor:
    own = torch.arange(1, grid + 1)
    mine = own
    for _ in range(rounds):
        mine = own + mine.sum() % 2**32
    return ((mine + 2**31) % 2**32 - 2**31).to(torch.int32)


@pytest.mark.parametrize("seed", SEEDS)
def test_all_blocks_exchange_words(seed: int, run: Emulated) -> None:
    for grid, cluster, threads in ((2, 1, 32), (16, 2, 64), (48, 8, 64)):
        words, out = numbers(2, grid, 2), numbers(grid)
        assert run("exchange", 1, grid, cluster, threads, 5, 2, words, out, seed=seed) == ""
        assert torch.equal(out, exchanged(grid, 5))


def test_one_buffer_is_not_enough(run: Emulated) -> None:
    """Of one buffer a fast block overwrites what a slow one still waits for."""
    failures = [run("exchange", 1, 16, 2, 32, 9, 1, numbers(1, 16, 2), numbers(16), seed=s) for s in SEEDS]
    assert not failures[0] and sum("for ever" in failed for failed in failures) > len(failures) // 2


def test_thousands_of_threads(run: Emulated) -> None:
    words, out = numbers(2, 24, 2), numbers(24)
    assert run("exchange", 1, 24, 2, 128, 4, 2, words, out, seed=1) == ""
    assert torch.equal(out, exchanged(24, 4))


def test_clusters_one_after_the_other_cannot_wait_for_each_other(run: Emulated) -> None:
    failed = run("exchange", 0, 4, 2, 32, 1, 2, numbers(2, 4, 2), numbers(4))
    assert "for ever: 64 are left, thread 0 of block 0" in failed


def test_words_overtake_each_other(run: Emulated) -> None:
    """A flag in a word of its own says nothing of another word; a tag in the same word does."""
    seen = set()
    for seed in range(60):
        out = numbers(1)
        assert run("flagged", 1, numbers(2, 2), out, seed=seed) == ""
        assert out.item() == 41
        assert run("flagged", 0, numbers(2, 2), out, seed=seed) == ""
        seen.add(out.item())
    assert seen == {0, 41}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("cluster", [2, 4, 8])
def test_words_to_peers(cluster: int, seed: int, run: Emulated) -> None:
    out = numbers(2 * cluster)
    assert run("passed_on", 2 * cluster, cluster, 1, out, seed=seed) == ""
    number = torch.arange(2 * cluster)
    assert torch.equal(out, (number // cluster * cluster + (number - 1) % cluster).int())


def test_a_peer_must_run(run: Emulated) -> None:
    failures = [run("passed_on", 16, 8, 0, numbers(16), seed=seed) for seed in SEEDS]
    assert "has not begun" in failures[0] and sum(map(bool, failures)) > len(failures) // 2


@pytest.mark.parametrize("seed", SEEDS)
def test_named_barriers(seed: int, run: Emulated) -> None:
    for rounds in (1, 2, 7):
        out = numbers(64)
        assert run("named", rounds, 64, 1, out, seed=seed) == ""
        assert torch.equal(out, (torch.arange(64) + 33 * rounds).int() % 64)
    assert "different numbers" in run("named", 1, 96, 1, numbers(64), seed=seed)
    assert run("named", 7, 64, 0, out, seed=seed) == ""
    assert not torch.equal(out, (torch.arange(64) + 33 * 7).int() % 64)


def test_orders(run: Emulated) -> None:
    def order(seed: int) -> list[int]:
        order = numbers(96)
        assert run("counted", 3, numbers(1), order, seed=seed) == ""
        return order.tolist()

    assert order(0) == list(range(96))
    orders = [tuple(order(seed)) for seed in range(1, 20)]
    assert len(set(orders)) == len(orders) and {tuple(sorted(one)) for one in orders} == {tuple(range(96))}
    assert order(7) == order(7)


@pytest.mark.parametrize("seed", SEEDS)
def test_what_is_wrong_is_named(seed: int, run: Emulated) -> None:
    data = counting(32)
    assert run("wrong", 0, data, seed=seed) == ""
    for what, named in {
        1: "for ever",
        2: "past its shared memory",
        3: "before its copies had landed",
        4: "more arrivals",
        5: "for ever",
        6: "nobody has initialised",
    }.items():
        assert named in run("wrong", what, data, seed=seed)


def test_time_passes(run: Emulated) -> None:
    for limit in (5_000, 200_000):
        out = numbers(1)
        assert run("gives_up", numbers(1), limit, out) == ""
        assert limit <= out.item() <= limit + 10_000
