"""Two results beside each other: what moved, and whether they may be compared."""

import json
from pathlib import Path

import pytest

from benchmarks.compare import compare, identity, index, main

MACHINE = {"cpu": "A", "cores": 2, "gpu": "H"}


def row(**fields: object) -> dict[str, object]:
    made: dict[str, object] = {"system": "fastpath", "workload": "one", "streams": 1, "tok_s": 100.0}
    return made | {"itl_p99_ms": 2.0, "steps": 50, "vllm": 447.0} | fields


def result(tmp_path: Path, name: str, *rows: dict[str, object], **machine: object) -> str:
    path = tmp_path / f"{name}.json"
    path.write_text(json.dumps({"machine": MACHINE | machine, "settings": {}, "rows": rows}))
    return str(path)


def moved(
    before: dict[str, object], after: dict[str, object], tolerance: float | None = None
) -> list[object]:
    return [(change.figure, change.verdict) for change in compare(before, after, tolerance)]


def test_a_figure_may_move_by_its_spread() -> None:
    assert moved(row(spread=0.02), row(tok_s=97.0, spread=0.04)) == []
    assert moved(row(spread=0.02), row(tok_s=97.0, spread=0.02)) == [("tok_s", "worse")]
    assert moved(row(spread=0.02), row(tok_s=110.0, spread=0.02)) == [("tok_s", "better")]
    assert moved(row(spread=0.02), row(tok_s=110.0), tolerance=0.2) == []


def test_without_a_spread_by_five_percent() -> None:
    assert moved(row(), row(tok_s=95.5, itl_p99_ms=2.09)) == []
    assert moved(row(), row(tok_s=90.0, itl_p99_ms=2.2, steps=60)) == [
        ("tok_s", "worse"),
        ("itl_p99_ms", "worse"),
        ("steps", "differs"),
    ]
    assert moved(row(), row(itl_p99_ms=1.0, vllm=1.0)) == [("itl_p99_ms", "better")]


def test_what_is_nested_counts_and_what_is_missing_does_not() -> None:
    assert moved(row(parts={"graphs_s": 2.0}), row(parts={"graphs_s": 4.0})) == [("parts.graphs_s", "worse")]
    assert moved(row(mbu=0.5), row()) == []


def test_rows_are_matched_by_what_they_are_about() -> None:
    rows = [row(), row(streams=8), row(), row(workload="c256")]
    found = index(rows)
    assert len(found) == 4 and list(found.values()) == rows
    assert identity(rows[1]) == (("system", "fastpath"), ("workload", "one"), ("streams", 8))


def test_weights_and_sampling_tell_rows_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Results from before sampling was measured have greedy rows that do not say so."""
    kinds = ("int8", "bf16")
    before = result(tmp_path, "before", *(row(weights=kind, tok_s=700.0) for kind in kinds))
    both = [row(weights=kind, sampling=how) for kind in kinds for how in ("greedy", "chat")]
    after = result(
        tmp_path, "after", *(one | {"tok_s": 700.0} for one in both if one["sampling"] == "greedy")
    )
    assert main([before, after]) == 0
    assert "2 rows in both, 0 figures differ" in capsys.readouterr().out
    assert main([before, result(tmp_path, "slower", *both)]) == 0
    told = capsys.readouterr().out
    assert "2 rows in both, 2 figures differ" in told
    assert "only after: fastpath one int8 chat 1" in told and "only after: fastpath one bf16 chat 1" in told


def test_exit_codes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = result(tmp_path, "before", row(), row(streams=8, tok_s=700.0))
    same = result(tmp_path, "same", row(streams=8, tok_s=710.0), row(tok_s=101.0))
    worse = result(tmp_path, "worse", row(tok_s=60.0), row(streams=64))
    failed = result(tmp_path, "failed", row(error="RuntimeError: no"))
    assert main([before, same, "--fail-on-regression"]) == 0
    assert "2 rows in both, 0 figures differ" in capsys.readouterr().out
    assert main([before, worse]) == 0
    assert main([before, worse, "--fail-on-regression"]) == 1
    told = capsys.readouterr().out
    assert "0.600" in told and "only before: fastpath one 8" in told and "only after: fastpath one 64" in told
    assert main([before, failed, "--fail-on-regression"]) == 1
    assert "failed after: fastpath one 1: RuntimeError: no" in capsys.readouterr().out


def test_other_machines_are_compared_on_request_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = result(tmp_path, "before", row())
    for other in ({"gpu": "B"}, {"cpu": "B"}, {"gpu": None}):
        after = result(tmp_path, "after", row(), **other)
        assert main([before, after]) == 2
        assert "different" in capsys.readouterr().err
        assert main([before, after, "--force"]) == 0
    (tmp_path / "none.json").write_text("[]")
    assert main([before, str(tmp_path / "none.json")]) == 2
    assert main([before, str(tmp_path / "missing.json")]) == 2
