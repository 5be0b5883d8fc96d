"""Products of some dozens of rows on the device, as models have them: with the norm inside against the norm
as a kernel in front, bit for bit against themselves, overlapped in graphs, as chosen.

Kernels are imported inside the tests (see test_kernels.py).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from kernels.probe import Choice, Choices, Projection, choose
from kernels.product import Pick, Product
from kernels.triton.gemm_config import GemmConfig, configs
from tests.kernels.test_skinny import exact

if TYPE_CHECKING:
    from kernels.device_linear import LinearScratch

EPS = 1e-5
QKV = Product(6144, 2048, True, "none", False)
O_PROJ = Product(2048, 2048, False, "none", True)
FC = Product(8192, 2048, True, "relu2", False)
PROJ = Product(2048, 8192, False, "none", True)
SHAPES = [
    QKV,
    FC,
    Product(11008, 2048, True, "swiglu", False),
    Product(4096, 1024, True, "none", False),
    Product(1008, 320, True, "none", False),
]
ROWS = (17, 32, 33, 64, 65, 100, 128, 256)


@pytest.fixture(scope="module")
def scratch(cuda: None) -> LinearScratch:
    if torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("needs compute capability 9.0")
    from kernels.device_linear import LinearScratch
    from kernels.triton.gemm_family import TritonGemm

    found = LinearScratch.allocate(ROWS[-1], 8192, 11008, torch.bfloat16, torch.device("cuda"))
    # What earlier products left must not matter.
    found.parts.sums.fill_(float("nan"))
    found.parts.squares.fill_(float("nan"))
    wanted = [(p, m, c) for p in (*SHAPES, O_PROJ, PROJ) for m in ROWS for c in candidates(p, m)]
    for pdl in (False, True):
        TritonGemm(found, pdl).compile(wanted)()
    return found


def candidates(product: Product, m: int) -> list[GemmConfig]:
    return configs(m, product.n, product.k, product.norm, 6)


def weight_of(product: Product) -> torch.Tensor:
    weight = torch.empty(product.n, product.k, dtype=torch.bfloat16, device="cuda")
    return weight.normal_(std=0.5 * product.k**-0.5)


def result(
    product: Product,
    x: torch.Tensor,
    weight: torch.Tensor,
    config: GemmConfig,
    scratch: LinearScratch,
    pdl: bool = False,
) -> torch.Tensor:
    """Into a poisoned buffer with a margin, which must stay as it is."""
    from kernels.triton.gemm_family import TritonGemm

    m, columns = x.size(0), product.columns
    buffer = torch.full((m + 1, columns + 16), float("nan"), dtype=torch.bfloat16, device="cuda")
    TritonGemm(scratch, pdl).run(product, x, weight, buffer[:m, :columns], EPS, config)
    assert buffer[m:].isnan().all() and buffer[:, columns:].isnan().all()
    assert not scratch.parts.counters.any()
    return buffer[:m, :columns]


def inputs(product: Product, m: int) -> torch.Tensor:
    """Rows of very different size, as a residual stream's are; a view of wider, poisoned rows."""
    torch.manual_seed(m + product.n)
    x = torch.full((m + 2, product.k + 64), float("nan"), dtype=torch.bfloat16, device="cuda")
    size = torch.logspace(-2, 3, m, device="cuda")[:, None]
    x[:m, : product.k] = torch.randn(m, product.k, device="cuda") * size
    return x[:m, : product.k]


@pytest.mark.parametrize("product", SHAPES, ids=str)
def test_a_norm_inside_is_no_less_exact(product: Product, scratch: LinearScratch) -> None:
    """Than the same product behind the kernel that rounds the norm's result; the worst row counts."""
    weight = weight_of(product)
    for m in ROWS:
        x = inputs(product, m)
        want = exact(x, weight, EPS, product.activation, None)
        errors: dict[bool, list[float]] = {False: [], True: []}
        for config in candidates(product, m):
            out = result(product, x, weight, config, scratch)
            assert out.isfinite().all(), f"{config}, {m} rows"
            error = (out.double() - want).norm(dim=1) / want.norm(dim=1)
            errors[config.norm_inside].append(error.max().item())
        assert max(errors[True]) <= 1.02 * min(errors[False]), f"{m} rows: {errors}"
        assert max(errors[True]) < 4e-3


@pytest.mark.parametrize("product", SHAPES[:3], ids=str)
def test_a_row_depends_on_nothing_else(product: Product, scratch: LinearScratch) -> None:
    """Bit-equal for any number of rows and any neighbours, and from run to run, in one configuration."""
    weight = weight_of(product)
    for m in (32, 64, 128, 256):
        x = inputs(product, m)
        for config in candidates(product, m):
            whole = result(product, x, weight, config, scratch)
            for part in (slice(0, 17), slice(m - 1, m), slice(3, m - 4)):
                assert torch.equal(result(product, x[part], weight, config, scratch), whole[part]), str(
                    config
                )
            wild = x.clone()
            wild[::2] = 1e4 * wild[::2].flip(0)
            wild[2] = float("nan")
            among = result(product, wild, weight, config, scratch)
            assert torch.equal(among[1::2], whole[1::2]) and among[2].isnan().all(), str(config)
            for _ in range(20):
                assert torch.equal(result(product, x, weight, config, scratch, pdl=True), whole), str(config)


class Chain:
    """qkv, o, fc, proj, several times over, each reading what the one before wrote."""

    def __init__(self, m: int, scratch: LinearScratch) -> None:
        self.m, self.scratch = m, scratch
        torch.manual_seed(m)
        self.products = (QKV, O_PROJ, FC, PROJ)
        self.weights = [[weight_of(p) for p in self.products] for _ in range(6)]
        self.start = torch.randn(m, 2048, device="cuda").bfloat16()
        self.x = torch.empty_like(self.start)
        self.qkv = torch.empty(m, QKV.n, dtype=torch.bfloat16, device="cuda")
        self.hidden = torch.empty(m, FC.n, dtype=torch.bfloat16, device="cuda")

    def run(self, configurations: list[GemmConfig], pdl: bool) -> None:
        from kernels.triton.gemm_family import TritonGemm

        self.x.copy_(self.start)
        self.qkv.fill_(float("nan"))
        self.hidden.fill_(float("nan"))
        triton = TritonGemm(self.scratch, pdl)
        links = (
            (self.x, self.qkv),
            (self.qkv[:, :2048], self.x),
            (self.x, self.hidden),
            (self.hidden, self.x),
        )
        for weights in self.weights:
            for product, weight, config, (source, target) in zip(
                self.products, weights, configurations, links, strict=True
            ):
                triton.run(product, source, weight, target, EPS, config)


@pytest.mark.parametrize("m", [17, 32, 64, 128])
def test_overlapped_chain_in_a_graph(m: int, scratch: LinearScratch) -> None:
    """Kernels that start before the previous one has ended give equal bits, eagerly and in a graph."""
    chain = Chain(m, scratch)
    inside = [[c for c in candidates(p, m) if c.norm_inside == p.norm] for p in chain.products]
    for index in range(2):
        found = [some[index % len(some)] for some in inside]
        chain.run(found, pdl=False)
        want = chain.x.clone()
        assert want.isfinite().all()
        for ahead in (0, 8):
            chosen = [replace(config, ahead=ahead) for config in found]
            chain.run(chosen, pdl=True)
            assert torch.equal(chain.x, want), f"{chosen}"
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                chain.run(chosen, pdl=True)
            for _ in range(20):
                chain.x.fill_(float("nan"))
                graph.replay()
                assert torch.equal(chain.x, want), f"{chosen}"


def test_what_is_chosen(scratch: LinearScratch, tmp_path: Path) -> None:
    """Every candidate agrees with the library where it is measured, and what is chosen serves rightly."""
    from kernels.device_linear import DeviceLinear, through_cublas
    from kernels.linear_families import families

    projections = [Projection(str(p), p, [weight_of(p) for _ in range(4)]) for p in (QKV, FC, *SHAPES[2:4])]
    library, ours = through_cublas(scratch, True), families(scratch, True)
    cache = tmp_path / "choices.json"
    chosen = choose(projections, library, ours, pdl=True, cache=cache)
    assert not [row for row in chosen.explain() if "differs" in row[2]]
    table = {
        p.product: {64: Choice(Pick("triton", config))} for p in projections for config in _inside(p.product)
    }
    inside = Choices(table, families=ours)
    for projection in projections:
        product, weight = projection.product, projection.weights[0]
        columns = product.columns
        for choices in (chosen, inside):
            linear = DeviceLinear(weight, choices=choices, scratch=scratch, pdl=True)
            for m in (17, 48, 64, 200):
                x = inputs(product, m)
                out = torch.full((m, columns), float("nan"), dtype=torch.bfloat16, device="cuda")
                linear.norm_linear_activation(x, out, EPS, product.activation)
                want = exact(x, weight, EPS, product.activation, None)
                assert (out.double() - want).norm() / want.norm() < 8e-3


def _inside(product: Product) -> list[GemmConfig]:
    return [config for config in candidates(product, 64) if config.norm_inside][:1]
