"""kernels/cuda/streamed.cu, run thread by thread on the host (emulation.h), against float64."""

import ctypes
from collections.abc import Callable
from itertools import product

import pytest
import torch

from kernels.skinny import Activation
from kernels.streamed import (
    MAX_ROWS,
    Config,
    configs,
    defines,
    height_of,
    most_shared,
    streamed_linear,
    unsupported,
)
from tests.kernels.conftest import HostCode
from tests.kernels.test_skinny import FLAGS, exact, inputs
from tests.tiers import tiered

Build = Callable[[int, int, Config], ctypes.CDLL]


@pytest.fixture(scope="module")
def build(host_code: HostCode) -> Build:
    return lambda k, m, config: host_code("emulate_streamed.cpp", defines(k, m, config))


def emulate(
    library: ctypes.CDLL,
    config: Config,
    x: torch.Tensor,
    weight: torch.Tensor,
    out: torch.Tensor,
    eps: float | None,
    activation: Activation,
    accumulate: bool,
) -> None:
    flags = FLAGS[activation] | (eps is not None) | accumulate * 8 | 16
    m, n = x.size(0), weight.size(0)
    status = library.emulate(
        config.grid(n),
        config.shared_bytes(m),
        *(ctypes.c_void_p(t.data_ptr()) for t in (x, weight, out)),
        m,
        n,
        x.stride(0),
        out.stride(0),
        ctypes.c_float(eps or 0.0),
        flags,
    )
    assert status == 0, "the threads wait for each other for ever, or did what the device would not forgive"


Case = tuple[Config, int, int, int, float | None, Activation, bool]
CASES: list[Case] = [
    # config (tiles, split, stages); m, n, k; eps, activation, accumulate
    (Config(1, 1, 2), 1, 64, 320, None, "none", False),
    (Config(2, 4, 4), 7, 208, 576, 1e-5, "none", False),
    (Config(1, 4, 3), 8, 96, 448, None, "none", True),
    (Config(3, 2, 2), 13, 400, 384, 1e-5, "relu2", False),
    (Config(2, 8, 2), 16, 128, 512, None, "none", True),
    (Config(1, 2, 6), 27, 176, 1024, 1e-5, "swiglu", False),
    (Config(4, 1, 2), 5, 272, 192, 1e-6, "swiglu", False),
    (Config(1, 4, 5), 64, 80, 1280, 1e-5, "none", False),
    (Config(2, 2, 3), 50, 128, 256, None, "none", True),
]


def result(build: Build, case: Case, rows: slice = slice(None)) -> tuple[torch.Tensor, torch.Tensor]:
    """What the kernel gives for some rows, and what is right."""
    config, m, n, k, eps, activation, accumulate = case
    assert config.misfit(m, n, k) is None
    x, weight, residual = inputs(m, n, k)
    columns = n // 2 if activation == "swiglu" else n
    x, residual = x[rows], residual[rows, :columns]
    count = x.size(0)
    buffer = torch.full((count + 1, columns + 4), float("nan"), dtype=torch.bfloat16)
    out = buffer[:count, :columns]
    if accumulate:
        out.copy_(residual)
    emulate(build(k, count, config), config, x, weight, out, eps, activation, accumulate)
    assert buffer[count:].isnan().all() and buffer[:, columns:].isnan().all()
    return out, exact(x, weight, eps, activation, residual if accumulate else None)


@pytest.mark.parametrize("case", tiered([(case,) for case in CASES], range(3, 9, 2)), ids=str)
def test_equals_float64(case: Case, build: Build) -> None:
    out, want = result(build, case)
    assert (out.double() - want).norm() / want.norm() < 3e-3
    assert (out.double() - want).abs().max() < 2e-2 * max(1.0, want.abs().max().item())


def test_a_row_depends_on_nothing_else(build: Build) -> None:
    """Bit-equal alone, in company of any number, and however outputs are cut, as long as K is cut alike."""
    whole, _ = result(build, (Config(1, 4, 3), 40, 96, 576, 1e-5, "none", False))
    for tiles, rows in ((2, slice(3, 4)), (1, slice(0, 9)), (3, slice(20, 40))):
        part, _ = result(build, (Config(tiles, 4, 2), 40, 96, 576, 1e-5, "none", False), rows)
        assert torch.equal(part, whole[rows])


@pytest.mark.parametrize("case", [CASES[1], CASES[2], CASES[5]], ids=str)
def test_the_threads_order_does_not_matter(case: Case, build: Build) -> None:
    """Bit-equal with threads in any order, warps that stand still now and then, and copies that take long."""
    config, m, _, k, *_ = case
    library, results = build(k, m, config), []
    for seed in range(4):
        library.shake(seed)
        results.append(result(build, case)[0])
    library.shake(0)
    assert all(torch.equal(out, results[0]) for out in results)


def test_configurations_fit() -> None:
    for n, k in ((6144, 2048), (2048, 8192), (65536, 2048), (11008, 2048), (2048, 5504), (16, 64)):
        for m in (1, 8, 9, 17, 33, 64):
            found = configs(m, n, k)
            assert found and len(set(found)) == len(found)
            for config in found:
                assert config.misfit(m, n, k) is None and config.grid(n) % config.split == 0
                assert config.shared_bytes(m) <= most_shared(m) and height_of(m) >= m
    assert configs(65, 2048, 2048) == [] and configs(0, 2048, 2048) == []


def test_refuses_what_it_cannot_do() -> None:
    assert unsupported(64, 64, "none", False, torch.bfloat16, (9, 0)) is None
    for capability in ((8, 0), (10, 0)):
        assert "9.0" in (unsupported(64, 64, "none", False, torch.bfloat16, capability) or "")
    assert "bfloat16" in (unsupported(64, 64, "none", False, torch.float32, (9, 0)) or "")
    assert "16" in (unsupported(40, 64, "none", False, torch.bfloat16, (9, 0)) or "")
    assert "64" in (unsupported(64, 96, "none", False, torch.bfloat16, (9, 0)) or "")
    x, w = torch.zeros(1, 64, dtype=torch.bfloat16), torch.zeros(32, 64, dtype=torch.bfloat16)
    wide, out = x.expand(MAX_ROWS + 1, -1).contiguous(), torch.zeros(1, 32, dtype=torch.bfloat16)
    for config, message in (
        (Config(1, 8, 2), "together"),
        (Config(1, 2, 2), "split"),
        (Config(1, 1, 1), "stages"),
    ):
        with pytest.raises(ValueError, match=message):
            streamed_linear(x, w, out, config=config)
    with pytest.raises(ValueError, match="65 rows"):
        streamed_linear(wide, w, out.expand(65, -1), config=Config(1, 1, 2))
    with pytest.raises(ValueError, match="out is"):
        streamed_linear(x, w, out[:, :16], config=Config(1, 1, 2))
    x, w = torch.zeros(1, 512, dtype=torch.bfloat16), torch.zeros(32, 512, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="apart"):
        streamed_linear(x, w, out[:, :16], activation="swiglu", config=Config(3, 8, 2))


def test_every_split_may_be_gated_where_it_says_so() -> None:
    for tiles, split in product(range(1, 5), (1, 2, 4, 8)):
        assert Config(tiles, split, 2).gates == (64 * tiles % (16 * split) == 0)
