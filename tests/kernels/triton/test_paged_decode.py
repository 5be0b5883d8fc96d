"""kernels/cuda/paged_decode.cu on the host (emulation.h), against Triton's kernels and float64."""

import ctypes
from collections.abc import Callable
from dataclasses import replace
from itertools import product

import pytest
import torch

from kernels.cluster import Shape
from kernels.paged_decode import Launch, Variant, defines, fill, fresh_mismatch, variant_for, variants_for
from kernels.triton.decode import DecodeWorkspace, Fresh, plan_decode
from tests.kernels.cluster_cases import Batch
from tests.kernels.conftest import HostCode
from tests.kernels.triton.device import DEVICE, assert_near, poisoned
from tests.kernels.triton.test_decode_fresh import BLOCK, ORDERS, Case, Step, apart, bits
from tests.tiers import tiered

pytestmark = pytest.mark.skipif(DEVICE != "cpu", reason="tests/gpu/test_rotation.py runs the kernel itself")

Build = Callable[[Shape, Variant], ctypes.CDLL]
ONE, TWO, EIGHT = Variant(1, 2, 1), Variant(2, 1, 1), Variant(8, 2, 1)


@pytest.fixture(scope="module")
def build(host_code: HostCode) -> Build:
    return lambda shape, variant: host_code("emulate_paged.cpp", defines(shape, variant))


def emulate(
    library: ctypes.CDLL,
    shape: Shape,
    variant: Variant,
    space: DecodeWorkspace,
    launch: Launch,
    entries: int,
    ahead: bool = False,
) -> None:
    launch.flags |= 3 if ahead else 1
    grid = space.units(entries) * shape.kv_heads
    status = library.emulate(grid, variant.shared_bytes(shape), ctypes.byref(launch))
    library.failure.restype = ctypes.c_char_p
    assert status == 0, library.failure().decode()


def workspace(shape: Shape, variant: Variant, rows: int, cut: int, multiprocessors: int) -> DecodeWorkspace:
    """cut: the shortest unit, in tiles."""
    space = DecodeWorkspace.allocate(
        rows,
        shape.heads,
        shape.kv_heads,
        shape.head_dim,
        2048,
        DEVICE,
        config=replace(variant.plan, min_chunk=16 * cut, units_per_sm=8),
        multiprocessors=multiprocessors,
    )
    space.partials.fill_(float("nan"))
    space.stats.fill_(float("nan"))
    return space


BORDERS = [1, 15, 16, 17, 33, 64]
PLAIN = [
    # heads, kv heads, head_dim, block size, eight bits; variant, tiles of a unit, multiprocessors; window and
    # contexts
    (2, 2, 128, 16, False, ONE, 80, 1, None, [1, 1100]),  # more than two batches of page numbers
    (2, 2, 128, 16, False, EIGHT, 1, 4, None, BORDERS),
    (2, 1, 64, 32, False, TWO, 2, 4, None, [5, 32, 200]),
    (4, 1, 128, 16, True, TWO, 1, 4, 20, [*BORDERS, 130]),
    (8, 1, 64, 48, False, ONE, 1, 8, 1, [2, 17, 97]),
    (3, 1, 128, 64, True, EIGHT, 4, 4, 100, [90, 101, 102, 300]),
    (8, 1, 128, 16, True, TWO, 1, 4, 0, BORDERS),
    (1, 1, 64, 16, True, ONE, 1, 8, None, [129, 250]),
    (14, 2, 64, 16, False, TWO, 1, 16, None, [40, 395]),
]


@pytest.mark.parametrize("case", tiered([(case,) for case in PLAIN], {1, 3, 8}), ids=str)
def test_rotated_queries(case: tuple[object, ...], build: Build) -> None:
    heads, kv_heads, head_dim, block, eight_bits, variant, cut, count, window, contexts = case
    shape = Shape(heads, kv_heads, head_dim, block, eight_bits)  # type: ignore[arg-type]
    batch = Batch.of(contexts, heads, kv_heads, head_dim, block, True, eight_bits).cpu()  # type: ignore[arg-type]
    pages, scale, launch = batch.pages, 1.7 / shape.head_dim**0.5, Launch()
    space = workspace(shape, variant, len(batch.rows), cut, count)  # type: ignore[arg-type]
    plan_decode(batch.rows, batch.positions, space, window=window)  # type: ignore[arg-type]
    given = (batch.query, pages.k_pages, pages.v_pages, pages.tables, batch.out, space, window, scale)
    fill(launch, *given, pages.scales, None)  # type: ignore[arg-type]
    emulate(build(shape, variant), shape, variant, space, launch, len(batch.rows))  # type: ignore[arg-type]
    batch.check(scale, window)  # type: ignore[arg-type]
    assert not space.counters.any()
    units = int(space.work_list(window).items[:, 6].max())  # type: ignore[arg-type]
    assert units > 1 or cut == 80 or window in (0, 1)


def run(step: Step, build: Build, variant: Variant, cut: int, seed: int = 0) -> torch.Tensor:
    """The step by the CUDA kernel."""
    case = step.case
    shape = Shape(case.heads, case.kv_heads, case.head_dim, BLOCK, case.eight_bits)
    space, launch = workspace(shape, variant, len(step.rows), cut, 4), Launch()
    plan_decode(step.rows, step.positions, space, window=case.window)
    weights = dict(zip(("q_weight", "k_weight"), step.weights, strict=True))
    fresh = Fresh(step.qkv, step.slots, *step.table, step.spec, bias=step.bias, **weights)
    assert fresh_mismatch(shape, fresh, fresh.query) is None
    out = poisoned(len(step.rows), case.heads * case.head_dim, dtype=case.dtype)
    scale = case.head_dim**-0.5
    fill(launch, fresh.query, *step.pages, step.tables, out, space, case.window, scale, step.scales, fresh)
    library = build(shape, variant)
    library.shake(seed)
    emulate(library, shape, variant, space, launch, len(step.rows), ahead=bool(seed % 2) or case.padding)
    library.shake(0)
    assert not space.counters.any()
    return out


SHAPES = [(2, 2, 64), (8, 1, 64), (3, 1, 128), (2, 2, 128)]
FRESH = [
    (Case(order, *shape, bias=order == "rope", weights=order == "norm_rope", eight_bits=eight_bits), variant)
    for (order, shape, eight_bits), variant in zip(
        product(ORDERS, SHAPES, (False, True)), [ONE, TWO, EIGHT, TWO, ONE] * 5, strict=False
    )
]
FRESH += [
    (Case("rope_norm", 4, 1, 64, window=20, padding=True), TWO),
    (Case("rope_norm", 2, 2, 64, window=0, padding=True, eight_bits=True), ONE),
    (Case("norm_rope", 2, 1, 64, weights=False, contexts=(1, 2, 300)), EIGHT),
]


@pytest.mark.parametrize(("case", "variant"), tiered(FRESH, {0, 5, 15, 20, 24, 25}), ids=str)
def test_fresh_queries(case: Case, variant: Variant, build: Build) -> None:
    """What a kernel in front would have rotated and kept; the pages hold the same bits."""
    ours, theirs = Step(case), Step(case)
    before, raw = [part.clone() for part in theirs.kept], bits(ours.qkv)
    mine, right = run(ours, build, variant, 1), theirs.run(fused=False)
    assert torch.equal(bits(ours.qkv), raw)
    apart(ours, theirs, before)
    padding = [entry for entry in range(len(ours.rows)) if entry not in ours.live]
    assert mine[padding].isnan().all() and torch.isfinite(mine[ours.live]).all()
    assert_near(mine[ours.live], right[ours.live], 2, floor=0.25)


def test_the_threads_order_does_not_matter(build: Build) -> None:
    """Bit-equal with threads in any order, warps that stand still now and then, and copies that take long."""
    for case, variant in (
        (Case(heads=4, kv_heads=1, head_dim=64), EIGHT),
        (Case(head_dim=64, eight_bits=True, contexts=(40, 90)), ONE),
    ):
        found = []
        for seed in range(4):
            step = Step(case)
            out = run(step, build, variant, 1, seed)
            found.append([bits(out), *map(bits, step.kept)])
        for other in found[1:]:
            assert all(torch.equal(mine, first) for mine, first in zip(other, found[0], strict=True))


def test_blocks_fit_a_multiprocessor() -> None:
    for heads, kv_heads in ((16, 16), (32, 8), (8, 1), (3, 1)):
        for eight_bits, head_dim in product((False, True), (64, 128)):
            shape = Shape(heads, kv_heads, head_dim, 16, eight_bits)
            for entries, short in product((1, 2, 7, 8, 33, 64, 500), (False, True)):
                variant = variant_for(shape, entries, 132, short)
                if variant is None:
                    assert shape.group == 1 and not eight_bits and entries * kv_heads > 8 * 132
                    continue
                other = variant_for(shape, entries, 132)
                assert other is not None and other.plan == variant.plan, "keys are cut in one way"
                assert (1 if variant.warps == 8 else 2) * (variant.shared_bytes(shape) + 1024) <= 228 * 1024


def test_every_form_that_serves_is_made_ready_and_tested() -> None:
    """The one for short rows, too, which is another kernel."""
    shape = Shape(16, 16, 128, 16, False)
    assert variants_for(shape, 4, 132) == [Variant(8, 2, 1)]
    assert variants_for(shape, 8, 132) == [Variant(8, 2, 1), Variant(8, 1, 1)]
    for entries, short in product(range(1, 65), (False, True)):
        assert variant_for(shape, entries, 132, short) in variants_for(shape, 64, 132)


def test_only_what_follows_a_launch_of_the_same_plan_reads_early(monkeypatch: pytest.MonkeyPatch) -> None:
    """The step's first launch waits for all in front of it; one of no rows does nothing."""
    from kernels.backends.cuda import CudaBackend

    said: list[bool] = []

    class Kernel:
        def variant(self, entries: int) -> Variant:
            return ONE

        def decode(self, *given: object, ahead: bool = False, **named: object) -> None:
            said.append(ahead)

    backend = object.__new__(CudaBackend)
    backend.kernel, backend.launched, backend.workspace = Kernel(), False, None  # type: ignore[assignment]
    monkeypatch.setattr("kernels.backends.triton.plan_decode", lambda *given, **named: None)
    step = Step(Case(head_dim=64))
    fresh = Fresh(step.qkv, step.slots, *step.table, step.spec)
    given = (*step.pages, step.tables, step.rows, step.positions, torch.empty(0))
    none = (*step.pages, step.tables, step.rows[:0], step.positions[:0], torch.empty(0))
    how = {"scale": 1.0, "window": None}
    for windows in ((None,), (None, 20)):
        for window in windows:
            backend.plan(step.rows, step.positions, window=window)
        backend.decode(fresh.query[:0], *none, **how)  # type: ignore[arg-type]
        for _ in range(2):
            backend.decode_fresh(fresh, *given, **how)  # type: ignore[arg-type]
        backend.decode(fresh.query, *given, **how)  # type: ignore[arg-type]
        backend.decode_fresh(fresh, *given, **how)  # type: ignore[arg-type]
        assert said == [False, False, True, False, True]
        said.clear()
