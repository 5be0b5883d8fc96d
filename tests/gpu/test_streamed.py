"""Products whose weights stream, on the device: against float64, against themselves, in graphs."""

from dataclasses import replace

import pytest
import torch

from kernels.skinny import Activation
from kernels.streamed import Config, configs, prepare_all, streamed_linear
from tests.kernels.test_skinny import exact

EPS = 1e-5
Shape = tuple[int, int, bool, Activation, bool]
SHAPES: list[Shape] = [
    # n, k, norm, activation, accumulate
    (6144, 2048, True, "none", False),
    (2048, 2048, False, "none", True),
    (8192, 2048, True, "relu2", False),
    (2048, 8192, False, "none", True),
    (11264, 2048, True, "swiglu", False),
    (2048, 5632, False, "none", True),
    (65536, 2048, False, "none", False),
    (16, 64, True, "none", False),
    (208, 576, True, "swiglu", False),
    (400, 1088, False, "none", True),
]
ROWS = (1, 5, 8, 9, 16, 27, 32, 50, 64)


def cuts(m: int, shape: Shape) -> list[Config]:
    """Those that are measured, and two stages, the fewest."""
    n, k, _, activation, _ = shape
    found = [c for c in configs(m, n, k) if c.gates or activation != "swiglu"][:4]
    return [*found, replace(found[0], stages=2)]


@pytest.fixture(scope="module", autouse=True)
def compiled(cuda: None) -> None:
    if torch.cuda.get_device_capability()[0] != 9:
        pytest.skip("needs compute capability 9.0")
    wanted = [(shape[1], m, c) for shape in SHAPES for m in ROWS for c in cuts(m, shape)]
    prepare_all(wanted, torch.device("cuda"))()


def operands(m: int, shape: Shape) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x as rows of a wider, poisoned buffer; weight; what is there before."""
    n, k, _, activation, _ = shape
    torch.manual_seed(m + n + k)
    options = {"dtype": torch.bfloat16, "device": "cuda"}
    x = torch.full((m + 3, k + 8), float("nan"), **options)  # type: ignore[call-overload]
    x[:m, :k] = torch.randn(m, k, device="cuda")
    weight = torch.randn(n, k, **options) / k**0.5  # type: ignore[call-overload]
    columns = n // 2 if activation == "swiglu" else n
    return x[:m, :k], weight, torch.randn(m, columns, **options)  # type: ignore[call-overload]


def product(
    x: torch.Tensor,
    weight: torch.Tensor,
    shape: Shape,
    config: Config,
    before: torch.Tensor,
    pdl: bool = False,
    times: int = 1,
) -> torch.Tensor:
    """Into a poisoned buffer with a margin, which must stay as it is."""
    _, _, norm, activation, accumulate = shape
    m, columns = before.shape
    buffer = torch.full((m + 1, columns + 16), float("nan"), dtype=torch.bfloat16, device="cuda")
    out = buffer[:m, :columns]
    out.copy_(before)
    for _ in range(times):
        streamed_linear(
            x,
            weight,
            out,
            eps=EPS if norm else None,
            activation=activation,
            accumulate=accumulate,
            config=config,
            pdl=pdl,
        )
    assert buffer[m:].isnan().all() and buffer[:, columns:].isnan().all()
    return out


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_float64(shape: Shape) -> None:
    _, _, norm, activation, accumulate = shape
    for m in ROWS:
        x, weight, before = operands(m, shape)
        want = exact(x, weight, EPS if norm else None, activation, before if accumulate else None)
        for config in cuts(m, shape):
            out = product(x, weight, shape, config, before, pdl=m % 2 == 0)
            error = ((out.double() - want).norm() / want.norm()).item()
            assert error < 4e-3, f"{m} rows, {config}: {error}"


@pytest.mark.parametrize("shape", SHAPES[:6], ids=str)
def test_a_row_depends_on_nothing_else(shape: Shape) -> None:
    """Alone, in company of any number, and however outputs are cut: K must be cut alike."""
    x, weight, before = operands(64, shape)
    whole = product(x, weight, shape, Config(1, 4, 3), before)
    for tiles, rows in ((1, slice(63, 64)), (2, slice(0, 8)), (2, slice(5, 20)), (1, slice(30, 62))):
        part = product(x[rows], weight, shape, Config(tiles, 4, 2), before[rows], pdl=True)
        assert torch.equal(part, whole[rows])


@pytest.mark.parametrize("m", [8, 64])
def test_the_same_bits_each_time(m: int) -> None:
    for shape in SHAPES[:4]:
        x, weight, before = operands(m, shape)
        config = cuts(m, shape)[0]
        first = product(x, weight, shape, config, before, pdl=True)
        for _ in range(100):
            assert torch.equal(product(x, weight, shape, config, before, pdl=True), first)


def test_a_captured_chain_waits_for_what_it_reads() -> None:
    """Products behind each other in a graph, each reading what the one before wrote."""
    out, down = SHAPES[1], SHAPES[3]
    up = replace_activation(SHAPES[2])
    m = 16
    x, first, _ = operands(m, out)
    _, second, wide = operands(m, up)
    _, third, _ = operands(m, down)
    stream, hidden, steps = torch.empty_like(x.contiguous()), torch.empty_like(wide), []
    for source, weight, shape, target in (
        (x, first, out, stream),
        (stream, second, up, hidden),
        (hidden, third, down, stream),
    ):
        steps.append((source, weight, shape, target, cuts(m, shape)[0]))

    def run(pdl: bool) -> None:
        stream.fill_(0.25)
        for _ in range(8):
            for source, weight, (_, _, norm, activation, accumulate), target, config in steps:
                eps = EPS if norm else None
                streamed_linear(
                    source,
                    weight,
                    target,
                    eps=eps,
                    activation=activation,
                    accumulate=accumulate,
                    config=config,
                    pdl=pdl,
                )

    run(pdl=False)
    want = stream.clone()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run(pdl=True)
    for _ in range(20):
        stream.zero_()
        graph.replay()
        assert torch.equal(stream, want)


def replace_activation(shape: Shape) -> Shape:
    """Without one: squares of squares would leave bf16's range over many steps."""
    n, k, norm, _, accumulate = shape
    return n, k, norm, "none", accumulate
