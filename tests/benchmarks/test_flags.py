"""The flag sweep on a tiny model, and the table of flags that is made from the code."""

import json
from pathlib import Path

import pytest

from benchmarks import flags, serve
from benchmarks.flag_modes import MODES
from benchmarks.flag_table import measured, table

DOCS = Path(__file__).parents[2] / "docs" / "flags.md"


def test_the_table_of_flags_is_up_to_date() -> None:
    assert DOCS.read_text() == table(), "python -m benchmarks.flag_table > docs/flags.md"


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
        assert row["error"] is None and "paged reference" in row["backend"]
        assert len(row["prefill_s"]) == len(row["decode_s"]) == 2
        assert row["prefill_tok_s"] > 0 and row["decode_tok_s"] > 0
    assert baseline["prefill_pct"] == baseline["decode_pct"] == 0
    gain = 100 * (blocks["decode_tok_s"] / baseline["decode_tok_s"] - 1)
    assert blocks["decode_pct"] == pytest.approx(gain)
    assert kept["machine"]["torch"] and "random weights" in kept["settings"]["label"]
    printed = capsys.readouterr().out
    assert "(+0.0%)" in printed and "unavailable" in printed
    assert "| baseline | none |" in out.with_suffix(".md").read_text()


def test_b4_to_b8_the_eight_prompts(tmp_path: Path) -> None:
    out = tmp_path / "prompts.json"
    few = ["--workload", "prompts", "--runs", "1", "--reuse-ids-buffer", "--model-size", "tiny"]
    flags.main([*few, "--device", "cpu", "--out", str(out)])
    rows = {row["mode"]: row for row in json.loads(out.read_text())["rows"]}
    assert list(rows) == ["single", "static", "continuous", "static, buffers anew"]
    for row in rows.values():
        assert row["tokens"] == 512
        assert row["tok_s"] == pytest.approx(512 / row["mean_s"])


def test_gains_are_those_of_the_row_before(tmp_path: Path) -> None:
    def row(mode: str, prefill: float, decode: float, error: str | None = None) -> dict[str, object]:
        return {"mode": mode, "prefill_tok_s": prefill, "decode_tok_s": decode, "error": error}

    rows = [
        row("baseline", 100, 10),
        row("flash_sdp", 200, 10),
        row("flash3", 0, 0, "unavailable: it is not installed"),
        row("flash3_block", 900, 90),
        row("persistent", 1000, 100),
        row("graphs", 1500, 400),
        row("clusters", 1000, 100),
        row("int8_weights", 9000, 9000),
        row("te_fp8", 1100, 150),
    ]
    kept = {"machine": {"gpu": "a GPU"}, "settings": {}, "rows": rows}
    (tmp_path / "flags-cuda-bfloat16-2026-01-01.json").write_text(json.dumps(kept))
    gains = measured(tmp_path)
    assert gains["use_flash_sdp"] == "prefill +100 %, decode +0 % (a GPU)"
    assert gains["use_cuda_graphs"] == "prefill +50 %, decode +300 % (a GPU)"
    assert gains["use_te_weight_only"] == "prefill +10 %, decode +50 % (a GPU)", (
        "over the row without eight bits"
    )
    assert "use_flash3" not in gains and "kv_block_size" not in gains, "there is no row to compare with"


@pytest.mark.parametrize("argv", [["--batch-size", "0"], ["--modes", "fastest"], ["--dtype", "int3"]])
def test_bad_arguments_are_refused(argv: list[str]) -> None:
    with pytest.raises(SystemExit):
        flags.arguments(argv)


def test_b3_modes_are_compared_under_one_load() -> None:
    args = serve.parse(["--compare", "single,static,continuous"])
    assert (args.load, args.modes) == ("modes", "single,static,continuous")
    with pytest.raises(SystemExit):
        serve.parse(["--compare", "single,dynamic"])
