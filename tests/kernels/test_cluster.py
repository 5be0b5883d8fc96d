"""Decode attention by clusters: its rules, its refusals, its partition of keys, and kernels/cuda/
cluster_decode.cu run thread by thread on the host (emulation.h)."""

import ctypes
import itertools
from collections.abc import Callable, Sequence

import pytest
import torch

from kernels.cluster import (
    LONG_FOR_TWO,
    WARPS,
    ClusterDecode,
    Shape,
    Variant,
    _Arguments,
    cluster_hint,
    cluster_size,
    defines,
    fill_arguments,
    mismatch,
    unsupported,
)
from tests.kernels.cluster_cases import Batch, stretches, twin
from tests.kernels.conftest import HostCode
from tests.kernels.triton.paged import exact_attention
from tests.tiers import tiered

SHAPE = Shape(heads=4, kv_heads=2, head_dim=64, block_size=16)
Build = Callable[[Shape, Variant], ctypes.CDLL]


def test_hint_is_the_seeds() -> None:
    assert cluster_hint(1023, 2, 1024, True) is None
    assert cluster_hint(5000, 2, 1024, False) is None
    assert [cluster_hint(n, 2, 1024, True) for n in (1024, 2047, 2048, 4095, 4096)] == [2, 2, 3, 3, 4]
    assert cluster_hint(9000, 6, 1024, True) == 6
    assert cluster_hint(3000, 1, 1024, True) == 3


def test_size_fills_the_device() -> None:
    def size(rows: int, keys: int, kv_heads: int = 16, start: int = 2, threshold: int = 1024) -> int:
        return cluster_size(rows, kv_heads, keys, 132, start, threshold)

    assert [size(rows, 8192) for rows in (1, 2, 3, 4, 8, 9, 200)] == [8, 4, 2, 2, 1, 1, 1]
    # `start` at the threshold, as many as fit from twice that on.
    assert [size(1, keys) for keys in (1023, 1024, 2047, 2048, 4096, 1 << 20)] == [1, 2, 2, 8, 8, 8]
    assert size(1, 1024, start=16) == 8
    assert size(1, 1024, start=3) == 2
    assert size(1, 1024, start=1) == 1
    # At least 64 keys a block.
    assert [size(1, keys, start=8, threshold=1) for keys in (0, 1, 64, 65, 200, 500)] == [1, 1, 1, 2, 4, 8]
    assert size(1, 8192, kv_heads=200) == 1
    assert size(0, 8192) == 8


class Placed(ClusterDecode):
    """On a made-up device, which has room for so many clusters of each size at one time."""

    def __init__(self, kv_heads: int, max_context: int, at_once: dict[int, int]) -> None:
        self.shape, self.max_context = Shape(2 * kv_heads, kv_heads, 128, 16), max_context
        self.size, self.threshold, self.forced = 2, 1024, None
        self.multiprocessors, self.clusters = 132, at_once


def test_what_it_serves() -> None:
    """Clusters that the device can place at one time, and of two blocks where contexts are short."""
    h200 = {8: 15, 4: 31, 2: 64}

    def served(kv_heads: int, context: int) -> list[int]:
        kernel = Placed(kv_heads, context, h200)
        return [kernel.variant(entries).cluster if kernel.serves(entries) else 0 for entries in range(6)]

    assert served(16, 2048) == [0, 4, 2, 2, 2, 0]
    assert served(16, LONG_FOR_TWO + 1) == [0, 4, 0, 0, 0, 0]
    assert served(8, 8192) == [0, 8, 4, 4, 0, 0]
    assert served(8, 1024) == [0, 2, 2, 2, 2, 2]
    assert served(16, 1000) == [0] * 6, "below the threshold"
    assert served(200, 2048) == [0] * 6


def test_variants_fit_a_multiprocessor() -> None:
    for group, fp8_kv in itertools.product(range(1, 9), (False, True)):
        shape = Shape(8 * group, 8, 128, 16, fp8_kv)
        for cluster in (1, 2, 4, 8):
            for warps, blocks in ((WARPS, 1), (4, 3)):
                variant = Variant(cluster, warps, blocks)
                assert variant.blocks * (variant.shared_bytes(shape) + 1024) <= 228 * 1024
                assert variant.blocks * variant.warps * 32 * 168 <= 65536
                assert shape.group * shape.head_dim // 4 % cluster == 0


def test_unsupported_says_why() -> None:
    assert unsupported(128, 1, torch.bfloat16, (9, 0), 16) is None
    assert unsupported(64, 8, torch.bfloat16, (10, 0), 256) is None
    for expected, arguments in {
        "9.0": (128, 1, torch.bfloat16, (8, 9), 16),
        "bfloat16": (128, 1, torch.float16, (9, 0), 16),
        "head_dim 96": (96, 1, torch.bfloat16, (9, 0), 16),
        "9 query heads": (128, 9, torch.bfloat16, (9, 0), 16),
        "blocks of 8 ": (128, 1, torch.bfloat16, (9, 0), 8),
        "blocks of 24 ": (128, 1, torch.bfloat16, (9, 0), 24),
    }.items():
        assert expected in (unsupported(*arguments) or "")
    with pytest.raises(ValueError, match="CUDA device"):
        ClusterDecode(SHAPE, 4096, torch.device("cpu"), size=2, threshold=1024)


def test_mismatches_are_named() -> None:
    def wrong(**changed: object) -> str:
        bf16 = {"dtype": torch.bfloat16}
        tensors = {
            "q": torch.zeros(3, 4, 64, **bf16),
            "k_pages": torch.zeros(5, 2, 16, 64, **bf16).transpose(1, 2),
            "v_pages": torch.zeros(5, 2, 16, 64, **bf16).transpose(1, 2),
            "block_tables": torch.zeros(2, 4, dtype=torch.int32),
            "rows": torch.zeros(3, dtype=torch.int32),
            "positions": torch.zeros(3, dtype=torch.int32),
            "out": torch.zeros(3, 256, **bf16),
        }
        return mismatch(SHAPE, **(tensors | changed)) or ""  # type: ignore[arg-type]

    bf16 = {"dtype": torch.bfloat16}
    assert wrong() == ""
    assert "q is" in wrong(q=torch.zeros(3, 2, 64, **bf16))
    assert "k_pages is" in wrong(k_pages=torch.zeros(5, 32, 2, 64, **bf16))
    assert "v_pages is" in wrong(v_pages=torch.zeros(5, 16, 4, 64, **bf16))
    assert "out is" in wrong(out=torch.zeros(2, 256, **bf16))
    assert "rows and positions" in wrong(rows=torch.zeros(2, dtype=torch.int32))
    assert "v_pages is torch.float32" in wrong(v_pages=torch.zeros(5, 2, 16, 64).transpose(1, 2))
    assert "16 bytes" in wrong(q=torch.zeros(3, 4, 68, **bf16)[:, :, :64])
    assert "16 bytes" in wrong(q=torch.zeros(3 * 256 + 8, **bf16)[4:-4].view(3, 4, 64))
    assert "8 bytes" in wrong(out=torch.zeros(3, 258, **bf16)[:, :256])
    assert "positions must" in wrong(positions=torch.zeros(3, dtype=torch.int64))
    assert "block_tables must" in wrong(block_tables=torch.zeros(4, 2, dtype=torch.int32).T)
    assert "scales come with" in wrong(scales=(torch.zeros(1), torch.zeros(1)))
    assert "follow each other" in wrong(v_pages=torch.zeros(5, 16, 2, 64, **bf16))
    apart = torch.zeros(2048, **bf16).as_strided((1, 16, 2, 64), (1 << 31, 64, 1024, 1))
    assert "blocks of k_pages are 2147483648 numbers apart" in wrong(k_pages=apart)


def test_mismatches_of_eight_bits_are_named() -> None:
    def wrong(**changed: object) -> str:
        pages = torch.zeros(5, 2, 16, 64, dtype=torch.uint8).view(torch.float8_e4m3fn).transpose(1, 2)
        scales = torch.zeros(2, 5, 2, 16, dtype=torch.bfloat16).transpose(2, 3)
        tensors = {
            "q": torch.zeros(3, 4, 64, dtype=torch.bfloat16),
            "k_pages": pages,
            "v_pages": pages,
            "block_tables": torch.zeros(2, 4, dtype=torch.int32),
            "rows": torch.zeros(3, dtype=torch.int32),
            "positions": torch.zeros(3, dtype=torch.int32),
            "out": torch.zeros(3, 256, dtype=torch.bfloat16),
            "scales": (scales[0], scales[1]),
        }
        shape = Shape(heads=4, kv_heads=2, head_dim=64, block_size=16, fp8_kv=True)
        return mismatch(shape, **(tensors | changed)) or ""  # type: ignore[arg-type]

    whole = torch.zeros(5, 2, 16, 64, dtype=torch.bfloat16).transpose(1, 2)
    far = torch.zeros(5, 16, 2, dtype=torch.bfloat16)  # a head's scales apart from each other
    assert wrong() == ""
    assert "come with scales" in wrong(scales=None)
    assert "k_pages is torch.bfloat16, must be float8_e4m3fn" in wrong(k_pages=whole)
    assert "scales must both be" in wrong(scales=(far, far[:4]))
    assert "k_scales must have unit stride" in wrong(scales=(far, far))
    apart = torch.zeros(32, dtype=torch.bfloat16).as_strided((1, 16, 2), (1 << 31, 1, 16))
    one = torch.zeros(1, 2, 16, 64, dtype=torch.uint8).view(torch.float8_e4m3fn).transpose(1, 2)
    found = wrong(k_pages=one, v_pages=one, scales=(apart, apart))
    assert "blocks of k_scales are 2147483648 apart" in found
    assert "k_scales is torch.float32" in wrong(scales=(far.float(), far.float()))


@pytest.mark.parametrize("window", [None, 0, 1, 15, 16, 100])
def test_every_visible_tile_is_someones(window: int | None) -> None:
    for position in (*range(70), 127, 128, 500, 2047):
        seen = 0 if window is None else max(position - window, 0)
        for cluster in (1, 2, 4, 8):
            for warps in (1, 4, 8):
                blocks = stretches(position, window, cluster, warps)
                tiles = sorted(tile for block in blocks for mine in block for tile in mine)
                assert tiles == list(range(seen // 16, position // 16 + 1))
                longest = max(sum(map(len, block)) for block in blocks)
                assert longest == -(-len(tiles) // cluster)


@pytest.fixture(scope="module")
def build(host_code: HostCode) -> Build:
    return lambda shape, variant: host_code("emulate_cluster.cpp", defines(shape, variant))


def emulate(
    library: ctypes.CDLL, shape: Shape, variant: Variant, batch: Batch, scale: float, window: int | None
) -> None:
    pages, a = batch.pages, _Arguments()
    tensors = (
        batch.query,
        pages.k_pages,
        pages.v_pages,
        pages.tables,
        batch.rows,
        batch.positions,
        batch.out,
    )
    assert mismatch(shape, *tensors, pages.scales) is None
    fill_arguments(a, *tensors, scale, window, pages.scales, True)
    strides = (a.q_stride, a.q_head, a.k_block, a.k_head, a.v_block, a.v_head, a.table_stride, a.out_stride)
    strides += (a.s_block, a.s_head)
    status = library.emulate(
        len(batch.rows) * shape.kv_heads * variant.cluster,
        variant.shared_bytes(shape),
        *(ctypes.c_void_p(tensor.data_ptr()) for tensor in tensors),
        *(ctypes.c_void_p(address) for address in (a.k_scales, a.v_scales)),
        (ctypes.c_longlong * 10)(*strides),
        a.kv_heads,
        a.window,
        ctypes.c_float(a.scale),
        a.flags,
    )
    assert status == 0, "the threads wait for each other for ever, or wrote past their shared memory"


BORDERS = [1, 15, 16, 17, 33, 64]
CASES = [
    # heads, kv heads, head_dim, block size, heads first; cluster, warps; window, contexts
    (2, 2, 128, 16, True, 1, 1, None, [1, 1100]),  # more than two batches of page numbers
    (2, 2, 128, 16, True, 8, 2, None, BORDERS),
    (2, 1, 64, 32, True, 4, 2, None, [5, 32, 200]),
    (4, 1, 128, 16, False, 2, 4, 20, [*BORDERS, 130]),
    (8, 1, 64, 48, True, 8, 1, 1, [2, 17, 97]),
    (3, 1, 128, 64, False, 4, 2, 100, [90, 101, 102, 300]),
    (8, 1, 128, 16, True, 1, 2, 0, BORDERS),
    (1, 1, 64, 16, True, 8, 1, None, [129, 250]),
    (14, 2, 64, 16, True, 2, 2, None, [40, 95]),
]


@pytest.mark.parametrize("case", tiered([(case,) for case in CASES], {1, 3, 4, 8}), ids=str)
def test_equals_float64_and_its_twin(case: tuple[object, ...], build: Build) -> None:
    heads, kv_heads, head_dim, block, heads_first, cluster, warps, window, contexts = case
    shape, variant = Shape(heads, kv_heads, head_dim, block), Variant(cluster, warps, 1)  # type: ignore[arg-type]
    batch = Batch.of(contexts, heads, kv_heads, head_dim, block, heads_first).cpu()  # type: ignore[arg-type]
    scale = 1.7 / shape.head_dim**0.5
    emulate(build(shape, variant), shape, variant, batch, scale, window)  # type: ignore[arg-type]
    batch.check(scale, window)  # type: ignore[arg-type]
    for entry, (row, position) in enumerate(zip(batch.rows.tolist(), batch.positions.tolist(), strict=True)):
        if row >= 0:
            keys, values = batch.pages.keys[row], batch.pages.values[row]
            sizes = (position, scale, window, cluster, warps)
            mine = twin(batch.query[entry], keys, values, *sizes)  # type: ignore[arg-type]
            # Half a step of bfloat16 either way, where the order inside a product decides.
            torch.testing.assert_close(batch.out[entry], mine, rtol=2**-7, atol=2e-5)


@pytest.mark.slow
def test_the_threads_order_does_not_matter(build: Build) -> None:
    """Bit-equal with threads in any order, warps that stand still now and then, and copies that take long."""
    for heads, cluster, warps, contexts in ((2, 4, 2, [33, 300]), (1, 1, 2, [70]), (4, 8, 1, [250])):
        shape, variant = Shape(heads, 1, 64, 16), Variant(cluster, warps, 1)
        batch, library, results = Batch.of(contexts, heads, 1, 64, 16, True).cpu(), build(shape, variant), []
        for seed in range(4):
            library.shake(seed)
            batch.out.zero_()
            emulate(library, shape, variant, batch, 0.1, None)
            results.append(batch.out.clone())
        library.shake(0)
        assert results[0].any() and all(torch.equal(out, results[0]) for out in results)


EIGHT_BITS = [case for case in CASES if case[4]]


@pytest.mark.parametrize(
    "case",
    [*EIGHT_BITS[:3], *(pytest.param(case, marks=pytest.mark.slow) for case in EIGHT_BITS[3:])],
    ids=str,
)
def test_keys_and_values_of_eight_bits(case: tuple[object, ...], build: Build) -> None:
    """Against float64 over what the pages stand for; slots that are nobody's hold neither numbers nor
    scales.
    """
    heads, kv_heads, head_dim, block, _, cluster, warps, window, contexts = case
    shape = Shape(heads, kv_heads, head_dim, block, True)  # type: ignore[arg-type]
    variant = Variant(cluster, warps, 1)  # type: ignore[arg-type]
    batch = Batch.of(contexts, heads, kv_heads, head_dim, block, True, True).cpu()  # type: ignore[arg-type]
    scale = 1.7 / shape.head_dim**0.5
    emulate(build(shape, variant), shape, variant, batch, scale, window)  # type: ignore[arg-type]
    batch.check(scale, window)  # type: ignore[arg-type]


# Powers of two that are scales: with the smallest one, and the smallest number, bf16 still has all bits.
FACTORS = [-114, -60, -17, -2, 3, 13, 60, 110]


def test_every_number_of_eight_bits_is_read_exactly(build: Build) -> None:
    """One key for each: its weight is one, and the value comes out as it is, scales of any size included."""
    shape, variant = Shape(1, 1, 64, 16, True), Variant(1, 1, 1)
    codes = torch.tensor([code for code in range(256) if code & 0x7F != 0x7F], dtype=torch.uint8)
    batch = Batch.of([1] * 8, 1, 1, 64, 16, True, True).cpu()
    assert batch.pages.scales is not None
    expected = {}
    for row in range(8):
        block, factor = int(batch.pages.tables[row, 0]), 2.0 ** FACTORS[row]
        numbers = codes[(torch.arange(64) + 32 * row) % len(codes)]
        batch.pages.v_pages.view(torch.uint8)[block, 0, 0] = numbers
        batch.pages.scales[1][block, 0, 0] = factor
        expected[row] = numbers.view(torch.float8_e4m3fn).float() * factor
    emulate(build(shape, variant), shape, variant, batch, 0.1, None)
    for entry, row in enumerate(batch.rows.tolist()):
        assert row < 0 or torch.equal(batch.out[entry].float(), expected[row])


@pytest.mark.parametrize(
    "powers",
    [range(-100, 100, 20), range(80, -120, -20), [-115, *[40] * 9]],
    ids=["rising", "falling", "one step"],
)
def test_scales_of_many_sizes_in_one_row(powers: Sequence[int], build: Build) -> None:
    """Of each tile's values another: every head is as near to float64 as with scales of one size."""
    shape, variant = Shape(4, 2, 64, 16, True), Variant(1, 2, 1)
    batch = Batch.of([160, 100, 17], 4, 2, 64, 16, True, True).cpu()
    assert batch.pages.scales is not None
    for row, values in enumerate(batch.pages.values):
        for index, tile in enumerate(values.split(16)):
            batch.pages.scales[1][int(batch.pages.tables[row, index])] *= 2.0 ** powers[index]
            tile *= 2.0 ** powers[index]
    emulate(build(shape, variant), shape, variant, batch, 0.1, None)
    for entry, row in enumerate(batch.rows.tolist()):
        if row < 0:
            continue
        given = batch.query[entry : entry + 1], batch.pages.keys[row], batch.pages.values[row]
        exact = exact_attention(*given, int(batch.positions[entry]), 0.1, None).view(4, 64)
        off = (batch.out[entry].view(4, 64).double() - exact).norm(dim=-1) / exact.norm(dim=-1)
        assert off.max() < 5e-3, off


def test_scores_of_any_size(build: Build) -> None:
    """Weights neither overflow nor vanish all at once, even where one key outweighs all the others."""
    shape, variant = Shape(1, 1, 64, 16), Variant(4, 2, 1)
    for factor in (-30.0, 30.0):
        batch = Batch.of([150], 1, 1, 64, 16, False).cpu()
        emulate(build(shape, variant), shape, variant, batch, factor, None)
        batch.check(factor, None)
