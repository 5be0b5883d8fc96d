"""Which precision of Transformer Engine serves where, and what a package that is not whole raises."""

import sys
import types

import pytest
import torch

from kernels import te
from tests.kernels import fake_te

HOPPER, BLACKWELL, DESKTOP = (9, 0), (10, 0), (12, 0)
BF16 = torch.bfloat16


@pytest.mark.parametrize(
    ("asked", "capability", "served"),
    [
        ("fp8", HOPPER, "fp8"),
        ("fp8", BLACKWELL, "mxfp8"),
        ("fp8", (10, 3), "mxfp8"),
        ("fp8", DESKTOP, "fp8"),
        ("fp8", (8, 9), "fp8"),
        ("fp8_current", HOPPER, "fp8_current"),
        ("fp8_block", HOPPER, "fp8_block"),
        ("mxfp8", BLACKWELL, "mxfp8"),
        ("nvfp4", BLACKWELL, "nvfp4"),
        ("fp4", BLACKWELL, "nvfp4"),
        ("bf16", (8, 0), "bf16"),
    ],
)
def test_what_is_asked_for_by_device(asked: str, capability: tuple[int, int], served: str) -> None:
    assert te.precision(asked, capability, BF16).name == served


@pytest.mark.parametrize(
    ("asked", "capability", "said"),
    [
        ("mxfp8", HOPPER, "te_weight_dtype mxfp8 needs .* capability 10.0, and this one has 9.0"),
        ("nvfp4", HOPPER, "te_weight_dtype nvfp4 needs .* capability 10.0"),
        ("fp4", HOPPER, "te_weight_dtype fp4 needs .* capability 10.0"),
        ("fp8", (8, 0), "te_weight_dtype fp8 needs .* capability 8.9, and this one has 8.0"),
        ("fp8_block", (8, 9), "te_weight_dtype fp8_block needs .* capability 9.0"),
        ("fp16", HOPPER, "te_weight_dtype is fp16, but the model is in bfloat16"),
        ("int4", BLACKWELL, "te_weight_dtype is int4, which Transformer Engine has not"),
        ("int7", BLACKWELL, "te_weight_dtype is 'int7', none of"),
    ],
)
def test_what_is_refused_says_why(asked: str, capability: tuple[int, int], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        te.precision(asked, capability, BF16)


def test_what_it_says_of_itself() -> None:
    fp8 = te.PRECISIONS["fp8"]
    assert f"{fp8.primary} ({fp8})" == "fp8 primary weights (W8A8, delayed scaling, rows padded to 8)"
    assert f"{te.PRECISIONS['bf16'].primary} ({te.PRECISIONS['bf16']})" == "bf16 weights (not quantised)"
    assert str(te.PRECISIONS["mxfp8"]).endswith("rows padded to 32")
    assert {name for name, one in te.PRECISIONS.items() if one.neighbours} == {"fp8_current", "nvfp4"}


def test_a_whole_package(monkeypatch: pytest.MonkeyPatch) -> None:
    state = fake_te.install(monkeypatch)
    state.unable["is_fp8_block_scaling_available"] = "CUDA is too old"
    engine = te.load()
    assert engine.version == fake_te.VERSION
    assert engine.recipe("DelayedScaling", {"amax_history_len": 1}) == fake_te.Recipe(
        "DelayedScaling", {"amax_history_len": 1}
    )
    assert engine.available("is_fp8_available") == (True, "")
    assert engine.available("is_fp8_block_scaling_available") == (False, "CUDA is too old")


def test_a_broken_package_tells_its_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its torch part, and too old for one of the names."""
    fake_te.install(monkeypatch)
    monkeypatch.setitem(sys.modules, "transformer_engine.pytorch", None)  # as if it could not be imported
    with pytest.raises(ImportError, match=r"transformer_engine\.pytorch"):
        te.load()
    monkeypatch.setitem(
        sys.modules, "transformer_engine.pytorch", types.ModuleType("transformer_engine.pytorch")
    )
    with pytest.raises(ImportError, match=r"AttributeError.*Linear") as raised:
        te.load()
    assert isinstance(raised.value.__cause__, AttributeError)
