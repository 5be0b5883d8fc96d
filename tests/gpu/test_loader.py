"""Launches with all their attributes on the device: resident grids whose blocks wait for each other."""

import ctypes
import functools

import pytest
import torch

from kernels.cuda_driver import DriverError, Module, argument_addresses, load_module
from kernels.nvrtc import read_source

THREADS = 128
LIMIT = 2_000_000_000  # nanoseconds that a block waits for the others
SOURCE = r"""
KERNEL void add_up(Word* words, u32* out, u32* late, int round, u64 limit) {
    const int grid = grid_size();
    launch_dependents();
    wait_for_previous();
    // What everybody left in the launch before, which another launch of this kernel may have been.
    Word* const row = words + (long long)(round % 2) * grid;
    if (thread_index() == 0) put(row + block_index(), block_index() + out[block_index()], round);
    u32 sum = 0;
    const u64 start = nanoseconds();
    for (int i = thread_index(); i < grid; i += THREADS) {
        Word word;
        do word = get(row + i);
        while (word.high != (u32)round && nanoseconds() - start < limit);
        if (word.high != (u32)round) *late = 1;
        sum += word.low;
    }
    SHARED_BYTES(shared);
    u32* const sums = (u32*)shared;
    sums[thread_index()] = sum;
    block_barrier();
    if (thread_index() == 0) {
        u32 all = 0;
        for (int i = 0; i < THREADS; i++) all += sums[i];
        out[block_index()] = all;
    }
}
// To the next block of the cluster, and from the one before.
KERNEL void pass_on(u32* out, int cluster) {
    SHARED_BYTES(shared);
    Word* const inbox = (Word*)shared;
    if (thread_index() == 0) *inbox = Word{0, 0};
    cluster_arrive();
    cluster_wait();
    const int rank = block_index() % cluster;
    if (thread_index() == 0) {
        put_to_peer(inbox, (rank + 1) % cluster, block_index(), 1);
        Word word;
        do word = get_shared(inbox);
        while (word.high != 1);
        out[block_index()] = word.low;
    }
    cluster_arrive();
    cluster_wait();
}
"""


class AddUp(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("words", "out", "late")),
        ("round", ctypes.c_int),
        ("limit", ctypes.c_ulonglong),
    )


class PassOn(ctypes.Structure):
    _fields_ = (("out", ctypes.c_void_p), ("cluster", ctypes.c_int))


@pytest.fixture(scope="module", autouse=True)
def hopper(cuda: None) -> None:
    if torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("needs compute capability 9.0")


@functools.cache
def module() -> Module:
    device = torch.cuda.current_device()
    return load_module(read_source("primitives.cu") + SOURCE, "loader", device, {"THREADS": THREADS})


def sums(grid: int, rounds: int) -> list[int]:
    values = [0] * grid
    for _ in range(rounds):
        values = [sum(i + value for i, value in enumerate(values)) % 2**32] * grid
    return values


@pytest.mark.parametrize("shared", [1024, 100_000])
@pytest.mark.parametrize("cluster", [1, 2, 4])
@pytest.mark.parametrize("pdl", [False, True])
@pytest.mark.parametrize("cooperative", [False, True])
@pytest.mark.parametrize("captured", [False, True])
def test_resident_grid(cluster: int, pdl: bool, cooperative: bool, shared: int, captured: bool) -> None:
    """As many blocks as the driver says; each launch reads what the one before has written."""
    kernel = module().kernel("add_up", shared)
    # One block a multiprocessor: of two kernels at once, as pdl allows, both then have room.
    grid = min(kernel.resident_blocks(THREADS, cluster), 132) // cluster * cluster
    words = torch.zeros(2, grid, 2, dtype=torch.int32, device="cuda")
    out, late = (torch.zeros(count, dtype=torch.int32, device="cuda") for count in (grid, 1))
    a = AddUp(words.data_ptr(), out.data_ptr(), late.data_ptr(), 0, LIMIT)
    addresses = argument_addresses(a)

    def launches() -> None:
        for a.round in range(1, 21):
            kernel.launch(grid, THREADS, addresses, cluster=cluster, pdl=pdl, cooperative=cooperative)

    if captured:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            launches()
        graph.replay()
    else:
        launches()
    torch.cuda.synchronize()
    assert not late.item()
    want = torch.tensor(sums(grid, 20), dtype=torch.int64)
    assert torch.equal(out.cpu().long() % 2**32, want)


@pytest.mark.parametrize("cluster", [2, 4, 8])
def test_words_to_peers(cluster: int) -> None:
    kernel, grid = module().kernel("pass_on", 64), 8 * cluster
    out = torch.zeros(grid, dtype=torch.int32, device="cuda")
    given = PassOn(out.data_ptr(), cluster)
    kernel.launch(grid, 32, argument_addresses(given), cluster=cluster)
    number = torch.arange(grid)
    assert torch.equal(out.cpu(), (number // cluster * cluster + (number - 1) % cluster).int())


@pytest.mark.parametrize("cluster", [1, 2])
def test_a_grid_that_cannot_be_resident_is_refused(cluster: int) -> None:
    kernel, given = module().kernel("add_up", 100_000), AddUp()
    room = kernel.resident_blocks(THREADS, cluster)
    with pytest.raises(
        DriverError, match=f"{room + cluster} blocks .* cannot all be resident, {room} blocks"
    ):
        kernel.launch(room + cluster, THREADS, argument_addresses(given), cluster=cluster, cooperative=True)


def test_errors_of_the_driver_are_named() -> None:
    kernel, given = module().kernel("pass_on", 64), PassOn()
    with pytest.raises(
        DriverError, match=r"launch of pass_on, 7 blocks of 32 threads in clusters of 2.*CUDA_"
    ):
        kernel.launch(7, 32, argument_addresses(given), cluster=2)
    with pytest.raises(DriverError, match="find nothing: CUDA_ERROR_NOT_FOUND"):
        module().kernel("nothing")
    with pytest.raises(
        DriverError, match="400000 bytes of shared memory for pass_on: CUDA_ERROR_INVALID_VALUE"
    ):
        module().kernel("pass_on", 400_000)
    with pytest.raises(DriverError, match="cuModuleLoadData of 8 bytes: CUDA_ERROR_"):
        Module(b"no code!", torch.cuda.current_device())
