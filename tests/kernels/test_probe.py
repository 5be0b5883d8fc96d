"""The choice between products: measured with a clock of the test's own, kept in a file."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kernels import probe
from kernels.nvrtc import CompileError
from kernels.probe import (
    Choice,
    Choices,
    Medium,
    Product,
    Projection,
    cache_key,
    choose,
    read_cache,
    write_cache,
)
from kernels.quantize import Kind8
from kernels.skinny import Variant, variants
from kernels.triton.gemm_config import GemmConfig, configs

QKV = Product(6144, 2048, True, "none", False)
O = Product(2048, 2048, False, "none", True)  # noqa: E741
ODD = Product(2040, 2048, False, "none", True)


class Clock:
    """Says how long each candidate takes; counts the measurements."""

    def __init__(self, skinny: Callable[[int], float], cublas: float) -> None:
        self.skinny, self.cublas = skinny, cublas
        self.running = ""
        self.rows = 0
        self.measured = 0

    def __call__(self, body: Callable[[], None]) -> float:
        self.measured += 1
        body()
        return self.cublas if self.running == "cublas" else self.skinny(self.rows)

    def library(
        self, product: Product, x: torch.Tensor, weight: torch.Tensor, out: torch.Tensor, eps: float
    ) -> None:
        self.running = "cublas"


@pytest.fixture
def on_a_hopper(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, Variant]]:
    """Everything of the probe that touches a device; returns the kernels that were made ready."""
    ready: list[tuple[int, Variant]] = []

    def prepare(k: int, variant: Variant, device: torch.device) -> None:
        ready.append((k, variant))

    monkeypatch.setattr(probe, "prepare", prepare)
    monkeypatch.setattr(probe, "prepare_all", lambda wanted, device: lambda: None)
    monkeypatch.setattr(probe, "_multiprocessors", lambda device: 132)
    monkeypatch.setattr(probe._Probe, "refuses", _refuses)
    return ready


def _refuses(self: probe._Probe, projection: Projection) -> str | None:
    product = projection.product
    return probe.unsupported(
        product.n, product.k, product.activation, product.accumulate, torch.bfloat16, (9, 0), product.kind
    )


def run(
    clock: Clock,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    products: Iterable[Product] = (QKV, O, ODD),
    mode: probe.Mode = "auto",
    medium: Medium | None = None,
) -> Choices:
    def skinny(x: torch.Tensor, *rest: object, **options: object) -> None:
        clock.running, clock.rows = "skinny", x.size(0)

    monkeypatch.setattr(probe, "skinny_linear", skinny)
    weights = [torch.empty(1, dtype=torch.bfloat16)] * 2
    projections = [Projection(f"p{i}", product, weights) for i, product in enumerate(products)]
    return choose(projections, clock.library, medium=medium, mode=mode, timer=clock, cache=cache)


def test_takes_the_faster_for_each_row_count(
    on_a_hopper: list[tuple[int, Variant]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    clock = Clock(lambda rows: 1e-6 * rows, cublas=20e-6)
    choices = run(clock, tmp_path / "c.json", monkeypatch)
    for rows in (1, 2, 5, 8, 9, 16):
        chosen = choices.variant(QKV, rows)
        assert chosen is not None and chosen.fits(rows, QKV.n, QKV.k)
    # In between, the next measured one above decides: 16 and below ours, 32 and above cuBLAS.
    assert all(choices.variant(QKV, rows) is None for rows in (17, 24, 32, 64, 65, 4096))
    assert (
        choices.variant(ODD, 1) is None and choices.variant(Product(16, 32, False, "none", False), 1) is None
    )
    assert choices.variant(QKV, 1) in variants(1, QKV.n, QKV.k)
    rows = {row[0]: row[1:] for row in choices.explain()}
    assert (
        rows["linear p0 M=8"][0].startswith("skinny (")
        and rows["linear p0 M=8"][1] == "skinny 4.0 us, cuBLAS 10.0 us"
    )
    assert rows["linear p0 M=64"][0] == "cuBLAS" and "multiple of 16" in rows["linear p2 M=256"][1]


def test_a_warm_start_measures_nothing(
    on_a_hopper: list[tuple[int, Variant]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    clock = Clock(lambda rows: 1e-6, cublas=20e-6)
    first = run(clock, tmp_path / "c.json", monkeypatch)
    before = clock.measured
    on_a_hopper.clear()
    again = run(clock, tmp_path / "c.json", monkeypatch)
    assert before > 0 and clock.measured == before
    assert again.table == first.table
    # Every chosen kernel is loaded, since a graph capture cannot do that.
    assert {v for _, v in on_a_hopper} == {
        c.variant for by in again.table.values() for c in by.values() if c.variant
    }
    # What is new alone is measured.
    run(clock, tmp_path / "c.json", monkeypatch, [QKV, Product(4096, 2048, True, "none", False)])
    assert before < clock.measured < 2 * before


def test_modes(
    on_a_hopper: list[tuple[int, Variant]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    slow = Clock(lambda rows: 1.0, cublas=1e-6)
    cache = tmp_path / "c.json"
    assert run(slow, cache, monkeypatch, mode="cublas").variant(QKV, 1) is None and slow.measured == 0
    assert run(slow, cache, monkeypatch, [QKV], mode="skinny").variant(QKV, 1) is not None
    assert not cache.exists()
    assert run(slow, cache, monkeypatch, [QKV]).variant(QKV, 1) is None
    with pytest.raises(ValueError, match="p0: outputs must be a multiple of 16"):
        run(slow, cache, monkeypatch, [ODD], mode="skinny")


def test_a_kernel_that_fails_leaves_cublas(
    on_a_hopper: list[tuple[int, Variant]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fails(k: int, variant: Variant, device: torch.device) -> None:
        raise CompileError("no libnvrtc")

    monkeypatch.setattr(probe, "prepare", fails)
    clock = Clock(lambda rows: 1e-6, cublas=1.0)
    choices = run(clock, tmp_path / "c.json", monkeypatch, [QKV])
    assert choices.variant(QKV, 1) is None
    assert all("no libnvrtc" in row[2] for row in choices.explain())
    assert read_cache(tmp_path / "c.json") == {}, "a failure is tried again the next time"


def test_cache_file(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "c.json"
    choices = {
        "a": Choice(Variant(1, 2, 4, 8, 1, True, 3, True), 1.5, None, 2.5),
        "b": Choice(None, 3.0, 2.0, 1.0),
    }
    choices["c"] = Choice(GemmConfig(64, 128, 64, 2, 4, 4, norm_inside=True), None, 0.5, 2.0)
    write_cache(path, choices)
    assert read_cache(path) == choices
    for damage in (
        "",
        "[]",
        "{",
        '{"a": 1}',
        '{"a": {"variant": 3}}',
        '{"a": {"variant": {"tiles": 1}}}',
        "\0",
    ):
        path.write_text(damage)
        assert read_cache(path) == {}
    assert read_cache(tmp_path / "missing.json") == {}


def test_on_a_cpu_everything_is_the_librarys() -> None:
    weight = torch.zeros(QKV.n, QKV.k, dtype=torch.bfloat16)
    choices = choose([Projection("qkv", QKV, [weight])], _never)
    assert choices.variant(QKV, 1) is None
    assert "cpu" in choices.explain()[0][2]


def _never(product: Product, x: torch.Tensor, weight: torch.Tensor, out: torch.Tensor, eps: float) -> None:
    raise AssertionError("nothing to measure")


class Third:
    """Stands for kernels.triton.gemm and says what was done with it."""

    def __init__(self, clock: Clock, broken: str = "") -> None:
        self.clock, self.broken = clock, broken
        self.compiled: list[GemmConfig] = []
        self.ready: list[GemmConfig] = []

    def medium(self) -> Medium:
        return Medium(self._run, self._prepare, self._prepare_all)

    def _run(
        self,
        product: Product,
        x: torch.Tensor,
        weight: torch.Tensor,
        out: torch.Tensor,
        eps: float,
        config: GemmConfig,
    ) -> None:
        # The second candidate is the fastest.
        second = configs(x.size(0), product.n, product.k, product.norm)[1] == config
        self.clock.running, self.clock.rows = "skinny", 5 if second else 15

    def _prepare(self, product: Product, config: GemmConfig) -> None:
        if self.broken:
            raise CompileError(self.broken)
        self.ready.append(config)

    def _prepare_all(self, wanted: Sequence[tuple[Product, GemmConfig]]) -> None:
        self.compiled += [config for _, config in wanted]


def with_third(
    third: Third, cache: Path, monkeypatch: pytest.MonkeyPatch, products: Iterable[Product], mode: probe.Mode
) -> Choices:
    return run(third.clock, cache, monkeypatch, products, mode, third.medium())


def test_a_third_candidate(
    on_a_hopper: list[tuple[int, Variant]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    third = Third(Clock(lambda rows: 1e-6 * rows, cublas=20e-6))
    choices = with_third(third, tmp_path / "c.json", monkeypatch, [QKV, O, ODD], "auto")
    assert isinstance(choices.variant(QKV, 16), Variant)
    for rows in (17, 32, 64):
        bucket = next(b for b in (32, 64) if b >= rows)
        assert choices.variant(QKV, rows) == configs(bucket, QKV.n, QKV.k, norm=True)[1]
    assert choices.variant(QKV, 65) is None and choices.variant(ODD, 32) is None
    explained = {row[0]: row[1:] for row in choices.explain()}
    assert explained["linear p0 M=64"][0].startswith("triton (64x")
    assert explained["linear p0 M=64"][1] == "skinny 32.0 us, triton 2.5 us, cuBLAS 10.0 us"
    assert len(third.compiled) == 2 * 2 * 2  # configurations, products, row counts
    # Behind a norm one of each kind, against the library with the norm's kernel.
    assert sum(config.norm_inside for config in third.compiled) == 2
    measured = third.clock.measured
    again = with_third(third, tmp_path / "c.json", monkeypatch, [QKV, O, ODD], "auto")
    assert again.table == choices.table and third.clock.measured == measured
    assert all(choices.variant(QKV, rows) in third.ready for rows in (32, 64))


def test_the_third_alone_or_broken(
    on_a_hopper: list[tuple[int, Variant]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cache = tmp_path / "c.json"
    slow = Third(Clock(lambda rows: 1.0, cublas=1e-6))
    forced = with_third(slow, cache, monkeypatch, [QKV], "triton")
    assert all(isinstance(forced.variant(QKV, rows), GemmConfig) for rows in (1, 64, 256))
    assert not cache.exists() and forced.variant(QKV, 300) is None
    with pytest.raises(ValueError, match="p0: inputs must be a multiple of 64"):
        with_third(slow, cache, monkeypatch, [Product(2048, 2080, False, "none", True)], "triton")
    with pytest.raises(ValueError, match="no ptxas"):
        with_third(Third(slow.clock, "no ptxas"), cache, monkeypatch, [QKV], "triton")
    only_few = with_third(slow, cache, monkeypatch, [QKV], "skinny")
    assert isinstance(only_few.variant(QKV, 64), Variant) and only_few.variant(QKV, 65) is None
    broken = with_third(Third(Clock(lambda rows: 1e-6, 1.0), "no ptxas"), cache, monkeypatch, [QKV], "auto")
    assert isinstance(broken.variant(QKV, 64), Variant) and broken.variant(QKV, 128) is None
    assert any("no ptxas" in row[2] for row in broken.explain())


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_eight_bits_are_measured_for_themselves(
    kind: Kind8, on_a_hopper: list[tuple[int, Variant]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """By a key of their own, with variants for their kind, and never by the kernel that cannot take them."""
    cache = tmp_path / "c.json"
    third = Third(Clock(lambda rows: 1e-6 * rows, cublas=50e-6))
    plain = with_third(third, cache, monkeypatch, [QKV], "auto")
    measured, eight = third.clock.measured, replace(QKV, kind=kind)
    choices = with_third(third, cache, monkeypatch, [eight], "auto")
    assert third.clock.measured > measured and not third.compiled[4:]
    assert set(read_cache(cache)) > {cache_key(product, 8, False) for product in (QKV, eight)}
    for rows in (1, 8, 16):
        variant = choices.variant(eight, rows)
        assert isinstance(variant, Variant) and variant.kind == kind and variant.fits(rows, QKV.n, QKV.k)
        other = plain.variant(QKV, rows)
        assert isinstance(other, Variant) and other.kind == "bf16"
    assert choices.variant(QKV, 1) is None and choices.variant(eight, 65) is None
    assert f"split 1 depth 2 wide {kind}" in choices.explain()[0][1]
    again = with_third(third, cache, monkeypatch, [eight], "auto")
    assert again.table == choices.table
    with pytest.raises(ValueError, match=f"p0: takes no weights of kind {kind}"):
        with_third(third, cache, monkeypatch, [eight], "triton")
    with pytest.raises(ValueError, match="p0: inputs must be a multiple of 64"):
        run(third.clock, cache, monkeypatch, [replace(eight, k=2080)], "skinny")


def test_needs_triton_when_forced(
    on_a_hopper: list[tuple[int, Variant]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    clock = Clock(lambda rows: 1.0, cublas=1e-6)
    with pytest.raises(ValueError, match="needs Triton"):
        run(clock, tmp_path / "c.json", monkeypatch, [QKV], "triton")
