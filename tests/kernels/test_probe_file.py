"""The file of what was measured: read as it was written, and of other kernels another one."""

from pathlib import Path

import pytest
import torch

from kernels import skinny
from kernels.probe_file import Choice, cache_file, read_cache, write_cache
from kernels.product import Pick
from kernels.skinny import Variant
from kernels.skinny_family import Skinny
from kernels.triton.gemm_config import GemmConfig
from tests.kernels.probe_cases import Clock, Third

CPU = torch.device("cpu")


def test_cache_file(tmp_path: Path) -> None:
    path, known = tmp_path / "deep" / "c.json", [Skinny(CPU), Third(Clock(float, 1.0))]
    choices = {
        "a": Choice(Pick("skinny", Variant(1, 2, 4, 8, 1, True, 3, True)), {"skinny": 1.5, "cuBLAS": 2.5}),
        "b": Choice(None, {"skinny": 3.0, "triton": 2.0, "cuBLAS": 1.0}),
    }
    inside = GemmConfig(64, 128, 64, 2, 4, 4, norm_inside=True)
    choices["c"] = Choice(Pick("triton", inside), {"triton": 0.5, "cuBLAS": 2.0})
    write_cache(path, choices)
    assert read_cache(path, known) == choices
    assert [choice.row("", 1) for choice in read_cache(path, known).values()] == [
        choice.row("", 1) for choice in choices.values()
    ]
    # Without a family, what it was chosen for is not known.
    assert read_cache(path, known[:1]) == {key: choices[key] for key in "ab"}
    for damage in ("", "[]", "{", "3", "null", "\0"):
        path.write_text(damage)
        assert read_cache(path, known) == {}
    assert read_cache(tmp_path / "missing.json", known) == {}


def test_other_kernels_have_another_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Some GPU 1/2")
    known = [Skinny(CPU), Third(Clock(float, 1.0))]
    path = cache_file(CPU, known)
    assert path.name.startswith(f"linear-Some-GPU-1-2-{torch.__version__}-") and path == cache_file(
        CPU, known
    )
    assert cache_file(CPU, known[:1]) != path
    monkeypatch.setattr(skinny, "source", lambda: "other")
    assert cache_file(CPU, known) != path
