"""Products of few rows on the device: against float64, bit for bit against themselves, in graphs, as
chosen."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kernels.cuda_driver import architecture
from kernels.device_linear import DeviceLinear, LinearScratch, through_cublas
from kernels.nvrtc import CompileError, compile_cubin
from kernels.probe import Choices, Projection, choose
from kernels.product import Product
from kernels.skinny import Activation, Variant, prepare_all, skinny_linear, variants
from kernels.skinny_family import Skinny
from tests.kernels.test_skinny import exact

EPS = 1e-5
SHAPES: list[tuple[int, int, bool, Activation, bool]] = [
    (6144, 2048, True, "none", False),
    (2048, 2048, False, "none", True),
    (8192, 2048, True, "relu2", False),
    (2048, 8192, False, "none", True),
    (11008, 2048, True, "swiglu", False),
    (2048, 5504, False, "none", True),
    (4096, 1024, True, "none", False),
    (1024, 3072, False, "none", True),
    (151936, 1024, True, "none", False),
    (16, 32, True, "none", False),
    (80, 96, True, "relu2", False),
    (112, 544, True, "swiglu", False),
    (48, 288, False, "none", True),
]
ROWS = (1, 2, 3, 7, 8, 12, 16, 23, 32, 47, 64)


@pytest.fixture(scope="module", autouse=True)
def compiled(cuda: None) -> None:
    if torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("needs compute capability 9.0")
    wanted = [
        (k, v) for n, k, _, activation, _ in SHAPES for m in ROWS for v in variants(m, n, k, activation)[:4]
    ]
    prepare_all(wanted, torch.device("cuda"))()


def product(
    x: torch.Tensor,
    weight: torch.Tensor,
    shape: tuple[int, int, bool, Activation, bool],
    variant: Variant,
    before: torch.Tensor,
    pdl: bool = False,
) -> torch.Tensor:
    """Into a poisoned buffer with a margin, which must stay as it is."""
    n, _, norm, activation, accumulate = shape
    m, columns = x.size(0), n // 2 if activation == "swiglu" else n
    buffer = torch.full((m + 1, columns + 16), float("nan"), dtype=torch.bfloat16, device="cuda")
    out = buffer[:m, :columns]
    if accumulate:
        out.copy_(before)
    eps = EPS if norm else None
    skinny_linear(
        x, weight, out, eps=eps, activation=activation, accumulate=accumulate, variant=variant, pdl=pdl
    )
    assert buffer[m:].isnan().all() and buffer[:, columns:].isnan().all()
    return out


def tensors(
    m: int, shape: tuple[int, int, bool, Activation, bool]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x as rows of a wider, poisoned buffer; weight; residual."""
    n, k = shape[:2]
    torch.manual_seed(n + k + m)
    x = torch.full((m + 2, k + 64), float("nan"), dtype=torch.bfloat16, device="cuda")
    x[:m, :k] = torch.randn(m, k, device="cuda")
    weight = torch.empty(n, k, dtype=torch.bfloat16, device="cuda").normal_(std=k**-0.5)
    return x[:m, :k], weight, torch.randn(m, n, device="cuda").bfloat16()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_float64(shape: tuple[int, int, bool, Activation, bool]) -> None:
    n, k, norm, activation, accumulate = shape
    x, weight, residual = tensors(ROWS[-1], shape)
    want = exact(x, weight, EPS if norm else None, activation, residual if accumulate else None)
    for m in ROWS:
        for variant in variants(m, n, k, activation)[:4]:
            out = product(x[:m], weight, shape, variant, residual[:m])
            error = ((out.double() - want[:m]).norm() / want[:m].norm()).item()
            assert error < 3e-3, f"{variant}, {m} rows: {error}"
            worst = (out.double() - want[:m]).abs().max().item()
            assert worst < 1e-2 * max(1.0, want[:m].abs().max().item()), f"{variant}, {m} rows: {worst}"


@pytest.mark.parametrize("shape", SHAPES[:6], ids=str)
def test_a_row_depends_on_nothing_else(shape: tuple[int, int, bool, Activation, bool]) -> None:
    """Bit-equal for any number of rows, any neighbours, any variant, and from run to run."""
    n, k, _, activation, _ = shape
    x, weight, residual = tensors(64, shape)
    whole = product(x, weight, shape, variants(64, n, k, activation)[0], residual)
    other = x.flip(0).contiguous() * 3
    for m in ROWS:
        for variant in variants(m, n, k, activation)[:3]:
            assert torch.equal(product(x[:m], weight, shape, variant, residual[:m]), whole[:m]), str(variant)
            mixed = torch.cat((x[:1], other[1:m]))
            assert torch.equal(product(mixed, weight, shape, variant, residual[:m])[0], whole[0]), str(
                variant
            )
    for _ in range(20):
        assert torch.equal(product(x, weight, shape, variants(64, n, k, activation)[0], residual), whole)


class Chain:
    """qkv, o, fc, proj, twice over, each reading what the one before wrote."""

    def __init__(self, m: int, index: int) -> None:
        """index: which of the variants each product uses."""
        self.m, self.index = m, index
        torch.manual_seed(m)
        self.weights = [[self._weight(n, k) for n, k, *_ in SHAPES[:4]] for _ in range(6)]
        self.start = torch.randn(m, 2048, device="cuda").bfloat16()
        self.x = torch.empty_like(self.start)
        self.qkv = torch.empty(m, 6144, dtype=torch.bfloat16, device="cuda")
        self.hidden = torch.empty(m, 8192, dtype=torch.bfloat16, device="cuda")

    @staticmethod
    def _weight(n: int, k: int) -> torch.Tensor:
        return torch.empty(n, k, dtype=torch.bfloat16, device="cuda").normal_(std=0.5 * k**-0.5)

    def run(self, pdl: bool, prefetch: int = 0) -> None:
        self.x.copy_(self.start)
        self.qkv.fill_(float("nan"))
        self.hidden.fill_(float("nan"))
        links = (
            (self.x, self.qkv),
            (self.qkv[:, :2048], self.x),
            (self.x, self.hidden),
            (self.hidden, self.x),
        )
        for weights in self.weights:
            for (n, k, norm, activation, accumulate), weight, (source, target) in zip(
                SHAPES[:4], weights, links, strict=True
            ):
                found = variants(self.m, n, k, activation)
                variant = replace(found[self.index % len(found)], prefetch=prefetch)
                skinny_linear(
                    source,
                    weight,
                    target,
                    eps=EPS if norm else None,
                    activation=activation,
                    accumulate=accumulate,
                    variant=variant,
                    pdl=pdl,
                )


@pytest.mark.parametrize("m", [1, 8, 16, 33, 64])
def test_overlapped_chain_in_a_graph(m: int) -> None:
    """Kernels that start before the previous one has ended give equal bits, eagerly and in a graph."""
    chain = Chain(m, 0)
    chain.run(pdl=False)
    want = chain.x.clone()
    assert want.isfinite().all()
    for index in range(3):
        chain.index = index
        for pdl, prefetch in ((False, 0), (True, 0), (True, 6)):
            chain.run(pdl, prefetch)
            assert torch.equal(chain.x, want)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                chain.run(pdl, prefetch)
            for _ in range(10):
                chain.x.fill_(float("nan"))
                graph.replay()
                assert torch.equal(chain.x, want)


def test_walking_blocks(compiled: None) -> None:
    """A grid smaller than the work, in every form, is bit-equal to one block a group."""
    shape: tuple[int, int, bool, Activation, bool] = (20000, 1024, True, "none", False)
    x, weight, residual = tensors(9, shape)
    want = product(x, weight, shape, Variant(1, 2, 1, 4, 1), residual)
    for tiles, split in ((1, 1), (3, 1), (2, 2), (1, 8), (4, 4)):
        variant = Variant(tiles, 2, split, 2, 1, persistent=True)
        assert torch.equal(product(x, weight, shape, variant, residual), want), str(variant)


def test_compile_errors_say_why() -> None:
    with pytest.raises(CompileError, match="expected"):
        compile_cubin("__device__ int x = ;", "bad", architecture(torch.cuda.current_device()), {})


def test_device_linear_by_choice(tmp_path: Path) -> None:
    """Whatever is chosen, the result is right; the second start measures nothing."""
    scratch = LinearScratch.allocate(256, 2048, 11008, torch.bfloat16, torch.device("cuda"))
    shapes = [SHAPES[i] for i in (0, 1, 2, 4)]
    projections = []
    for n, k, norm, activation, accumulate in shapes:
        weights = [Chain._weight(n, k) for _ in range(3)]
        projections.append(Projection("p", Product(n, k, norm, activation, accumulate), weights))
    given = projections, through_cublas(scratch), [Skinny(torch.device("cuda"), pdl=True)]
    measured = choose(*given, pdl=True, cache=tmp_path / "c.json")
    again = choose(*given, pdl=True, timer=_never, cache=tmp_path / "c.json")
    assert again.table == measured.table
    forced = choose(*given, mode="skinny", pdl=True, cache=tmp_path / "c.json")
    for choices in (measured, forced, Choices()):
        for shape, projection in zip(shapes, projections, strict=True):
            _, _, norm, activation, accumulate = shape
            for m in (1, 5, 24, 64, 200):
                x, weight, residual = (
                    torch.randn(m, shape[1], device="cuda").bfloat16(),
                    projection.weights[0],
                    None,
                )
                linear = DeviceLinear(weight, choices=choices, scratch=scratch, pdl=True)
                if accumulate:
                    residual = torch.randn(m, shape[0], device="cuda").bfloat16()
                    out = residual.clone()
                    linear.linear_residual(x, out)
                else:
                    width = shape[0] // 2 if activation == "swiglu" else shape[0]
                    out = torch.full((m, width), float("nan"), dtype=torch.bfloat16, device="cuda")
                    linear.norm_linear_activation(x, out, EPS, activation)
                want = exact(x, weight, EPS if norm else None, activation, residual)
                assert (out.double() - want).norm() / want.norm() < 8e-3


def _never(body: Callable[[], None]) -> float:
    raise AssertionError("nothing to measure")
