"""The flag sweep on a tiny model, and the table of flags that is made from the code."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks import flags
from benchmarks.flag_modes import MODES, nearest_rank, prompts_row
from benchmarks.flag_table import measured, table
from benchmarks.models import SIZES
from benchmarks.report import device_name
from tests.engine.checkpoints import write_checkpoint

DOCS = Path(__file__).parents[2] / "docs" / "flags.md"


def test_the_table_of_flags_is_up_to_date() -> None:
    assert DOCS.read_text() == table(), "python -m benchmarks.flag_table > docs/flags.md"


@pytest.mark.slow
def test_b1_b2_b10_w1_w3_w4_the_seeds_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Rows B1, B2, B10, W1, W3 and W4: rows in the seed's order; what is not there says so."""
    out = tmp_path / "flags.json"
    sizes = ["--batch-size", "2", "--prompt-len", "24", "--decode-len", "6", "--iters", "2"]
    flags.main([*sizes, "--model-size", "tiny", "--device", "cpu", "--out", str(out)])
    kept = json.loads(out.read_text())
    rows = {row["mode"]: row for row in kept["rows"]}
    assert list(rows)[:5] == ["baseline", "flash_sdp", "flash3", "flash3_block", "persistent"]
    assert list(rows) == [mode.name for mode in MODES]
    for name in ("flash_sdp", "flash3", "persistent", "graphs", "clusters", "te_fp8"):
        assert rows[name]["error"].startswith("unavailable: "), name
    baseline, blocks = rows["baseline"], rows["flash3_block"]
    for row in (baseline, blocks, rows["fp8_weights"], rows["int8_weights"]):
        assert row["error"] is None
        assert ("compiled" if row is rows["int8_weights"] else "paged reference") in row["backend"]
        assert len(row["prefill_s"]) == len(row["decode_s"]) == 2
        assert row["prefill_tok_s"] > 0 and row["decode_tok_s"] > 0
    assert baseline["prefill_pct"] == baseline["decode_pct"] == 0
    gain = 100 * (blocks["decode_tok_s"] / baseline["decode_tok_s"] - 1)
    assert blocks["decode_pct"] == pytest.approx(gain)
    assert kept["machine"]["torch"] and "random weights" in kept["settings"]["label"]
    printed = capsys.readouterr().out
    assert "(+0.0%)" in printed and "unavailable" in printed
    assert "| baseline | none |" in out.with_suffix(".md").read_text()


def test_b2_the_defaults_are_the_seeds() -> None:
    args = flags.arguments([])
    assert (args.batch_size, args.prompt_len, args.decode_len, args.iters) == (4, 512, 128, 3)
    assert (args.workload, args.dtype in ("bfloat16", "float32")) == ("sweep", True)


def test_b4_to_b8_the_eight_prompts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """B6: the tokens are those of one prompt at a time, with buffers made anew as well."""
    monkeypatch.setitem(
        SIZES, "tiny", SIZES["tiny"] | {"n_layer": 2, "n_embd": 128, "n_head": 2, "n_kv_head": 2}
    )
    out = tmp_path / "prompts.json"
    few = ["--workload", "prompts", "--runs", "1", "--reuse-ids-buffer", "--model-size", "tiny"]
    flags.main([*few, "--device", "cpu", "--out", str(out)])
    rows = {row["mode"]: row for row in json.loads(out.read_text())["rows"]}
    assert list(rows) == ["single", "static", "continuous", "static, buffers anew"]
    single = rows["single"]
    assert len(set(single["answers"])) == 8, "eight prompts, eight answers"
    for row in rows.values():
        assert row["tokens"] == 512
        assert row["tok_s"] == pytest.approx(512 / row["mean_s"])
        assert row["gain_pct"] == pytest.approx(100 * (row["tok_s"] / single["tok_s"] - 1))
        assert row["p50_ratio"] == pytest.approx(single["p50_s"] / row["p50_s"])
        assert row["answers"] == single["answers"]
    printed = capsys.readouterr().out
    assert "gain %" in printed and printed.count("8 of 8") == 4
    assert "| static, buffers anew |" in out.with_suffix(".md").read_text()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="buffers are reused on a GPU alone")
def test_b6_buffers_anew_and_reused_give_the_same_tokens(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "prompts.json"
    few = ["--workload", "prompts", "--runs", "1", "--reuse-ids-buffer", "--model-size", "tiny"]
    flags.main([*few, "--device", "cuda", "--out", str(out)])
    rows = {row["mode"]: row for row in json.loads(out.read_text())["rows"]}
    assert rows["static, buffers anew"]["answers"] == rows["static, buffers reused"]["answers"]
    assert "anew and reused: 8 of 8" in capsys.readouterr().out


def test_b7_b8_the_arithmetic_on_the_seeds_seconds() -> None:
    """Five runs with the seed's p50 and mean: 77.46 and 194.7 tokens a second, +151 %, 2.5 times shorter."""
    single = prompts_row("single", 512, [6.55, 6.50, 6.55, 6.90, 6.55], ["a"] * 8)
    assert (single.p50_s, single.mean_s) == (6.55, pytest.approx(6.61))
    assert single.tok_s == pytest.approx(77.46, abs=0.005)
    assert (single.gain_pct, single.p50_ratio, single.p90_ratio) == (0, 1, 1)
    batched = prompts_row("static", 512, [2.61, 2.55, 2.61, 2.77, 2.61], ["a"] * 8, single)
    assert batched.tok_s == pytest.approx(194.7, abs=0.05)
    assert batched.gain_pct == pytest.approx(151.3, abs=0.05)
    assert batched.p50_ratio == pytest.approx(6.55 / 2.61) and batched.p90_ratio == pytest.approx(6.9 / 2.77)


def test_b7_p90_is_the_nearest_rank() -> None:
    values = [float(value) for value in range(20, 0, -1)]
    assert [nearest_rank(values[-count:], 90) for count in (1, 5, 9, 10, 11, 20)] == [1, 5, 9, 9, 10, 18]


def test_w2_b10_the_seeds_checkpoint_is_found_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Stage sft, the deepest tag, the last step; the device is named, and both are in the result."""
    base, out = tmp_path / "base", tmp_path / "flags.json"
    for source, tag, step in (
        ("sft", "d4", 90),
        ("sft", "d12", 3),
        ("sft", "d12", 11),
        ("rl", "d20", 50),
        ("base", "d32", 70),
    ):
        write_checkpoint(base, "G1", source=source, tag=tag, step=step, n_layer=1)
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(base))
    sizes = ["--batch-size", "1", "--prompt-len", "8", "--decode-len", "2", "--iters", "1"]
    flags.main([*sizes, "--modes", "baseline", "--device", "cpu", "--out", str(out)])
    first = capsys.readouterr().out.splitlines()[0]
    assert first.startswith("nanochat-d12, source sft, step 11, ") and device_name("cpu") in first
    kept = json.loads(out.read_text())
    assert kept["settings"]["label"] == "nanochat-d12, source sft, step 11"
    assert kept["machine"]["cpu"] == device_name("cpu")
    shown = out.with_suffix(".md").read_text()
    assert "nanochat-d12, source sft, step 11" in shown and device_name("cpu") in shown


def test_gains_are_those_of_the_row_before(tmp_path: Path) -> None:
    def row(mode: str, prefill: float, decode: float, error: str | None = None) -> dict[str, object]:
        return {"mode": mode, "prefill_tok_s": prefill, "decode_tok_s": decode, "error": error}

    rows = [
        row("baseline", 100, 10),
        row("flash_sdp", 200, 10),
        row("flash3", 0, 0, "unavailable: it is not installed"),
        row("flash3_block", 900, 90),
        row("persistent", 1100, 70),
        row("graphs", 1500, 400),
        row("linear", 1000, 100),
        row("clusters", 1000, 103),
        row("int8_weights", 9000, 9000),
        row("te_fp8", 1100, 150),
    ]
    kept = {"machine": {"gpu": "a GPU"}, "settings": {}, "rows": rows}
    (tmp_path / "flags-cuda-bfloat16-2026-01-01.json").write_text(json.dumps(kept))
    gains = measured(tmp_path)
    assert gains == {
        "use_flash_sdp": "prefill +100 %, decode within noise (a GPU)",
        "enable_persistent_decode": "within noise (a GPU)",
        "use_cuda_graphs": "prefill +36 %, decode +471 % (a GPU)",
        "use_cta_clustering": "prefill +0 %, decode +3 % (a GPU)",
        "use_te_weight_only": "prefill +10 %, decode +46 % (a GPU)",
    }, "one flag a row; of te_fp8 over the row without eight bits; none where there is no row to compare with"


def test_gains_without_graphs_are_within_noise(tmp_path: Path) -> None:
    """Of the rows behind one whose graphs could not be had; not of those behind one that nobody chose."""
    rates = [("persistent", 90), ("linear", 100), ("clusters", 110)]
    rows = [
        {"mode": mode, "prefill_tok_s": rate, "decode_tok_s": rate, "error": None} for mode, rate in rates
    ]
    refused = {"mode": "graphs", "prefill_tok_s": 0, "decode_tok_s": 0, "error": "unavailable"}
    for graphs, said in (([refused], "within noise"), ([], "prefill +10 %, decode +10 %")):
        kept = {"machine": {"gpu": "a GPU"}, "settings": {}, "rows": [rows[0], *graphs, *rows[1:]]}
        (tmp_path / "flags-cuda-bfloat16-2026-01-01.json").write_text(json.dumps(kept))
        assert measured(tmp_path) == {"use_cta_clustering": f"{said} (a GPU)"}
