"""kernels/cuda/skinny.cu, run thread by thread on the host (emulation.h), against float64."""

import ctypes
from collections.abc import Callable
from itertools import product

import pytest
import torch
from _pytest.mark import ParameterSet

from kernels.quantize import Kind8, Weight, Weight8, WeightKind, in_pairs, quantize
from kernels.skinny import BLOCK_CHANNELS, Activation, Variant, defines, skinny_linear, unsupported, variants
from tests.kernels.conftest import HostCode
from tests.tiers import tiered

FLAGS: dict[Activation, int] = {"none": 0, "relu2": 2, "swiglu": 4}
Run = Callable[..., torch.Tensor]


@pytest.fixture(scope="module")
def build(host_code: HostCode) -> Callable[[int, Variant], ctypes.CDLL]:
    return lambda k, variant: host_code("emulate_skinny.cpp", defines(k, variant))


def emulate(
    library: ctypes.CDLL,
    variant: Variant,
    x: torch.Tensor,
    weight: Weight,
    out: torch.Tensor,
    eps: float | None,
    activation: Activation,
    accumulate: bool,
    multiprocessors: int,
) -> None:
    values, factors = (weight.values, weight.scales) if isinstance(weight, Weight8) else (weight, weight)
    flags = FLAGS[activation] | (eps is not None) | accumulate * 8 | 16
    (m, k), n = x.shape, weight.size(0)
    status = library.emulate(
        variant.grid(n, multiprocessors),
        variant.shared_bytes(k),
        *(ctypes.c_void_p(t.data_ptr()) for t in (x, values, out)),
        m,
        n,
        x.stride(0),
        out.stride(0),
        ctypes.c_float(eps or 0.0),
        flags,
        variant.prefetch,
        ctypes.c_void_p(factors.data_ptr()),
    )
    assert status == 0, "the threads wait for each other for ever, or wrote past their shared memory"


def exact(
    x: torch.Tensor,
    weight: Weight,
    eps: float | None,
    activation: Activation,
    before: torch.Tensor | None,
) -> torch.Tensor:
    """The same in float64. Of eight bits: what the numbers and factors stand for, not rounded."""
    x = x.double()
    full = weight
    if isinstance(weight, Weight8):
        full = in_pairs(weight.values).double() * weight.scales.double()[:, None]
    y = x @ full.double().T
    if eps is not None:
        y *= (x.square().mean(1, keepdim=True) + eps).rsqrt()
    if activation == "relu2":
        y = y.relu().square()
    if activation == "swiglu":
        pairs = y.unflatten(1, (-1, 2, 8))
        y = (torch.nn.functional.silu(pairs[:, :, 0]) * pairs[:, :, 1]).flatten(1)
    return y if before is None else before.double() + y


def inputs(m: int, n: int, k: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x as rows of a wider, poisoned buffer; weight; residual."""
    torch.manual_seed(m * 7 + n + k)
    x = torch.full((m + 3, k + 8), float("nan"), dtype=torch.bfloat16)
    x[:m, :k] = torch.randn(m, k)
    weight = (torch.randn(n, k) / k**0.5).bfloat16()
    return x[:m, :k], weight, torch.randn(m, n).bfloat16()


CASES = [
    # tiles, row groups, split, depth, persistent, multiprocessors; m, n, k; eps, activation, accumulate
    (1, 1, 1, 2, False, 4, 1, 32, 512, None, "none", False),
    (3, 1, 1, 2, False, 4, 3, 112, 544, 1e-6, "swiglu", False),
    (1, 1, 2, 2, False, 4, 7, 48, 288, None, "none", True),
    (1, 2, 4, 1, False, 4, 13, 96, 320, 1e-5, "swiglu", False),
    (2, 2, 8, 1, False, 8, 16, 176, 256, None, "none", True),
    (2, 4, 4, 2, False, 4, 31, 144, 512, 1e-5, "relu2", False),
    (3, 8, 4, 2, False, 4, 57, 192, 512, None, "none", True),
    (2, 1, 1, 2, True, 2, 6, 240, 512, 1e-5, "none", False),
    (1, 2, 2, 2, True, 2, 11, 208, 352, None, "none", True),
    (2, 8, 4, 1, True, 4, 33, 400, 256, 1e-5, "swiglu", False),
]


@pytest.mark.parametrize("case", tiered([(case,) for case in CASES], range(1, 10, 2)), ids=str)
def test_equals_float64(case: tuple[object, ...], build: Callable[[int, Variant], ctypes.CDLL]) -> None:
    tiles, groups, split, depth, persistent, sms, m, n, k, eps, activation, accumulate = case
    variant = Variant(tiles, groups, split, depth, 1, persistent, prefetch=3)  # type: ignore[arg-type]
    assert variant.fits(m, n, k)  # type: ignore[arg-type]
    x, weight, residual = inputs(m, n, k)  # type: ignore[arg-type]
    columns = weight.size(0) // 2 if activation == "swiglu" else weight.size(0)
    buffer = torch.full((m + 1, columns + 2), float("nan"), dtype=torch.bfloat16)  # type: ignore[operator]
    out = buffer[:m, :columns]
    if accumulate:
        out.copy_(residual)
    emulate(build(k, variant), variant, x, weight, out, eps, activation, accumulate, sms)  # type: ignore[arg-type]
    want = exact(x, weight, eps, activation, residual if accumulate else None)  # type: ignore[arg-type]
    error = (out.double() - want).norm() / want.norm()
    assert error < 3e-3
    assert (out.double() - want).abs().max() < 2e-2 * max(1.0, want.abs().max().item())
    assert buffer[m:].isnan().all() and buffer[:, columns:].isnan().all()  # type: ignore[misc]


CASES8 = [
    (1, 1, 1, 2, False, 4, 1, 32, 1024, None, "none", False),
    (3, 1, 1, 2, False, 4, 3, 112, 576, 1e-6, "swiglu", False),
    (1, 1, 2, 2, False, 4, 7, 48, 320, None, "none", True),
    (1, 2, 4, 1, False, 4, 13, 96, 640, 1e-5, "swiglu", False),
    (2, 2, 8, 1, False, 8, 16, 176, 512, None, "none", True),
    (2, 4, 4, 2, False, 4, 31, 144, 1024, 1e-5, "relu2", False),
    (2, 1, 1, 2, True, 2, 6, 240, 1024, 1e-5, "none", False),
    (1, 2, 2, 2, True, 2, 11, 208, 704, None, "none", True),
]


def poisoned8(weight: torch.Tensor, kind: Kind8) -> Weight8:
    """Quantised, in front of memory whose numbers are not finite where the format has such."""
    packed = quantize(weight, kind)
    values = torch.full((weight.size(0) + 1, weight.size(1)), 0x7F, dtype=torch.int8)
    values[:-1] = packed.values.view(torch.int8)
    scales = torch.full((weight.size(0) + 1,), float("nan"))
    scales[:-1] = packed.scales
    return Weight8(values.view(packed.values.dtype)[:-1], scales[:-1], weight.dtype)


def each_once(kinds: tuple[Kind8, ...]) -> list[ParameterSet]:
    """Each case with each kind; quick with one of them, in turn, for each is a form to compile."""
    return [
        pytest.param(case, kind, id=f"{case}-{kind}", marks=[] if (place + at) % 2 else [pytest.mark.slow])
        for at, case in enumerate(CASES8)
        for place, kind in enumerate(kinds)
    ]


@pytest.mark.parametrize(("case", "kind"), each_once(("int8", "fp8")))
def test_eight_bits_equal_float64(
    case: tuple[object, ...], kind: Kind8, build: Callable[[int, Variant], ctypes.CDLL]
) -> None:
    """Of rows with sizes of their own, so that a factor at the wrong place is seen."""
    tiles, groups, split, depth, persistent, sms, m, n, k, eps, activation, accumulate = case
    variant = Variant(tiles, groups, split, depth, 1, persistent, prefetch=3, kind=kind)  # type: ignore[arg-type]
    assert variant.fits(m, n, k)  # type: ignore[arg-type]
    x, weight, residual = inputs(m, n, k)  # type: ignore[arg-type]
    packed = poisoned8(weight * (1 + torch.arange(weight.size(0)) % 7)[:, None], kind)
    columns = weight.size(0) // 2 if activation == "swiglu" else weight.size(0)
    buffer = torch.full((m + 1, columns + 2), float("nan"), dtype=torch.bfloat16)  # type: ignore[operator]
    out = buffer[:m, :columns]
    if accumulate:
        out.copy_(residual)
    emulate(build(k, variant), variant, x, packed, out, eps, activation, accumulate, sms)  # type: ignore[arg-type]
    want = exact(x, packed, eps, activation, residual if accumulate else None)  # type: ignore[arg-type]
    assert (out.double() - want).norm() / want.norm() < 3e-3
    assert (out.double() - want).abs().max() < 2e-2 * max(1.0, want.abs().max().item())
    assert buffer[m:].isnan().all() and buffer[:, columns:].isnan().all()  # type: ignore[misc]


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_every_number_becomes_itself(kind: Kind8, build: Callable[[int, Variant], ctypes.CDLL]) -> None:
    """x picks channel after channel of rows that hold every number of the format."""
    n, k, m = 16, 256, 8
    pattern = torch.arange(n * k, dtype=torch.int32).view(n, k)
    values = ((pattern + pattern // k) % 256 - 128).to(torch.int8)
    if kind == "fp8":
        values[(values & 0x7F) == 0x7F] = 0  # NaN, which quantisation never gives
    weight = Weight8(
        values.view(quantize(torch.ones(1, 1), kind).values.dtype), torch.ones(n), torch.bfloat16
    )
    variant = Variant(1, 1, 1, 1, 1, kind=kind)
    library = build(k, variant)
    for first in range(0, k, m):
        x = torch.zeros(m, k, dtype=torch.bfloat16)
        x[torch.arange(m), first + torch.arange(m)] = 1
        out = torch.empty(m, n, dtype=torch.bfloat16)
        emulate(library, variant, x, weight, out, None, "none", False, 4)
        assert torch.equal(out.float(), in_pairs(weight.values)[:, first : first + m].float().T)


@pytest.mark.parametrize("kind", tiered(["int8", "fp8"], {1}))
def test_a_row_of_eight_bits_depends_on_nothing_else(
    kind: Kind8, build: Callable[[int, Variant], ctypes.CDLL]
) -> None:
    x, weight, _ = inputs(20, 96, 576)
    packed, results = quantize(weight, kind), []
    for m, shape in ((20, (1, 3, 4, 1)), (5, (2, 1, 1, 2)), (1, (1, 1, 8, 3)), (9, (2, 2, 2, 1))):
        variant = Variant(*shape, 1, kind=kind)
        out = torch.empty(m, 96, dtype=torch.bfloat16)
        emulate(build(576, variant), variant, x[:m], packed, out, None, "none", False, 132)
        results.append(out)
    for out in results[1:]:
        assert torch.equal(out, results[0][: out.size(0)])


def test_a_row_depends_on_nothing_else(build: Callable[[int, Variant], ctypes.CDLL]) -> None:
    """Bit-equal alone, in company, and by any variant."""
    n, k = 96, 544
    x, weight, _ = inputs(40, n, k)
    results = []
    for m, shape in (
        (40, (1, 8, 4, 1)),
        (40, (3, 6, 1, 2)),
        (5, (2, 1, 1, 2)),
        (1, (1, 1, 8, 3)),
        (9, (2, 2, 2, 1)),
    ):
        variant = Variant(*shape, 1)
        out = torch.empty(m, n, dtype=torch.bfloat16)
        emulate(build(k, variant), variant, x[:m], weight, out, 1e-5, "none", False, 132)
        results.append(out)
    for out in results[1:]:
        assert torch.equal(out, results[0][: out.size(0)])


@pytest.mark.parametrize("case", [CASES[1], CASES[5], CASES[8]], ids=str)
def test_the_threads_order_does_not_matter(
    case: tuple[object, ...], build: Callable[[int, Variant], ctypes.CDLL]
) -> None:
    """Bit-equal with threads in any order, warps that stand still now and then, and copies that take long."""
    tiles, groups, split, depth, persistent, sms, m, n, k, eps, activation, accumulate = case
    variant = Variant(tiles, groups, split, depth, 1, persistent)  # type: ignore[arg-type]
    x, weight, residual = inputs(m, n, k)  # type: ignore[arg-type]
    columns = weight.size(0) // 2 if activation == "swiglu" else weight.size(0)
    library, results = build(k, variant), []  # type: ignore[arg-type]
    for seed in range(4):
        library.shake(seed)
        out = residual[:, :columns].clone()
        emulate(library, variant, x, weight, out, eps, activation, accumulate, sms)  # type: ignore[arg-type]
        results.append(out)
    library.shake(0)
    assert all(torch.equal(out, results[0]) for out in results)


def test_variants_fit() -> None:
    kind: WeightKind
    for n, k in (
        (6144, 2048),
        (2048, 8192),
        (65536, 2048),
        (11008, 2048),
        (2048, 5504),
        (151936, 1024),
        (16, 32),
    ):
        for m, kind in product((1, 7, 8, 12, 16, 24, 33, 48, 64), ("bf16", "int8", "fp8")):
            if k % BLOCK_CHANNELS[kind]:
                continue
            found = variants(m, n, k, kind=kind)
            assert found and len(set(found)) == len(found)
            for variant in found:
                assert (
                    variant.kind == kind
                    and variant.fits(m, n, k)
                    and variant.grid(n, 132) % variant.split == 0
                )
                assert variant.depth * variant.tiles <= 16
    assert variants(65, 2048, 2048) == []


def test_refuses_what_it_cannot_do() -> None:
    assert unsupported(64, 64, "none", False, torch.bfloat16, (9, 0)) is None
    assert "9.0" in (unsupported(64, 64, "none", False, torch.bfloat16, (8, 0)) or "")
    assert "bfloat16" in (unsupported(64, 64, "none", False, torch.float32, (9, 0)) or "")
    assert "16" in (unsupported(40, 64, "none", False, torch.bfloat16, (9, 0)) or "")
    assert "32" in (unsupported(64, 48, "none", False, torch.bfloat16, (9, 0)) or "")
    assert "64" in (unsupported(64, 96, "none", False, torch.bfloat16, (9, 0), "int8") or "")
    assert "model is torch.float32" in (
        unsupported(64, 64, "none", False, torch.float32, (9, 0), "fp8") or ""
    )
    x, w = torch.zeros(1, 64, dtype=torch.bfloat16), torch.zeros(32, 64, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="out is"):
        skinny_linear(x, w, torch.zeros(1, 16, dtype=torch.bfloat16), variant=Variant(1, 1, 1, 1, 1))
    with pytest.raises(ValueError, match="does not fit"):
        skinny_linear(
            x.expand(9, -1), w, torch.zeros(9, 32, dtype=torch.bfloat16), variant=Variant(1, 1, 1, 1, 1)
        )
    with pytest.raises(ValueError, match="is not for a weight of kind int8"):
        out = torch.zeros(1, 32, dtype=torch.bfloat16)
        skinny_linear(x, quantize(w, "int8"), out, variant=Variant(1, 1, 1, 1, 1))
