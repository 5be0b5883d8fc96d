"""Row B3: batching modes under the same load, over HTTP."""

import json
from pathlib import Path

import pytest

from benchmarks import serve
from benchmarks.compare import main as compare
from benchmarks.load import Row, Seen, Stream, fill

SMALL = {"n_layer": 1, "n_embd": 64, "n_head": 2, "n_kv_head": 2, "vocab_size": 512, "sequence_len": 128}


def test_b3_modes_are_compared_under_one_load() -> None:
    args = serve.parse(["--compare", "single,static,continuous"])
    assert (args.load, args.modes) == ("modes", "single,static,continuous")


def test_b3_the_figures_of_what_clients_saw() -> None:
    """Ten streams of eleven tokens: the first after 10, 20 .. 100 ms, then gaps of 1, 2 .. 10 ms."""
    stamps = [sum(range(1, count + 1)) / 1000 for count in range(11)]
    streams = [Stream(5.0, [5 + number / 100 + at for at in stamps], 11) for number in range(1, 11)]
    row = Row("single", 10)
    fill(row, Seen(streams, ["refused"], 2.0, 0.5))
    assert (row.requests, row.errors, row.error) == (10, 1, "refused")
    assert (row.tok_s, row.tokens_per_event, row.client_cpu) == (55, 1, 0.25)
    assert (row.ttft_p50_ms, row.ttft_p90_ms, row.ttft_p99_ms) == pytest.approx((60, 100, 100))
    assert (row.itl_p50_ms, row.itl_p90_ms, row.itl_p99_ms) == pytest.approx((6, 10, 10))
    assert row.tpot_ms == pytest.approx(5.5)


@pytest.mark.slow
def test_b3_two_modes_serve_the_same_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A server for each mode; every figure is there, and a result without p90 can still be compared."""
    monkeypatch.setitem(serve.models.SIZES, "tiny", SMALL)
    out, older = tmp_path / "serve.json", tmp_path / "older.json"
    load = "--clients 3 --client-processes 1 --rounds 1 --new 4 --prompt-len 4,8 --threads 1"
    serve.main(["--compare", "single,continuous", "--model-size", "tiny", "--device", "cpu", *load.split(),
                "--out", str(out)])  # fmt: skip
    kept = json.loads(out.read_text())
    rows = kept["rows"]
    assert [(row["mode"], row["clients"]) for row in rows] == [("single", 3), ("continuous", 3)]
    for row in rows:
        assert (row["requests"], row["errors"], row["error"]) == (3, 0, None)
        assert row["tok_s"] > 0
        assert 0 < row["ttft_p50_ms"] <= row["ttft_p90_ms"] <= row["ttft_p99_ms"]
        # Events that arrive together have no gap.
        assert 0 <= row["itl_p50_ms"] <= row["itl_p90_ms"] <= row["itl_p99_ms"]
    printed = capsys.readouterr().out
    assert "ttft_p90_ms" in printed and "itl_p90_ms" in printed
    for row in rows:
        del row["ttft_p90_ms"], row["itl_p90_ms"]
    older.write_text(json.dumps(kept))
    assert compare([str(older), str(out), "--fail-on-regression"]) == 0
    assert "2 rows in both, 0 figures differ" in capsys.readouterr().out
