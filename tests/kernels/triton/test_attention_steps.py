"""benchmarks.attention_steps on the CPU, where plain torch attends."""

from collections.abc import Callable

import pytest

from benchmarks.attention_steps import arguments, forms_of, measure
from tests.kernels.quick_network import quicken
from tests.kernels.triton.path_cases import gpt


def test_every_step_is_run_and_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    quicken(monkeypatch, samples=False)
    ran = 0

    def timer(body: Callable[[], None]) -> float:
        nonlocal ran
        body()
        ran += 1
        return ran / 1e3

    model = gpt()
    found = [*measure(model, [1, 3], [5, 17], ["bf16"], [(8, 2, 1, 1)], timer)]
    assert [(row.rows, row.keys, row.who, row.ms) for row in found] == [
        (1, 5, "torch", 1.0), (1, 17, "torch", 2.0), (3, 5, "torch", 3.0), (3, 17, "torch", 4.0)
    ]  # fmt: skip


def test_what_cannot_be_measured_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert forms_of("8/2/1/1,4/3/2/1") == [(8, 2, 1, 1), (4, 3, 2, 1)]
    for wrong, said in (
        (["--forms", "8/2"], "W/S/U/T"),
        (["--kv-dtype", "fp4"], "--kv-dtype fp4"),
        (["--size", "d3"], "no size 'd3'"),
    ):
        with pytest.raises(SystemExit):
            arguments(wrong)
        assert said in capsys.readouterr().err
