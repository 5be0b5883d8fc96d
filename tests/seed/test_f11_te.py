"""Row F11, Transformer Engine: what is refused and what the table says, without a GPU or the package."""

import sys
from importlib.util import find_spec

import pytest
import torch

from app.__main__ import command_line
from app.checks import check
from app.settings.options import UsageError
from benchmarks.flag_modes import MODES
from engine import fastpath
from engine.config import GPTConfig
from engine.flags import Resolved, Setting, resolve
from engine.model import GPT
from kernels import te
from tests.kernels import fake_te
from tests.optional import missing
from tests.seed.test_f_flags import model, run
from tests.seed.test_k_stubs import flagged

__all__ = ["model"]  # a fixture


async def test_f11_c2_without_transformer_engine_nothing_starts(
    model: GPT, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.flags.find_spec", lambda name: None)
    wanted = r"use_te_weight_only needs transformer_engine.*not installed.*pip install.*--weight-dtype fp8"
    with pytest.raises(ImportError, match=wanted):
        await run(model, {"use_te_weight_only": True, "allow_kernel_stub_fallback": True})
    with pytest.raises(ImportError, match=wanted):
        await run(flagged(model, use_te_weight_only=True))
    for wrong in ("int7", "", 8):
        with pytest.raises(ValueError, match="te_weight_dtype"):
            GPTConfig(te_weight_dtype=wrong)  # type: ignore[arg-type]


def test_f11_the_server_says_so_before_it_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    config, _ = command_line().parse(["--use-te-weight-only"], {})
    fake_te.install(monkeypatch)
    check(config)
    monkeypatch.setattr("engine.flags.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"--use-te-weight-only needs transformer_engine.*--weight-dtype"):
        check(config)


def te_flags(**asked: Setting) -> Resolved:
    return resolve(None, "fast", {"use_te_weight_only": True, **asked})


def test_f11_a_broken_package_is_an_error_with_its_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_te.install(monkeypatch)
    fastpath.refuse(te_flags(), "cuda", torch.bfloat16)
    monkeypatch.setitem(sys.modules, "transformer_engine.pytorch", None)
    wanted = r"use_te_weight_only.*cannot be imported: .*transformer_engine\.pytorch.*--weight-dtype fp8"
    with pytest.raises(ImportError, match=wanted):
        fastpath.refuse(te_flags(), "cuda", torch.bfloat16)
    hinted = resolve(GPTConfig(use_te_weight_only=True), "fast", {})
    with pytest.raises(ImportError, match="use_te_weight_only"):
        fastpath.refuse(hinted, "cuda", torch.bfloat16)


@pytest.mark.parametrize(
    ("asked", "device", "dtype", "said"),
    [
        ({}, "cpu", torch.bfloat16, "use_te_weight_only needs a CUDA device, and this is a cpu"),
        ({}, "cuda", torch.float32, "use_te_weight_only needs a model in bfloat16 or float16.*in float32"),
        (
            {"te_weight_dtype": "fp16"},
            "cuda",
            torch.bfloat16,
            "te_weight_dtype is fp16, but the model is in b",
        ),
        ({"te_weight_dtype": "int4"}, "cuda", torch.bfloat16, "te_weight_dtype is int4"),
        (
            {"use_clustered_attention_kernel": True},
            "cuda",
            torch.bfloat16,
            "use_te_weight_only excludes kernels of your own",
        ),
        (
            {"use_persistent_decode_kernel": True},
            "cuda",
            torch.bfloat16,
            "use_te_weight_only excludes kernels of your own",
        ),
        ({"te_include_mlp": True}, "cpu", torch.bfloat16, "use_te_weight_only needs a CUDA device"),
    ],
)
def test_f11_where_it_cannot_serve_nothing_starts(
    asked: dict[str, Setting],
    device: str,
    dtype: torch.dtype,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whoever wants it: the model's own configuration, too."""
    fake_te.install(monkeypatch)
    with pytest.raises(fastpath.FlagUnavailable, match=said):
        fastpath.refuse(te_flags(**asked), device, dtype)
    config = GPTConfig(use_te_weight_only=True, **asked)  # type: ignore[arg-type]
    with pytest.raises(fastpath.FlagUnavailable, match=said):
        fastpath.refuse(resolve(config, "fast", {}), device, dtype)


async def test_f11_the_engine_on_a_cpu_refuses_it(model: GPT, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_te.install(monkeypatch)
    with pytest.raises(fastpath.FlagUnavailable, match="use_te_weight_only"):
        await run(model, {"use_te_weight_only": True})
    with pytest.raises(ValueError, match="te_include_mlp does nothing without use_te_weight_only"):
        await run(model, {"te_include_mlp": True})


def test_f11_what_the_table_says(monkeypatch: pytest.MonkeyPatch) -> None:
    if find_spec("triton") is None:
        missing("needs triton")
    from engine.gpu.te import describe
    from kernels.te_linear import TeMaker

    fake_te.install(monkeypatch)

    def shown(name: str, **asked: Setting) -> tuple[dict[str, str], dict[str, tuple[str, str]]]:
        flags = te_flags(te_weight_dtype=name, **asked)
        precision = te.precision(name, (9, 0), torch.bfloat16)
        rows, known = describe(TeMaker.of(te.load(), precision), flags, "1 GiB")
        table = {what: f"{used} ({why})" for what, _, used, why in rows}
        return table, {
            what: (used, why) for what, _, used, why in fastpath.flag_rows(flags, "cuda", 16, known)
        }

    table, rows = shown("fp8")
    assert table["linear backend"].startswith(
        "TE 2.16.1 fp8 primary weights (W8A8, delayed scaling, rows padded to 8); not weight-only math"
    )
    assert table["weight dtype"] == "fp8 of TE (1 GiB)"
    (feature, sign) = next(mode.expects for mode in MODES if mode.name == "te_fp8")  # type: ignore[misc]
    assert sign in table[feature]
    assert rows["use_te_weight_only"] == ("TE 2.16.1", "q, k, v, output and head projections")
    assert rows["te_weight_dtype"][0] == "fp8" and "set once" in rows["te_weight_dtype"][1]
    assert rows["te_include_mlp"][0] == "off"
    table, rows = shown("fp8_current", te_include_mlp=True)
    assert "depends on the others of its step" in table["linear backend"]
    assert rows["te_include_mlp"][0] == "on" and "MLP" in rows["use_te_weight_only"][1]
    table, _ = shown("bf16")
    assert table["linear backend"].startswith("TE 2.16.1 bf16 weights (not quantised) (")
    assert describe(None, resolve(None, "fast", {}), "") == ([], {})
