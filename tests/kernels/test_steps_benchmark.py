"""`benchmarks.steps` over kernels that run on the host."""

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import ClassVar

import pytest
import torch

from benchmarks import models, steps
from engine.gpu.weights import padded
from kernels.decode_arguments import PHASES, SPENT, StepArguments, StepMemory
from kernels.decode_shape import Cut, defines, shared_bytes
from kernels.decode_step import cut_of, launches
from kernels.step_spec import StepPath
from tests.kernels.conftest import HostCode
from tests.kernels.decode_cases import SMALL, poison

SPEC = replace(SMALL, layers=1)
ARGS = ["--rows", "1,2", "--position", "40", "--slots", "4,6", "--pace", "9", "--trace"]


class Emulated:
    """Launches kernels on the host. refused: forms that cannot be run."""

    team: ClassVar[int] = 2

    def __init__(self, host_code: HostCode, refused: Callable[[Cut], bool]) -> None:
        self._code, self._refused = host_code, refused

    def form(self, path: StepPath, rows: int) -> Cut:
        return cut_of(SPEC, path, rows, self.team)

    def launch(self, cut: Cut, given: StepArguments) -> None:
        if self._refused(cut):
            raise RuntimeError("too large")
        library = self._code("emulate_decode.cpp", defines(SPEC, cut))
        for index, phase in launches(SPEC, cut):
            shared = shared_bytes(SPEC, cut)
            assert not library.emulate(shared, ctypes.byref(given), index, phase, 3, ctypes.c_longlong(1))


def run(
    monkeypatch: pytest.MonkeyPatch,
    host_code: HostCode,
    refused: Callable[[Cut], bool],
    args: Sequence[str] = ARGS,
) -> steps.Result:
    net = steps.random_network(SPEC, torch.device("cpu"))
    memory = StepMemory.allocate(net, Emulated.team, 16, torch.device("cpu"))
    poison(memory)
    monkeypatch.setattr(steps, "TRACED_STEPS", 1)

    def timer(body: Callable[[], None]) -> float:
        body()
        return 1e-3

    return steps.measure(net, memory, Emulated(host_code, refused), steps.parse([*args]), timer, 1e9)


def test_a_row_for_each_form_and_a_trace_of_what_it_waits_for(
    monkeypatch: pytest.MonkeyPatch, host_code: HostCode, capsys: pytest.CaptureFixture[str]
) -> None:
    rows, traces = run(monkeypatch, host_code, lambda cut: cut.rows == 2 and cut.slots == 6)
    assert [(row.rows, row.slots) for row in rows] == [(1, 4), (1, 6), (2, 4), (2, 6)]
    assert [row.error for row in rows] == ["", "", "", "RuntimeError: too large"]
    assert all(row.same and row.ms == 1 and 0 < row.share < 1 for row in rows[:3])
    assert len(traces) == 3 * len(PHASES) * len(SPENT)
    for row in rows[:3]:
        whole = [t.mean_us for t in traces if t.form == row.form and t.what == "all"]
        assert sum(whole) == pytest.approx(1000)  # the phases share out the step
    steps.show(traces)
    assert "too large" in (out := capsys.readouterr().out) and out.count("mean / most") == 3


def test_both_ways_through_the_mlp(monkeypatch: pytest.MonkeyPatch, host_code: HostCode) -> None:
    ways = [*ARGS[:4], "--mlp-out", "shares,whole"]
    rows, _ = run(monkeypatch, host_code, lambda cut: False, ways)
    assert [(row.rows, row.mlp_out) for row in rows] == [
        (1, "shares"),
        (1, "whole"),
        (2, "shares"),
        (2, "whole"),
    ]
    assert all(row.same and not row.error for row in rows)  # bit for bit
    monkeypatch.setattr(steps, "may_be_whole", lambda *_: False)
    rows, _ = run(monkeypatch, host_code, lambda cut: False, ways)
    assert [row.error.split(":")[:2] for row in rows[:2]] == [[""], ["ValueError", " --mlp-out whole"]]


def test_more_rows_than_the_engine_runs_so(host_code: HostCode) -> None:
    emulated = Emulated(host_code, lambda cut: False)
    assert steps.usual(SPEC, emulated, "persistent", 4) == cut_of(SPEC, "persistent", 4, 2)
    cut = steps.usual(SPEC, emulated, "persistent", 8)
    assert cut.rows == 8 and cut.resident and cut.slots == 10
    assert steps.usual(steps.D32, emulated, "persistent", 8).slots < 12  # no more have room


@pytest.mark.parametrize(
    "wrong",
    ["--rows 3", "--path graph", "--position 5000", "--pace 0", "--slots 7", "--mlp-out half"],
)
def test_what_cannot_be_measured_is_named(wrong: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        steps.parse(wrong.split())
    assert wrong.split()[0] in capsys.readouterr().err


def test_steps_are_of_the_models_that_the_other_benchmarks_run() -> None:
    """What holds for a step alone shall hold for the engine's."""
    d32 = models.SIZES["d32"]
    llama = {name: value for name, value in models.CONFIGS["llama-d32"].items() if isinstance(value, int)}
    for name, (width, heads, kv_heads, layers, vocabulary) in {
        "d32": [d32[key] for key in ("n_embd", "n_head", "n_kv_head", "n_layer", "vocab_size")],
        "llama-d32": [
            llama[key]
            for key in (
                "hidden_size",
                "num_attention_heads",
                "num_key_value_heads",
                "num_hidden_layers",
                "vocab_size",
            )
        ],
    }.items():
        spec = steps.SIZES[name]
        assert (spec.width, spec.heads, spec.kv_heads) == (width, heads, kv_heads)
        assert (spec.layers, spec.head_rows, spec.head_dim) == (layers, vocabulary, width // heads)
    spec = steps.SIZES["llama-d32"]
    assert spec.inner == llama["intermediate_size"] and spec.head_dim == llama["head_dim"]
    assert spec.padded_inner == padded(torch.zeros(1, spec.inner)).size(1)
