"""Decode attention by clusters on the device: against float64, in graphs whose rows grow, launched early."""

import functools
import itertools
from collections.abc import Callable

import pytest
import torch

from kernels.cluster import ClusterDecode, Shape, Variant, defines, source
from kernels.cuda_driver import architecture
from kernels.nvrtc import compile_many
from tests.kernels.cluster_cases import Batch

DEVICE = torch.device("cuda")
SCALE = 1.3 / 128**0.5
SIZES = (1, 2, 4, 8)
GROUPS = (1, 2, 3, 4, 7, 8)
# Channels of a head, keys of a page, and whether a page holds head by head.
LAYOUTS = ((128, 16), (128, 128), (64, 48))  # head_dim, keys of a block
# Around tiles, pages, and what the warps of a block take at a time.
CONTEXTS = [1, 15, 16, 17, 63, 64, 65, 127, 128, 129, 500, 1023, 1024, 1025, 2048, 3001]


@pytest.fixture(scope="module", autouse=True)
def hopper(cuda: None) -> None:
    if torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("needs compute capability 9.0")
    kinds = itertools.product(GROUPS, LAYOUTS, (False, True))
    shapes = [Shape(2 * group, 2, *layout, fp8_kv) for group, layout, fp8_kv in kinds]
    constants = [defines(shape, variant) for shape in shapes for variant in variants()]
    compile_many(source(), "cluster_decode", architecture(torch.cuda.current_device()), constants)()


def variants() -> list[Variant]:
    return [Variant(cluster, warps, blocks) for cluster in SIZES for warps, blocks in ((8, 1), (4, 3))]


@functools.cache
def prepared(shape: Shape, variant: Variant | None, max_context: int = 4096) -> ClusterDecode:
    made = ClusterDecode(shape, max_context, DEVICE, size=2, threshold=1024, forced=variant)
    made.prepare(64)
    return made


def run(kernel: ClusterDecode, batch: Batch, window: int | None = None, pdl: bool = False) -> None:
    pages = batch.pages
    tables = (pages.tables, batch.rows, batch.positions)
    kernel.decode(
        batch.query,
        pages.k_pages,
        pages.v_pages,
        *tables,
        batch.out,
        scale=SCALE,
        window=window,
        scales=pages.scales,
        pdl=pdl,
    )


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("window", [None, 0, 15, 16, 900])
@pytest.mark.parametrize("fp8_kv", [False, True], ids=["bf16", "fp8"])
def test_equals_float64(group: int, window: int | None, fp8_kv: bool) -> None:
    for head_dim, block in LAYOUTS:
        shape = Shape(2 * group, 2, head_dim, block, fp8_kv)
        batch = Batch.of(CONTEXTS, 2 * group, 2, head_dim, block, True, fp8_kv)
        for variant in variants():
            batch.out.fill_(float("nan"))
            run(prepared(shape, variant), batch, window)
            batch.check(SCALE, window)


def test_the_rules_own_choice() -> None:
    """From one entry to many, and contexts that the bound only just holds."""
    shape = Shape(16, 16, 128, 16)
    kernel = prepared(shape, None, max_context=5000)
    assert kernel.variant(1).cluster >= 4 and kernel.variant(64).cluster == 1
    for contexts in ([5000], [4999, 3], [700] * 5, [333] * 40):
        batch = Batch.of(contexts, 16, 16, 128, 16, True)
        run(kernel, batch)
        batch.check(SCALE, None)


def test_a_row_depends_on_nothing_else() -> None:
    """Bit-equal from run to run and in any company, as long as the cluster has the same size."""
    shape = Shape(16, 4, 128, 16)
    together, alone = (Batch.of(contexts, 16, 4, 128, 16, True) for contexts in ([777, 40, 2000], [777]))
    # Queries are drawn in order; the row of interest must have the same one in both.
    alone.query[1] = together.query[3]
    for variant in variants():
        kernel = prepared(shape, variant)
        for _ in range(20):
            together.out.fill_(float("nan"))
            run(kernel, together)
            run(kernel, alone)
            assert torch.equal(together.out[3], alone.out[1])


@pytest.mark.parametrize("pdl", [False, True])
def test_graph_whose_rows_grow(pdl: bool) -> None:
    """The captured launch reads lengths, rows and tables anew."""
    shape = Shape(8, 2, 128, 16)
    final = [900, 64, 1500, 33]
    for variant in variants():
        kernel, batch = prepared(shape, variant), Batch.of(final, 8, 2, 128, 16, True)
        target, rows = batch.positions.clone(), batch.rows.clone()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            batch.out.fill_(float("nan"))
            run(kernel, batch, pdl=pdl)
        for back, hidden in ((32, None), (16, None), (15, 2), (1, None), (0, 3), (0, None)):
            batch.positions.copy_((target - back).clamp_min(0))
            batch.rows.copy_(rows)
            if hidden is not None:
                batch.rows[hidden] = -1
            graph.replay()
            batch.check(SCALE, None)


def chain(kernel: ClusterDecode, batch: Batch, steps: int, pdl: bool) -> torch.Tensor:
    """Each launch's result is the next one's query."""
    entries, heads, head_dim = batch.query.shape
    pages, tables = batch.pages, (batch.pages.tables, batch.rows, batch.positions)
    results = [
        torch.zeros(entries, heads * head_dim, dtype=torch.bfloat16, device=DEVICE) for _ in range(steps)
    ]
    query = batch.query
    for out in results:
        kernel.decode(query, pages.k_pages, pages.v_pages, *tables, out, scale=SCALE, window=None, pdl=pdl)
        query = out.unflatten(1, (heads, head_dim))
    return results[-1]


@pytest.mark.parametrize("variant", variants(), ids=str)
def test_overlapped_chain(variant: Variant) -> None:
    """Kernels that start before the previous one has ended give equal bits, eagerly and in a graph."""
    shape = Shape(16, 16, 128, 16)
    kernel, batch = prepared(shape, variant), Batch.of([1200, 5, 300], 16, 16, 128, 16, True)
    want = chain(kernel, batch, 12, pdl=False).clone()
    assert want[1:-1].isfinite().all()
    for pdl in (False, True):
        for _ in range(5):
            assert torch.equal(chain(kernel, batch, 12, pdl), want)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            last = chain(kernel, batch, 12, pdl)
        for _ in range(20):
            last.zero_()
            graph.replay()
            assert torch.equal(last, want)


def test_pages_beyond_32_bits() -> None:
    """Blocks more than 2^31 numbers behind the first."""
    shape = Shape(1, 1, 128, 16)
    if torch.cuda.mem_get_info()[0] < 12 << 30:
        pytest.skip("needs 12 GiB")
    small = Batch.of([100], 1, 1, 128, 16, True)
    blocks = small.pages.k_pages.size(0)
    for name in ("k_pages", "v_pages"):
        page = getattr(small.pages, name)
        step = 2**31 // (blocks - 2) // 2048 * 2048
        wide = torch.empty((blocks - 1) * step + 2048, dtype=torch.bfloat16, device=DEVICE)
        far = wide.as_strided(page.shape, (step, *page.stride()[1:]))
        far.copy_(page)
        setattr(small.pages, name, far)
    run(prepared(shape, Variant(4, 8, 1)), small)
    small.check(SCALE, None)


def _refused(change: Callable[[Batch], None]) -> str:
    shape = Shape(4, 2, 128, 16)
    batch = Batch.of([20], 4, 2, 128, 16, True)
    kernel = prepared(shape, Variant(1, 4, 3))
    change(batch)
    with pytest.raises(ValueError) as caught:
        run(kernel, batch)
    return str(caught.value)


def test_refusals() -> None:
    def elsewhere(batch: Batch) -> None:
        batch.rows = batch.rows.cpu()

    def wider(batch: Batch) -> None:
        batch.positions = batch.positions.long()

    assert "one device" in _refused(elsewhere)
    assert "int32" in _refused(wider)
    with pytest.raises(ValueError, match="head_dim 96"):
        ClusterDecode(Shape(4, 2, 96, 16), 4096, DEVICE, size=2, threshold=1024)
    with pytest.raises(ValueError, match="multiple of"):
        ClusterDecode(Shape(5, 2, 128, 16), 4096, DEVICE, size=2, threshold=1024)
