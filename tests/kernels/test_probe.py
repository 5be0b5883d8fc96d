"""The choice between products: measured with a clock of the test's own, kept in a file."""

import json
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from kernels import probe, skinny
from kernels.nvrtc import CompileError
from kernels.probe import Choices, Projection, choose
from kernels.probe_file import cache_key, read_cache
from kernels.product import Config, Family, Product
from kernels.quantize import Kind8
from kernels.skinny import Variant, variants
from kernels.skinny_family import Skinny
from kernels.triton.gemm_config import GemmConfig, configs
from tests.kernels.probe_cases import Clock, Fourth, Third

CPU = torch.device("cpu")
QKV = Product(6144, 2048, True, "none", False)
O = Product(2048, 2048, False, "none", True)  # noqa: E741
ODD = Product(2040, 2048, False, "none", True)


@pytest.fixture
def on_a_hopper(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, Variant]]:
    """Everything of the skinny product that touches a device; returns the kernels that were made ready."""
    ready: list[tuple[int, Variant]] = []

    def prepare(k: int, variant: Variant, device: torch.device) -> None:
        ready.append((k, variant))

    monkeypatch.setattr(skinny, "prepare", prepare)
    monkeypatch.setattr(skinny, "prepare_all", lambda wanted, device: lambda: None)
    return ready


def run(
    clock: Clock,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    products: Iterable[Product] = (QKV, O, ODD),
    mode: probe.Mode = "auto",
    *others: Family,
) -> Choices:
    def skinny_linear(x: torch.Tensor, *rest: object, **options: object) -> None:
        clock.running, clock.rows = "skinny", x.size(0)

    monkeypatch.setattr(skinny, "skinny_linear", skinny_linear)
    weights = [torch.empty(1, dtype=torch.bfloat16)] * 2
    projections = [Projection(f"p{i}", product, weights) for i, product in enumerate(products)]
    given = [Skinny(CPU, multiprocessors=132), *others]
    return choose(projections, clock.library, given, mode=mode, timer=clock, cache=cache, capability=(9, 0))


def config_of(choices: Choices, product: Product, rows: int) -> Config | None:
    pick = choices.pick(product, rows)
    return None if pick is None else pick.config


def test_takes_the_faster_for_each_row_count(
    on_a_hopper: list[tuple[int, Variant]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    clock = Clock(lambda rows: 1e-6 * rows, cublas=20e-6)
    choices = run(clock, tmp_path / "c.json", monkeypatch)
    for rows in (1, 2, 5, 8, 9, 16):
        chosen = config_of(choices, QKV, rows)
        assert isinstance(chosen, Variant) and chosen.fits(rows, QKV.n, QKV.k)
    # In between, the next measured one above decides: 16 and below ours, 32 and above cuBLAS.
    assert all(choices.pick(QKV, rows) is None for rows in (17, 24, 32, 64, 65, 4096))
    assert choices.pick(ODD, 1) is None and choices.pick(Product(16, 32, False, "none", False), 1) is None
    assert config_of(choices, QKV, 1) in variants(1, QKV.n, QKV.k)
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
        c.variant.config for by in again.table.values() for c in by.values() if c.variant
    }
    # What is new alone is measured.
    run(clock, tmp_path / "c.json", monkeypatch, [QKV, Product(4096, 2048, True, "none", False)])
    assert before < clock.measured < 2 * before


def test_modes(
    on_a_hopper: list[tuple[int, Variant]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    slow = Clock(lambda rows: 1.0, cublas=1e-6)
    cache = tmp_path / "c.json"
    assert run(slow, cache, monkeypatch, mode="cublas").pick(QKV, 1) is None and slow.measured == 0
    assert run(slow, cache, monkeypatch, [QKV], mode="skinny").pick(QKV, 1) is not None
    assert not cache.exists()
    assert run(slow, cache, monkeypatch, [QKV]).pick(QKV, 1) is None
    with pytest.raises(ValueError, match="p0: outputs must be a multiple of 16"):
        run(slow, cache, monkeypatch, [ODD], mode="skinny")


def test_a_kernel_that_fails_leaves_cublas(
    on_a_hopper: list[tuple[int, Variant]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fails(k: int, variant: Variant, device: torch.device) -> None:
        raise CompileError("no libnvrtc")

    monkeypatch.setattr(skinny, "prepare", fails)
    clock = Clock(lambda rows: 1e-6, cublas=1.0)
    choices = run(clock, tmp_path / "c.json", monkeypatch, [QKV])
    assert choices.pick(QKV, 1) is None
    assert all("no libnvrtc" in row[2] for row in choices.explain())
    assert read_cache(tmp_path / "c.json", [Skinny(CPU)]) == {}, "a failure is tried again the next time"


@pytest.mark.parametrize(
    "entry",
    [
        1,
        None,
        {},
        {"family": "skinny", "config": {"tiles": 1}, "times": {}},
        {"family": "skinny", "config": 3, "times": {}},
        {"family": 3, "config": {}, "times": {}},
        {"family": None, "config": None, "times": [1.0]},
        {"family": None, "config": None, "times": {"skinny": "fast"}},
        # As files of one and of two families were written.
        {"variant": None, "skinny_us": 3.0, "cublas_us": 1.0},
        {"variant": asdict(Variant(1, 1, 1, 4, 1)), "skinny_us": 1.0, "triton_us": None, "cublas_us": 2.0},
    ],
    ids=str,
)
def test_an_entry_of_another_form_is_measured_anew(
    entry: object, on_a_hopper: list[tuple[int, Variant]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """And those beside it are not."""
    path, clock = tmp_path / "c.json", Clock(lambda rows: 1e-6, cublas=20e-6)
    first, whole = run(clock, path, monkeypatch, [QKV]), clock.measured
    entries = json.loads(path.read_text())
    path.write_text(json.dumps(entries | {cache_key(QKV, 8, False): entry}))
    again = run(clock, path, monkeypatch, [QKV])
    assert again.table == first.table and json.loads(path.read_text()) == entries
    one = 1 + len(variants(8, QKV.n, QKV.k)[:4])
    assert clock.measured == whole + one


def test_needs_no_triton() -> None:
    code = "import sys, kernels.probe, kernels.skinny_family; print('triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


def test_on_a_cpu_everything_is_the_librarys() -> None:
    weight = torch.zeros(QKV.n, QKV.k, dtype=torch.bfloat16)
    choices = choose([Projection("qkv", QKV, [weight])], _never, [Skinny(CPU)])
    assert choices.pick(QKV, 1) is None
    assert "cpu" in choices.explain()[0][2]


def _never(product: Product, x: torch.Tensor, weight: torch.Tensor, out: torch.Tensor, eps: float) -> None:
    raise AssertionError("nothing to measure")


def with_third(
    third: Third, cache: Path, monkeypatch: pytest.MonkeyPatch, products: Iterable[Product], mode: probe.Mode
) -> Choices:
    return run(third.clock, cache, monkeypatch, products, mode, third)


def test_a_third_candidate(
    on_a_hopper: list[tuple[int, Variant]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    third = Third(Clock(lambda rows: 1e-6 * rows, cublas=20e-6))
    choices = with_third(third, tmp_path / "c.json", monkeypatch, [QKV, O, ODD], "auto")
    assert isinstance(config_of(choices, QKV, 16), Variant)
    for rows in (17, 32, 64):
        bucket = next(b for b in (32, 64) if b >= rows)
        assert config_of(choices, QKV, rows) == configs(bucket, QKV.n, QKV.k, norm=True)[1]
    assert config_of(choices, QKV, 65) is None and config_of(choices, ODD, 32) is None
    explained = {row[0]: row[1:] for row in choices.explain()}
    assert explained["linear p0 M=64"][0].startswith("triton (64x")
    assert explained["linear p0 M=64"][1] == "skinny 32.0 us, triton 2.5 us, cuBLAS 10.0 us"
    assert len(third.compiled) == 2 * 2 * 2  # configurations, products, row counts
    # Behind a norm one of each kind, against the library with the norm's kernel.
    assert sum(isinstance(c, GemmConfig) and c.norm_inside for c in third.compiled) == 2
    measured = third.clock.measured
    again = with_third(third, tmp_path / "c.json", monkeypatch, [QKV, O, ODD], "auto")
    assert again.table == choices.table and third.clock.measured == measured
    assert all(config_of(choices, QKV, rows) in third.ready for rows in (32, 64))


def test_the_third_alone_or_broken(
    on_a_hopper: list[tuple[int, Variant]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cache = tmp_path / "c.json"
    slow = Third(Clock(lambda rows: 1.0, cublas=1e-6))
    forced = with_third(slow, cache, monkeypatch, [QKV], "triton")
    assert all(isinstance(config_of(forced, QKV, rows), GemmConfig) for rows in (1, 64, 256))
    assert not cache.exists() and config_of(forced, QKV, 300) is None
    with pytest.raises(ValueError, match="p0: inputs must be a multiple of 64"):
        with_third(slow, cache, monkeypatch, [Product(2048, 2080, False, "none", True)], "triton")
    with pytest.raises(ValueError, match="no ptxas"):
        with_third(Third(slow.clock, "no ptxas"), cache, monkeypatch, [QKV], "triton")
    only_few = with_third(slow, cache, monkeypatch, [QKV], "skinny")
    assert isinstance(config_of(only_few, QKV, 64), Variant) and config_of(only_few, QKV, 65) is None
    broken = with_third(Third(Clock(lambda rows: 1e-6, 1.0), "no ptxas"), cache, monkeypatch, [QKV], "auto")
    assert isinstance(config_of(broken, QKV, 64), Variant) and config_of(broken, QKV, 128) is None
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
    assert set(read_cache(cache, [Skinny(CPU), third])) > {
        cache_key(product, 8, False) for product in (QKV, eight)
    }
    for rows in (1, 8, 16):
        variant = config_of(choices, eight, rows)
        assert isinstance(variant, Variant) and variant.kind == kind and variant.fits(rows, QKV.n, QKV.k)
        other = config_of(plain, QKV, rows)
        assert isinstance(other, Variant) and other.kind == "bf16"
    assert config_of(choices, QKV, 1) is None and config_of(choices, eight, 65) is None
    assert f"split 1 depth 2 wide {kind}" in choices.explain()[0][1]
    again = with_third(third, cache, monkeypatch, [eight], "auto")
    assert again.table == choices.table
    with pytest.raises(ValueError, match=f"p0: takes no weights of kind {kind}"):
        with_third(third, cache, monkeypatch, [eight], "triton")
    with pytest.raises(ValueError, match="p0: inputs must be a multiple of 64"):
        run(third.clock, cache, monkeypatch, [replace(eight, k=2080)], "skinny")


def test_a_family_that_is_not_there_cannot_be_forced(
    on_a_hopper: list[tuple[int, Variant]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    clock = Clock(lambda rows: 1.0, cublas=1e-6)
    with pytest.raises(ValueError, match="there are no kernels of the kind triton here"):
        run(clock, tmp_path / "c.json", monkeypatch, [QKV], "triton")


def test_a_family_needs_nothing_of_the_probe(
    on_a_hopper: list[tuple[int, Variant]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It is measured, chosen, kept and shown by its name, serves where it was chosen, and is made ready for
    all numbers of rows that it will serve."""
    cache, fourth = tmp_path / "c.json", Fourth(Clock(lambda rows: 1e-6 * rows, cublas=20e-6))
    choices = run(fourth.clock, cache, monkeypatch, [QKV, O], "auto", fourth)
    assert fourth.compiled == [rows for rows in (1, 4, 8, 16, 32) for _ in range(2)]
    expected = {1: "skinny", 4: "skinny", 8: "skinny", 16: "sliced", 32: "sliced", 64: None}
    for rows in range(1, 65):
        for product in (QKV, O):
            pick, bucket = choices.pick(product, rows), min(b for b in expected if b >= rows)
            name = expected[bucket] if product is QKV else "skinny" if bucket <= 16 else None
            assert (None if pick is None else pick.family) == name, (product, rows)
    rows = {what: (used, why) for what, used, why in choices.explain()}
    assert rows["linear p0 M=32"] == ("sliced (2 slices)", "skinny 16.0 us, sliced 7.0 us, cuBLAS 10.0 us")
    assert rows["linear p1 M=32"] == ("cuBLAS", "skinny 16.0 us, cuBLAS 10.0 us")
    again = Fourth(fourth.clock)
    measured = fourth.clock.measured
    found = run(fourth.clock, cache, monkeypatch, [QKV, O], "auto", again)
    assert found.table == choices.table and fourth.clock.measured == measured
    assert again.ready == [(QKV, count) for count in range(9, 33)]
    x, weight, out = torch.zeros(20, 1), torch.zeros(1), torch.zeros(1)
    assert found.serve(QKV, x, weight, out, 1e-6) and fourth.clock.running == "sliced"
    assert found.serve(QKV, x[:5], weight, out, 1e-6) and fourth.clock.running == "skinny"
    fourth.clock.running = ""
    assert not found.serve(O, x, weight, out, 1e-6) and not found.serve(ODD, x, weight, out, 1e-6)
    assert fourth.clock.running == ""
