"""The decode paths beside each other, on a device that is made up: rows, shares, what served, phases."""

import argparse
import asyncio
from collections.abc import Iterator

import pytest

from benchmarks import offline, paths
from benchmarks.phases import Ran
from benchmarks.workloads import Work
from engine.async_engine import AsyncEngine
from engine.gpu.paths import Paths
from tests.engine.made_up_gpu import Kernels, made_up, serve_with, tiny_model
from tests.seed.test_k_stubs import FiveMethods


class Timed(Kernels):
    def phase_times(self) -> dict[str, float]:
        return {"qkv": 0.002}


@pytest.fixture(autouse=True)
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    kernels = Timed()

    def load(name: str, device: str, dtype: str) -> tuple[object, object, None]:
        return tiny_model(), FiveMethods(), None

    async def profiled(engine: AsyncEngine, work: Work) -> list[Ran]:
        """A kernel in each step."""
        before = engine.stats().steps
        await offline.run_once(engine, work)
        return [Ran("decode_qkv", 0.0, 30.0)] * (engine.stats().steps - before)

    monkeypatch.setattr(offline, "load", load)
    monkeypatch.setattr(paths, "read_bandwidth", lambda device: 1e9)
    monkeypatch.setattr(paths, "profiled", profiled)
    with made_up(monkeypatch):
        serve_with(monkeypatch, lambda: Paths(kernels.failed, kernels, {1: "persistent"}))
        yield


def test_a_row_for_each_workload_and_one_for_each_phase(capsys: pytest.CaptureFixture[str]) -> None:
    args = argparse.Namespace(
        **{"paths": ["persistent", "graph"], "device": "cpu", "size": "d32", "dtype": "float32", "shrink": 8},
        **{"streams": [1, 4], "runs": 1, "engine": [], "max_rows": 4, "max_model_len": 200, "threads": 1},
    )
    rows = asyncio.run(paths.measure_paths(args))
    measured = [row for row in rows if "tok_s" in row]
    assert [(row["path"], row["workload"], row["streams"], row["error"]) for row in measured] == [
        (path, workload, streams, None)
        for path in ("persistent", "graph")
        for workload, streams in (("one", 1), ("streams", 4))
    ]
    assert [row["served"] for row in measured] == ["persistent", "graph"] * 2
    for row in measured:
        assert row["tok_s"] > 0 and row["share"] > 0 and row["ms_step"] > 0 and row["device_share"] > 0
    assert [row["vllm"] for row in measured] == [447, None] * 2
    phases = [row for row in rows if "phase" in row]
    assert {(row["streams"], row["per"], row["phase"]) for row in phases} == {
        (1, "step", "qkv"),
        (4, "step", "qkv"),
        (1, "layer", "qkv"),
    }
    assert {row["us"] for row in phases if row["per"] == "step"} == {30.0}
    assert next(row["us"] for row in phases if row["per"] == "layer") == 2.0
    printed = capsys.readouterr().out
    assert "persistent (by graph) 4" in printed and "persistent/layer" in printed


def test_what_fails_is_in_its_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def build(*parts: object) -> None:
        raise ValueError("decode_path is chained, but no")

    monkeypatch.setattr("engine.async_engine._build", build)
    args = argparse.Namespace(
        **{"paths": ["chained"], "device": "cpu", "size": "d32", "dtype": "float32", "shrink": 8},
        **{"streams": [], "runs": 1, "engine": [], "max_rows": 4, "max_model_len": 200, "threads": 1},
    )
    (row,) = asyncio.run(paths.measure_paths(args))
    assert row["path"] == "chained" and "decode_path is chained, but no" in str(row["error"])
