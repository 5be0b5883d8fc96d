"""The training benchmark on a model of one layer: its rows, what they say, and that a row cannot end it."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks import training
from benchmarks.models import SIZES
from benchmarks.training_rows import CASES, Bench, Case, build, measure, train_step
from engine.config import GPTConfig
from engine.model import GPT
from kernels.autograd import plain_operators
from tests.engine.checkpoints import make_model
from training.flops import flops_per_token, peak_flops

SMALL = {"n_layer": 1, "n_embd": 64, "n_head": 2, "n_kv_head": 2, "vocab_size": 512, "sequence_len": 64}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SIZES, "tiny", SMALL)


def bench(dtype: torch.dtype = torch.float32) -> Bench:
    return Bench("tiny", build("tiny", "cpu", dtype), dtype)


def seeds(batch: int, time: int) -> dict[str, float | None]:
    """Of the rows with flash attention: the seed's figure by the dtype of the logits."""
    return {
        "fp32" if case.wide else "bf16": case.seed
        for case in CASES
        if (case.batch, case.time, case.attention) == (batch, time, "flash")
        and not (case.compiled or case.plain or case.accumulate or case.steps == 5)
    }


def test_t1_to_t7_the_seeds_sweep() -> None:
    wanted = {
        (1, 512): {"fp32": 2_000, "bf16": 6_600},
        (2, 512): {"fp32": 8_300, "bf16": 9_600},
        (4, 512): {"fp32": 14_500, "bf16": 18_300},
        (8, 512): {"fp32": 22_200, "bf16": 30_900},
        (12, 512): {"fp32": None, "bf16": 18_200},
        (16, 512): {"fp32": None, "bf16": 31_600},
        (1, 1024): {"bf16": 4_000},
        (2, 1024): {"bf16": 15_700},
        (4, 1024): {"bf16": 24_600},
        (32, 512): {"bf16": 22_300},
    }
    for (batch, time), figures in wanted.items():
        assert seeds(batch, time) == figures
    assert seeds(8, 1536)["bf16"] == 32_200
    (micro,) = (case for case in CASES if case.steps == 5)
    assert (micro.name, micro.seed) == ("1x512-flash-fp32-5steps", 3_400)
    assert len({case.name for case in CASES}) == len(CASES)


@pytest.mark.slow
def test_t10_the_table_of_two_by_two(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The fourth, with its compiled sister, is left to the slow test."""
    assert [case.seed for case in CASES[:4]] == [822, 937, 972, 889]
    assert all(case.steps == 3 for case in CASES[:4])
    out = tmp_path / "training.json"
    command = ["--device", "cpu", "--dtype", "bfloat16", "--rows", "1x256-math,1x256-flash-fp32"]
    training.main([*command, "--out", str(out)])
    kept = json.loads(out.read_text())
    table = {row["row"]: row for row in kept["rows"]}
    assert list(table) == ["1x256-math-bf16", "1x256-math-fp32", "1x256-flash-fp32"]
    for row in table.values():
        assert row["error"] is None and row["steps"] == 3 and row["tok_s"] > 0 and row["gradient_norm"] > 0
        assert row["tok_s"] == pytest.approx(256 / (row["step_ms"] / 1e3))
        assert row["seed_tok_s"] is None, "the seed's figures are of a d32"
        assert row["mfu"] is None, "nobody knows this processor's peak"
    assert [row["attention"] for row in table.values()] == ["math", "math", "flash"]
    assert [row["logits"] for row in table.values()] == ["bfloat16", "float32", "float32"]
    losses = [row["loss"] for row in table.values()]
    assert max(losses) - min(losses) < 0.02, "of the same tokens"
    assert kept["machine"]["torch"] and kept["settings"]["size"] == "tiny"
    assert "| 1x256-math-bf16 | math |" in out.with_suffix(".md").read_text()
    assert "1x256-flash-fp32" in capsys.readouterr().out


def test_t4_narrow_logits_are_set_against_wide_ones(tmp_path: Path) -> None:
    here = bench()
    rows = [measure(here, Case(2, 16, wide=wide), 1, 1) for wide in (False, True)]
    rows.append(measure(here, Case(2, 16, "math", wide=True), 1, 1))
    rows.append(measure(here, Case(1, 16), 1, 1))
    assert training.narrow_against_wide(rows) == {"2x16": rows[0].tok_s / rows[1].tok_s}
    args = training.arguments(["--device", "cpu"])
    assert "bf16 logits against float32 ones, tok/s: 2x16 " in training.markdown(args, rows)


@pytest.mark.slow
def test_t11_compilation_is_apart(tmp_path: Path) -> None:
    out = tmp_path / "training.json"
    training.main(["--device", "cpu", "--rows", "1x256-flash-bf16-compiled", "--out", str(out)])
    (row,) = json.loads(out.read_text())["rows"]
    assert row["error"] is None and row["first_step_s"] > 10 * row["step_ms"] / 1e3
    assert "compilation included" in out.with_suffix(".md").read_text()


def test_t9_t11_nothing_is_compiled_unless_asked_for() -> None:
    cases = training.arguments(["--device", "cpu"]).cases
    assert [case.name for case in cases if case.compiled] == ["1x256-flash-bf16-compiled"]
    assert cases[-1].compiled and cases[-1].seed == 437
    assert all(case.compiled for case in training.arguments(["--device", "cpu", "--compile"]).cases)


@pytest.mark.parametrize("wide", [True, False])
@pytest.mark.parametrize("parts", [2, 3, 6])
def test_t8_accumulated_gradients_are_those_of_the_big_batch(parts: int, wide: bool) -> None:
    """Though the ignored targets are spread unevenly."""
    model = make_model("G5", 3, use_fp32_logits=wide).requires_grad_(True)
    tokens = torch.randint(512, (6, 17), generator=torch.Generator().manual_seed(0))
    ids, targets = tokens[:, :-1], tokens[:, 1:].clone()
    targets[0, 2:] = targets[1, :7] = -1

    def gradients(parts: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        model.zero_grad(set_to_none=True)
        loss = train_step(model, ids, targets, parts)
        return loss, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    (loss, whole), (total, added) = gradients(1), gradients(parts)
    torch.testing.assert_close(loss, model(ids, targets).detach())
    torch.testing.assert_close(total, loss)
    assert len(added) == len(list(model.parameters()))
    for name, gradient in whole.items():
        torch.testing.assert_close(added[name], gradient, rtol=1e-4, atol=1e-6)


def test_t8_rows_that_accumulate() -> None:
    (case,) = (case for case in CASES if case.accumulate)
    small = Case(2, 16, accumulate=case.accumulate)
    row = measure(bench(), small, 1, 1)
    assert row.accumulate == 4 and row.error is None
    assert row.tok_s == pytest.approx(4 * 2 * 16 / (row.step_ms / 1e3))
    assert measure(bench(), Case(2, 16), 1, 3).accumulate == 3


@pytest.mark.slow
def test_t6_what_does_not_fit_is_a_row() -> None:
    here = bench()
    row = measure(here, Case(10**14, 512), 1, 1)
    assert row.error == "out of memory" and row.tok_s == 0
    assert measure(here, Case(1, 16), 1, 1).error is None
    row = measure(here, Case(1, 10 * SMALL["sequence_len"] + 1), 1, 1)
    assert row.error is not None and "exceed the rotary table" in row.error


def test_rows_after_the_time_limit_say_so(tmp_path: Path) -> None:
    out = tmp_path / "training.json"
    training.main(["--device", "cpu", "--rows", "1x512", "--seconds", "1e-9", "--out", str(out)])
    rows = json.loads(out.read_text())["rows"]
    assert len(rows) == 3 and all(row["error"] == "left out after --seconds 1e-09" for row in rows)


def test_a_row_that_fails_is_told_and_ends_in_an_error(tmp_path: Path) -> None:
    out = tmp_path / "training.json"
    with pytest.raises(SystemExit) as ended:
        training.main(["--device", "cpu", "--rows", "1x1024", "--out", str(out)])
    assert ended.value.code == 1
    assert "1024 positions exceed the rotary table of 640" in out.with_suffix(".md").read_text()


def test_the_optimizer_is_part_of_the_step_where_it_is_asked_for(tmp_path: Path) -> None:
    here = bench()
    args = training.arguments(["--device", "cpu", "--optimizer"])
    here.optimizers = training._optimizers(args, here.model)
    before = [parameter.detach().clone() for parameter in here.model.parameters()]
    row = measure(here, Case(1, 16), 1, 1)
    assert row.error is None and row.gradient_norm is None
    assert not any(torch.equal(one, two) for one, two in zip(before, here.model.parameters(), strict=True))
    assert "update" in training.markdown(args, [row])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rows", "3x7"], "there is no '3x7'"),
        (["--steps", "0"], "--steps 0 is not positive"),
        (["--grad-accum", "-1"], "--grad-accum -1 is not positive"),
        (["--seconds", "0"], "--seconds 0 is not positive"),
        (["--size", "llama-d32"], "none of nanochat's models"),
        (["--size", "d33"], "there is no size 'd33'"),
    ],
)
def test_bad_options_are_named(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        training.arguments(["--device", "cpu", *arguments])
    assert message in capsys.readouterr().err


def test_plain_operators_are_those_of_a_cpu() -> None:
    here = bench()
    with plain_operators():
        plain = measure(here, Case(2, 16), 1, 1)
    row = measure(here, Case(2, 16), 1, 1)
    assert plain.loss == row.loss and plain.gradient_norm == row.gradient_norm


@pytest.mark.parametrize("pattern", ["L", "SSSL", "SL"])
@pytest.mark.parametrize("time", [1, 5, 40])
def test_flops_count_every_product_and_every_key(pattern: str, time: int) -> None:
    config = GPTConfig.for_generation(
        "G1", n_layer=5, n_embd=64, n_head=4, n_kv_head=2, vocab_size=96, padded_vocab_size=128,
        sequence_len=32, window_pattern=pattern, short_window=7,
    )  # fmt: skip
    products = sum(m.weight.numel() for m in GPT(config).modules() if isinstance(m, torch.nn.Linear))
    keys = 0
    for layer in range(config.n_layer):
        window = config.window(layer)
        for position in range(time):
            keys += position + 1 if window is None else min(position + 1, window + 1)
    wanted = 6 * products + 3 * 4 * config.n_head * config.head_dim * keys / time
    assert flops_per_token(config, time) == pytest.approx(wanted)


def test_a_d32s_flops() -> None:
    config = GPTConfig.for_generation("G1", **SIZES["d32"])
    assert flops_per_token(config, 1536) == pytest.approx(6 * 1_744_830_464 + 6 * 32 * 2048 * 1537)


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H200", 989e12), ("NVIDIA H100 80GB HBM3", 989e12), ("NVIDIA B200", 2250e12),
        ("NVIDIA H100 PCIe", None), ("NVIDIA H200 NVL", None), ("NVIDIA GB200", None), ("Tesla V100", None),
    ],
)  # fmt: skip
def test_a_peak_is_that_of_the_very_board(
    monkeypatch: pytest.MonkeyPatch, name: str, peak: float | None
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert peak_flops(torch.device("cuda")) == peak
    assert peak_flops(torch.device("cpu")) is None
