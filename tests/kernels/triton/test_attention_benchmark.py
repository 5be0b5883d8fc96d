"""benchmarks.attention without a device and a clock: what it runs is right, and which bytes it counts."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from benchmarks import attention, attention_bench, attention_rotation
from kernels.cluster import Shape
from kernels.paged_decode import Variant
from kernels.triton.decode import paged_decode

DIM = 64


class Bench(attention_bench.Bench):
    """On a CPU; every layer takes a millisecond."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for module in (attention, attention_bench):
            monkeypatch.setattr(module, "HEAD_DIM", DIM)
        monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
        self.deadline, self.left_out, self.bandwidth = float("inf"), 0, 1e9
        self.device = torch.device("cpu")
        self.memory = torch.empty(1 << 14).normal_().bfloat16()
        self.memory[::100] = 5  # as large as few are of many: more than eight bits hold
        self.eight = None
        self.rows = []

    def time(self, body: Callable[[], list[object]]) -> float:
        return 1e-3 * len(body())


@pytest.mark.skipif(torch.cuda.is_available(), reason="the program itself runs there")
def test_both_kinds_of_keys_and_values(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(monkeypatch)
    for kv in ("bf16", "fp8"):
        for heads in ((2, 2), (4, 1)):
            attention.bench_decode(bench, heads, (2, 33), False, {}, kv)
        attention.bench_prefill(bench, (2, 2), (1, 40), False, {}, "prefill", kv)
    # Without a device there is no early launch.
    good = [row for row in bench.rows if row.who == "default"]
    assert len(good) == 6 and not any(row.error for row in good)
    assert all(row.off is not None and row.off < 5e-3 and row.us == pytest.approx(1e3) for row in good)

    def bytes_of(kv: str, heads: tuple[int, int]) -> float:
        (row,) = (one for one in good if (one.kind, one.kv, one.heads) == ("decode", kv, heads))
        assert row.gb_s is not None and row.share == pytest.approx(row.gb_s)
        return row.gb_s * 1e6

    for heads in ((2, 2), (4, 1)):
        assert bytes_of("bf16", heads) == pytest.approx(2 * 2 * 33 * heads[1] * DIM * 2)
        assert bytes_of("fp8", heads) == pytest.approx(2 * 2 * 33 * heads[1] * (DIM + 2))


@pytest.mark.skipif(torch.cuda.is_available(), reason="the program itself runs there")
def test_rotation_in_front_and_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(monkeypatch)
    attention.bench_rotation(bench, (4, 1), (2, 33), "fp8")
    assert [(row.kind, row.who, row.kv, row.error) for row in bench.rows] == [
        ("rotation", "in front", "fp8", None),
        ("rotation", "inside", "fp8", None),
    ]
    off = bench.rows[1].off
    assert off is not None and off < 5e-3


@pytest.mark.skipif(torch.cuda.is_available(), reason="the program itself runs there")
def test_the_cuda_kernel_beside_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose forms are compared with Triton's kernel, which here stands for it."""

    class Kernel:
        def __init__(self, shape: Shape, device: torch.device) -> None:
            self.shape, self.forced = shape, None

        def variant(self, rows: int) -> Variant:
            return Variant(4, 2, 1)

        def decode(self, *given: torch.Tensor, ahead: bool, pdl: bool, **how: Any) -> None:
            paged_decode(*given, **how)  # type: ignore[arg-type]

    bench = Bench(monkeypatch)
    monkeypatch.setattr(attention_rotation, "PagedDecode", Kernel)
    monkeypatch.setattr(attention_rotation, "FORMS", attention_rotation.FORMS[:2])
    given = attention_rotation.bench_rotation(bench, (4, 1), (2, 33), "bf16")
    attention_rotation.bench_cuda(bench, *given, (2, 33), "bf16", True)
    who = [row.who for row in bench.rows]
    assert who[:3] == ["in front", "inside", "cuda"] and who[-2:] == ["cuda, best", "cuda, best, not early"]
    assert len(who) > 5 and set(who[3:-2]) == {"sweep"}
    assert all(row.error is None and (row.off or 0.0) < 5e-3 for row in bench.rows)


def test_shapes_and_kinds_may_be_chosen(capsys: pytest.CaptureFixture[str]) -> None:
    args = attention.arguments(["--kv-dtype", "bf16,fp8", "--only", "decode", "--shapes", "8x1024,64x1024"])
    found = [case[2:] for case in attention.cases(args) if case[1] == (16, 16)]
    assert found == [((rows, 1024), kv) for rows in (8, 64) for kv in ("bf16", "fp8")]
    only = attention.arguments(["--only", "rotation", "--shapes", "8x1024"])
    assert [case[0] for case in attention.cases(only)] == ["rotation"] * 2
    for wrong in ("--shapes 8", "--shapes 8x0", "--kv-dtype int8"):
        with pytest.raises(SystemExit):
            attention.arguments(wrong.split())
        assert wrong.split()[0] in capsys.readouterr().err
