"""Products of some dozens of rows against float64 arithmetic on the same, rounded, inputs."""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from kernels import probe
from kernels.device_linear import DeviceLinear, LinearScratch, through_cublas
from kernels.linear_families import families
from kernels.probe import Choice, Choices, Projection, choose
from kernels.probe_file import cache_file, read_cache, write_cache
from kernels.product import Pick, Product
from kernels.skinny import Activation
from kernels.triton.gemm import GemmConfig, GemmWorkspace, configs, fused_gemm, unsupported
from kernels.triton.gemm_family import TritonGemm
from tests.kernels.test_skinny import exact
from tests.kernels.triton.device import DEVICE, poisoned, randn, strided

EPS = 1e-5
BF16 = torch.bfloat16
PLAIN = GemmConfig(32, 64, 64, 1, 3, 4)
LEFT = GemmConfig(64, 32, 64, 1, 3, 4, swapped=False)
INSIDE = GemmConfig(64, 64, 64, 1, 3, 4, norm_inside=True)
INSIDE_LEFT = GemmConfig(64, 128, 64, 1, 3, 4, swapped=False, norm_inside=True)


@pytest.fixture(autouse=True)
def products_of_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton's interpreter keeps bfloat16 as its bits and multiplies those."""
    if DEVICE != "cpu":
        return
    import numpy as np
    from triton.runtime import interpreter

    create_dot = interpreter.InterpreterBuilder.create_dot

    def wide(operand: Any) -> Any:
        assert operand.dtype.name == "bf16"
        return interpreter.TensorHandle(
            (operand.data.astype(np.uint32) << 16).view(np.float32), interpreter.tl.float32
        )

    monkeypatch.setattr(
        interpreter.InterpreterBuilder,
        "create_dot",
        lambda self, a, b, *rest: create_dot(self, wide(a), wide(b), *rest),
    )


@pytest.fixture(scope="module")
def workspace() -> GemmWorkspace:
    space = GemmWorkspace.allocate(torch.device(DEVICE), 1 << 20)
    # What is left there from earlier products must not matter.
    space.sums.fill_(float("nan"))
    space.squares.fill_(float("nan"))
    return space


def product(
    config: GemmConfig,
    workspace: GemmWorkspace,
    m: int,
    n: int,
    k: int,
    eps: float | None = None,
    activation: Activation = "none",
    accumulate: bool = False,
) -> torch.Tensor:
    """Checks one product, out and x being views of wider rows, and returns it."""
    x = strided(randn(m, k, dtype=BF16, seed=1), 16)
    weight = randn(n, k, dtype=BF16, seed=2, scale=k**-0.5)
    columns = n // 2 if activation == "swiglu" else n
    before = randn(m, columns, dtype=BF16, seed=3)
    # One row more than there are: it must stay as it was.
    wide = poisoned(m + 1, columns + 16, dtype=BF16)
    out = wide[:m, :columns]
    if accumulate:
        out.copy_(before)
    fused_gemm(
        x,
        weight,
        out,
        eps=eps,
        activation=activation,
        accumulate=accumulate,
        config=config,
        workspace=workspace,
    )
    want = exact(x, weight, eps, activation, before if accumulate else None)
    assert torch.isfinite(out).all()
    assert (out.double() - want).norm() / want.norm() < 3e-3
    assert wide[m:].isnan().all() and wide[:, columns:].isnan().all()
    assert not workspace.counters.any()
    return out.clone()


@pytest.mark.parametrize("split", [1, 3])
@pytest.mark.parametrize("tiles", [False, True], ids=["pointers", "tma"])
@pytest.mark.parametrize(
    ("config", "m"), [(PLAIN, 32), (PLAIN, 19), (LEFT, 45), (replace(PLAIN, rows=64), 100)], ids=str
)
def test_cuts(config: GemmConfig, m: int, tiles: bool, split: int, workspace: GemmWorkspace) -> None:
    """Odd rows, several tiles of rows, columns that end inside a tile, parts of different length."""
    config = replace(config, tiles=tiles, split=split)
    product(config, workspace, m, 80, 256)
    product(config, workspace, m, 80, 256, accumulate=True)


@pytest.mark.parametrize("split", [1, 2, 5])
@pytest.mark.parametrize("activation", ["none", "relu2", "swiglu"])
def test_fusions(activation: Activation, split: int, workspace: GemmWorkspace) -> None:
    product(replace(INSIDE, split=split), workspace, 33, 160, 320, EPS, activation)
    product(replace(INSIDE, split=split, tiles=False), workspace, 70, 80, 320, EPS, activation)
    product(replace(INSIDE_LEFT, split=split), workspace, 21, 160, 320, EPS, activation)
    product(replace(PLAIN, split=split), workspace, 21, 160, 320, None, activation)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 300.0])
def test_a_norm_inside_is_no_less_exact(scale: float, workspace: GemmWorkspace) -> None:
    """The kernel in front rounds what it hands on; inside nothing is rounded before the end."""
    m, n, k = 40, 96, 512
    x = randn(m, k, dtype=BF16, seed=1, scale=scale) * (1 + torch.arange(m, device=DEVICE))[:, None]
    x, weight = x.to(BF16), randn(n, k, dtype=BF16, seed=2, scale=k**-0.5)
    want = exact(x, weight, EPS, "none", None)
    scratch = LinearScratch.allocate(m, k, 0, BF16, torch.device(DEVICE))
    scratch = replace(scratch, parts=workspace)
    triton, what = TritonGemm(scratch), Product(n, k, True, "none", False)
    errors = []
    for config in (INSIDE, replace(INSIDE, norm_inside=False)):
        for split in (1, 3):
            out = poisoned(m, n, dtype=BF16)
            triton.run(what, x, weight, out, EPS, replace(config, split=split))
            errors.append(((out.double() - want).norm(dim=1) / want.norm(dim=1)).max())
    assert max(errors[:2]) <= 1.02 * min(errors[2:])


def test_merging_few_and_many_at_once(workspace: GemmWorkspace) -> None:
    for config in (GemmConfig(32, 64, 64, 7, 3, 4), GemmConfig(128, 128, 64, 3, 3, 4)):
        product(config, workspace, 25, 128, 512, accumulate=True)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # of the interpreter: what is not finite
@pytest.mark.parametrize("config", [INSIDE, INSIDE_LEFT, replace(PLAIN, rows=64)], ids=str)
@pytest.mark.parametrize("split", [1, 2])
def test_a_row_alone_and_among_others(config: GemmConfig, split: int, workspace: GemmWorkspace) -> None:
    """Bits depend neither on the number of rows nor on what is in them, while the configuration stays."""
    config, eps = replace(config, split=split), EPS if config.norm_inside else None
    many = randn(70, 256, dtype=BF16, seed=1)
    weight = randn(128, 256, dtype=BF16, seed=2)
    wild = many.clone()
    wild[::2] = 1e4 * wild[::2].flip(0)
    wild[4], wild[6, 3] = float("nan"), float("inf")
    results = []
    for x in (many, many[:18], many[17:18], wild):
        out = poisoned(x.size(0), 128, dtype=BF16)
        fused_gemm(x, weight, out, eps=eps, config=config, workspace=workspace)
        results.append(out)
    whole, fewer, alone, among = results
    assert torch.equal(fewer, whole[:18]) and torch.equal(alone[0], whole[17])
    assert torch.equal(among[1::2], whole[1::2])
    assert among[4].isnan().all() and not among[6].isfinite().any()
    assert among[::2][:2].isfinite().all() and among[8:].isfinite().all()


def test_refusals(workspace: GemmWorkspace) -> None:
    x, weight, out = (torch.zeros(size, 128, dtype=BF16, device=DEVICE) for size in (20, 128, 20))
    for config, match in (
        (replace(PLAIN, depth=96), "multiples"),
        (replace(PLAIN, split=3), "split"),
        (replace(PLAIN, columns=32), "64 rows"),
        (replace(PLAIN, norm_inside=True), "inside needs"),
        (replace(INSIDE, rows=256), "registers"),
        (PLAIN, "in front"),
    ):
        with pytest.raises(ValueError, match=match):
            fused_gemm(x, weight, out, eps=EPS, config=config, workspace=workspace)
    with pytest.raises(ValueError, match="workspace"):
        small = GemmWorkspace.allocate(torch.device(DEVICE), 64)
        fused_gemm(x, weight, out, config=replace(PLAIN, split=2), workspace=small)
    with pytest.raises(ValueError, match="bfloat16"):
        fused_gemm(x.float(), weight, out, config=PLAIN, workspace=workspace)
    with pytest.raises(ValueError, match="adds"):
        fused_gemm(
            x, weight, out[:, :64], activation="swiglu", accumulate=True, config=PLAIN, workspace=workspace
        )
    assert unsupported(128, 128, "none", True, BF16, (9, 0)) is None
    assert "64" in (unsupported(128, 96, "none", True, BF16, (9, 0)) or "")
    assert "9.0" in (unsupported(128, 128, "none", True, BF16, (8, 0)) or "")


@pytest.mark.parametrize("rows", [17, 32, 64, 100, 256])
def test_configs_fit(rows: int) -> None:
    for n, k in ((6144, 2048), (2048, 2048), (2048, 8192), (65536, 2048), (151936, 1024), (2048, 5504)):
        for norm in (False, True):
            found = configs(rows, n, k, norm)
            assert 1 <= len(found) <= 4
            assert all(config.misfit(rows, n, k) is None for config in found)
            assert all(config.shared_bytes <= 227 << 10 for config in configs(rows, n, k, norm, 24))
            # The probe measures the first two.
            assert [config.norm_inside for config in found[:2]] == [False, norm]
    assert configs(257, 128, 128) == []


# Compiles for a Hopper where there is none, and without the interpreter.
COMPILE = """
import re
import torch
import triton
from triton.backends.compiler import GPUTarget


class Driver:
    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0


triton.runtime.driver.set_active(Driver())
from kernels.triton.gemm import GemmConfig, prepare_all
from kernels.triton.gemm_kernel import gemm_kernel

plain = GemmConfig(64, 64, 64, 2, 4, 4)
inside = GemmConfig(64, 64, 64, 1, 4, 4, norm_inside=True)
left = GemmConfig(64, 128, 64, 2, 4, 4, swapped=False, tiles=False, norm_inside=True)
wanted = [(plain, False, False, True), (inside, True, False, True), (left, True, True, True)]
prepare_all(wanted, torch.device("cpu"))
(kernels,) = (cache[0].values() for cache in gemm_kernel.device_caches.values())
for kernel in kernels:
    code, ptx = kernel.asm["ttgir"], kernel.asm["ptx"]
    buffers = re.findall(r"local_alloc : .*memdesc<(\\d+)x\\d+x\\d+xbf16", code)
    # How many products may still run when the next tiles are asked for: those of this step.
    running = re.search(r"warp_group_dot_wait .*pendings = (\\d+)", code)[1]
    # A reader of shared memory that is no product would let x have one buffer fewer.
    print("wgmma.mma_async" in ptx, "griddepcontrol.wait" in ptx, "local_load" in code, *buffers, running)
"""


def test_compiled_code(tmp_path: Path) -> None:
    """Tensor cores of a warp group; and no tile is overwritten while a product that runs may read it."""
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == ["True True False 4 4 1", *["True True False 4 4 2"] * 2]


@pytest.mark.parametrize("config", [PLAIN, INSIDE], ids=["norm in front", "norm inside"])
def test_as_a_projections_choice(config: GemmConfig) -> None:
    """kernels.device_linear takes it where it was chosen, and the library elsewhere."""
    scratch = LinearScratch.allocate(64, 128, 96, BF16, torch.device(DEVICE))
    cases: list[tuple[Activation, bool, bool]] = [
        ("none", True, False),
        ("relu2", True, False),
        ("swiglu", True, False),
        ("none", False, True),
        ("none", False, False),
    ]
    x, weight = randn(30, 128, dtype=BF16, seed=1), randn(96, 128, dtype=BF16, seed=2, scale=0.1)
    for activation, norm, accumulate in cases:
        chosen = {32: Choice(Pick("triton", config))}
        product = Product(96, 128, norm, activation, accumulate)
        choices = Choices({product: chosen}, families=[TritonGemm(scratch)])
        linear = DeviceLinear(weight, choices=choices, scratch=scratch)
        out = poisoned(30, 48 if activation == "swiglu" else 96, dtype=BF16)
        before = torch.ones_like(out) if accumulate else None
        if before is not None:
            out.copy_(before)
            linear.linear_residual(x, out)
        elif norm:
            linear.norm_linear_activation(x, out, EPS, activation)
        else:
            linear.linear(x, out)
        want = exact(x, weight, EPS if norm else None, activation, before)
        assert (out.double() - want).norm() / want.norm() < (6e-3 if norm else 3e-3)


def test_measured_and_served(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """From the weights of two layers to what a projection queues."""
    monkeypatch.setattr(probe, "MEASURED_ROWS", (32,))
    scratch = LinearScratch.allocate(32, 128, 96, BF16, torch.device(DEVICE))
    product = Product(96, 128, True, "swiglu", False)
    x, weight = randn(20, 128, dtype=BF16, seed=1), randn(96, 128, dtype=BF16, seed=2, scale=0.1)
    served: list[GemmConfig] = []

    class Watched(TritonGemm):
        def run(self, product: Product, x: torch.Tensor, *rest: Any) -> None:
            super().run(product, x, *rest)
            served.append(rest[-1])

    def timer(body: Callable[[], None]) -> float:
        body()
        return 1.0 / (1 + len(served))

    chosen = choose(
        [Projection("mlp in", product, [weight, weight])],
        through_cublas(scratch),
        [Watched(scratch)],
        mode="triton",
        timer=timer,
        cache=tmp_path / "c.json",
        capability=(9, 0),
    )
    config = served[-1]
    ((what, used, why),) = chosen.explain()
    assert (what, used) == ("linear mlp in M=32", f"triton ({config})") and "cuBLAS" in why
    assert len(served) == 3 * len(TritonGemm(scratch).candidates(product, 32, ()))
    out = poisoned(20, 48, dtype=BF16)
    linear = DeviceLinear(weight, choices=chosen, scratch=scratch)
    linear.norm_linear_activation(x, out, EPS, "swiglu")
    assert served[-1] == config and len(served) % 3 == 1
    want = exact(x, weight, EPS, "swiglu", None)
    assert (out.double() - want).norm() / want.norm() < 6e-3


def test_choices_are_kept_with_their_families(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In a file of which another family, or other code of one, makes another."""
    scratch = LinearScratch.allocate(1, 1, 0, BF16, torch.device("cpu"))
    ours, path = families(scratch), tmp_path / "c.json"
    assert {family.name for family in ours} == {*get_args(probe.Mode)} - {"auto", "cublas"}
    product = Product(6144, 2048, True, "none", False)
    inside = next(
        c for c in ours[-1].candidates(product, 64, ()) if isinstance(c, GemmConfig) and c.norm_inside
    )
    choices = {"a": Choice(Pick("triton", inside), {"skinny": 2.0, "triton": 1.0, "cuBLAS": 3.0})}
    write_cache(path, choices)
    assert read_cache(path, ours) == choices and read_cache(path, ours[:1]) == {}
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "GPU")
    whole = cache_file(torch.device("cpu"), ours)
    assert cache_file(torch.device("cpu"), ours[:1]) != whole == cache_file(torch.device("cpu"), ours)
    assert "def gemm_kernel" in ours[-1].code() and "class GemmConfig" in ours[-1].code()
