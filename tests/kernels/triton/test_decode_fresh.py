"""Decode attention that rotates and keeps for itself, against a kernel in front of it that does."""

import os
import subprocess
import sys
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import pytest
import torch

from kernels.kv8 import dequantize_kv
from kernels.rope import rope_table
from kernels.triton.decode import DecodeConfig, DecodeWorkspace, Fresh, paged_decode, plan_decode
from kernels.triton.rope import Order, RotarySpec, rotate_and_store
from tests.kernels.triton.device import DEVICE, assert_near, ints, randn, strided
from tests.kernels.triton.paged import paged, poisoned
from tests.tiers import tiered

BF16, F32 = torch.bfloat16, torch.float32
BLOCK = 16
MANY = DecodeConfig(block_keys=16, min_chunk=16, units_per_sm=8)  # units: all that there can be
ORDERS: tuple[Order, ...] = ("rope", "rope_norm", "norm_rope")
CONTEXTS = (1, 16, 17, 18, 66)  # their last positions are 0, 15, 16, 17 and 65


@dataclass(frozen=True)
class Case:
    """contexts: of rows, the new token among them. padding: entries of nobody among the others. spoilt: some
    numbers are not finite.
    """

    order: Order = "rope_norm"
    heads: int = 2
    kv_heads: int = 2
    head_dim: int = 32
    dtype: torch.dtype = BF16
    eight_bits: bool = False
    bias: bool = False
    weights: bool = False
    window: int | None = None
    config: DecodeConfig | None = MANY
    heads_first: bool = True
    padding: bool = False
    spoilt: bool = False
    contexts: tuple[int, ...] = CONTEXTS

    def __str__(self) -> str:
        plain = Case()
        other = {name: value for name, value in vars(self).items() if value != getattr(plain, name)}
        return ", ".join(f"{name} {value}" for name, value in other.items()) or "plain"


class Step:
    """One token more for each row of a cache whose last slots are still poisoned."""

    def __init__(self, case: Case) -> None:
        self.case = case
        heads, kv_heads, dim, dtype = case.heads, case.kv_heads, case.head_dim, case.dtype
        contexts = list(case.contexts)
        cache = paged(
            contexts,
            kv_heads,
            dim,
            BLOCK,
            dtype,
            heads_first=case.heads_first,
            eight_bits=case.eight_bits,
        )
        self.pages, self.scales, self.tables = (cache.k_pages, cache.v_pages), cache.scales, cache.tables
        order = list(range(0, len(contexts), 2)) + list(range(1, len(contexts), 2))
        if case.padding:
            order[1:1] = [-1, -1]
            order.append(-1)
        places = [contexts[row] - 1 if row >= 0 else 0 for row in order]
        slots = [
            int(self.tables[row, at // BLOCK]) * BLOCK + at % BLOCK if row >= 0 else -1
            for row, at in zip(order, places, strict=True)
        ]
        self.rows, self.positions, self.slots = ints(order), ints(places), ints(slots)
        self.live = [entry for entry, row in enumerate(order) if row >= 0]
        for part in self.kept:
            bits = part.view(torch.uint8) if part.dtype.itemsize == 1 else part
            for slot in (slot for slot in slots if slot >= 0):
                bits[slot // BLOCK, slot % BLOCK] = 0x7F if part.dtype.itemsize == 1 else float("nan")
        width = (heads + 2 * kv_heads) * dim
        self.qkv = strided(randn(len(order), width, dtype=dtype, seed=7), 32)
        self.qkv[0, -1], self.qkv[-1, -2] = float("nan"), float("inf")  # values, which count as zero
        if case.spoilt:
            self.qkv[self.live[0], heads * dim] = float("inf")  # of a key
        self.bias = randn(width, dtype=dtype, seed=8) if case.bias else None
        self.weights = [randn(dim, dtype=dtype, seed=9 + i) if case.weights else None for i in range(2)]
        self.table = [part.to(DEVICE) for part in rope_table(max(contexts), dim, 1e4, F32)]
        scale = 1.2 if case.order == "rope_norm" else 1.0
        self.spec = RotarySpec(heads, kv_heads, dim, case.order, 1e-6, scale)

    @property
    def kept(self) -> list[torch.Tensor]:
        return [*self.pages, *(self.scales or ())]

    def run(self, fused: bool) -> torch.Tensor:
        case = self.case
        q_weight, k_weight = self.weights
        extra = {"bias": self.bias, "q_weight": q_weight, "k_weight": k_weight}
        fresh = Fresh(self.qkv, self.slots, *self.table, self.spec, **extra)
        space = DecodeWorkspace.allocate(
            len(self.rows),
            case.heads,
            case.kv_heads,
            case.head_dim,
            256,
            DEVICE,
            dtype=self.pages[0].dtype,
            config=case.config,
            multiprocessors=4,
        )
        space.partials.fill_(float("nan"))
        plan_decode(self.rows, self.positions, space, window=case.window)
        self.units = int(space.work_list(case.window).items[:, 6].max())  # of the longest row
        if not fused:
            rotate_and_store(
                self.qkv,
                self.positions,
                self.slots,
                *self.table,
                *self.pages,
                self.spec,
                scales=self.scales,
                **extra,
            )
        out = poisoned(len(self.rows), case.heads * case.head_dim, dtype=case.dtype)
        paged_decode(
            fresh.query,
            *self.pages,
            self.tables,
            self.rows,
            self.positions,
            out,
            space,
            scale=case.head_dim**-0.5,
            window=case.window,
            scales=self.scales,
            fresh=fresh if fused else None,
        )
        assert (space.counters == 0).all()
        return out


def bits(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous().flatten().view(torch.uint8)


def apart(ours: Step, theirs: Step, before: list[torch.Tensor]) -> None:
    """What both have kept is the same; on a GPU, where sums may run in another order, nearly so."""
    slots = [slot for slot in theirs.slots.tolist() if slot >= 0]
    at = [slot // BLOCK for slot in slots], [slot % BLOCK for slot in slots]
    for mine, right, old in zip(ours.kept, theirs.kept, before, strict=True):
        assert not torch.equal(bits(right[at]), bits(old[at]))
        if DEVICE == "cpu":
            assert torch.equal(bits(mine), bits(right))
            continue
        mended = mine.clone()
        for x in (mended, old):
            bits_of = x.view(torch.uint8) if x.dtype.itemsize == 1 else x
            bits_of[at] = 0
        assert torch.equal(bits(mended), bits(old)), "another slot was written"
    if DEVICE != "cpu":
        for mine, right in zip(read(ours, at), read(theirs, at), strict=True):
            torch.testing.assert_close(mine, right, rtol=2**-6, atol=1e-2, equal_nan=True)


def read(step: Step, at: tuple[list[int], list[int]]) -> list[torch.Tensor]:
    """Keys and values as they read, float32."""
    if step.scales is None:
        return [page[at].float() for page in step.pages]
    return [dequantize_kv(page[at], own[at]) for page, own in zip(step.pages, step.scales, strict=True)]


def check(case: Case) -> None:
    ours, theirs = Step(case), Step(case)
    before, raw = [part.clone() for part in theirs.kept], bits(ours.qkv)
    mine, right = ours.run(fused=True), theirs.run(fused=False)
    assert ours.units > 1 or case.config is not MANY or case.window is not None
    assert torch.equal(bits(ours.qkv), raw)
    apart(ours, theirs, before)
    padding = [entry for entry in range(len(ours.rows)) if entry not in ours.live]
    assert mine[padding].isnan().all()
    if case.spoilt:
        assert torch.equal(mine.isnan(), right.isnan()) and mine[ours.live[0]].isnan().any()
        return
    assert torch.isfinite(mine[ours.live]).all()
    assert_near(mine[ours.live], right[ours.live], 1 if case.dtype == BF16 else 8, floor=0.25)


PERSISTENT = replace(MANY, persistent=True, units_per_sm=2)
AHEAD = DecodeConfig(block_keys=16, prefetch=True, min_chunk=32, units_per_sm=4)
STAGED = DecodeConfig(block_keys=32, num_warps=4, num_stages=3)
SHAPES = [(2, 2, 32), (8, 2, 64), (3, 1, 32), (1, 1, 128), (4, 1, 128)]
# Each order in each shape: what is added and multiplied belongs to models of that order.
WAYS = list(product(ORDERS, SHAPES))
CASES = [
    *(Case(order, *shape, bias=order == "rope", weights=order == "norm_rope") for order, shape in WAYS),
    *(Case(order, *shape, dtype=F32, padding=True) for order, shape in WAYS if shape in SHAPES[2:4]),
    *(Case(order, *shape, eight_bits=True) for order, shape in WAYS if shape in SHAPES[2:]),
]
OTHERS = [
    *(Case(heads=heads, kv_heads=1, window=window) for heads, window in product((1, 4), (0, 15, 16, 40))),
    *(
        Case(heads=heads, kv_heads=1, config=config, eight_bits=eight_bits, head_dim=64)
        for heads, config, eight_bits in product((1, 4), (PERSISTENT, AHEAD, STAGED, None), (False, True))
    ),
    Case(bias=True, weights=True, order="norm_rope", heads=4, heads_first=False, eight_bits=True),
    Case(eight_bits=True, spoilt=True, padding=True),
    Case(heads=8, spoilt=True, heads_first=False),
    Case(contexts=(256,), config=None),
]


@pytest.mark.parametrize("case", tiered(CASES, {2, 14, 18, 24}), ids=str)
def test_orders_and_shapes(case: Case) -> None:
    check(case)


@pytest.mark.parametrize("case", tiered(OTHERS, {1, 7, 8, 10, 11, 20, 27}), ids=str)
def test_windows_configurations_and_layouts(case: Case) -> None:
    check(case)


def test_a_row_goes_on_over_what_it_kept() -> None:
    """Step after step across the border of a block, each reading what those before it stored."""
    both: list[list[torch.Tensor]] = []
    for fused in (True, False):
        steps = [Step(Case(heads=1, kv_heads=1, contexts=(context,))) for context in (16, 17, 18)]
        found: list[torch.Tensor] = []
        for step in steps:
            step.pages, step.tables = steps[-1].pages, steps[-1].tables
            at = int(step.positions)
            step.slots = step.tables[0, at // BLOCK : at // BLOCK + 1] * BLOCK + at % BLOCK
            step.qkv = step.qkv * at
            found.append(step.run(fused))
        both.append([*found, *steps[-1].pages])
    for mine, right in zip(*both, strict=True):
        torch.testing.assert_close(mine, right, rtol=2**-7, atol=1e-3, equal_nan=True)


def test_queries_of_another_projection_are_refused() -> None:
    step = Step(Case())
    other = replace(step.spec, heads=1)
    step.spec = other
    with pytest.raises(ValueError, match="workspace"):
        step.run(fused=True)
    step = Step(Case())
    fresh = Fresh(step.qkv.clone(), step.slots, *step.table, step.spec)
    space = DecodeWorkspace.allocate(8, 2, 2, 32, 256, DEVICE)
    asked = (step.tables, step.rows, step.positions, torch.empty(5, 64, dtype=BF16), space)
    query = step.qkv[:, :64].unflatten(1, (2, 32))
    with pytest.raises(ValueError, match="not those of what is fresh"):
        paged_decode(query, *step.pages, *asked, scale=1.0, window=None, fresh=fresh)


@pytest.mark.slow
def test_it_compiles_without_spills(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.kernels.triton.compile_fresh"],
        env=environment | {"TRITON_CACHE_DIR": str(tmp_path)},
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 14 and all(line.endswith(" 0 True") for line in lines), done.stdout
