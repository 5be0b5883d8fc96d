"""What a user gets wrong ends in one line that names the option, not in a traceback."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from benchmarks import accuracy, decode, flag_modes, flags, offline, serve
from benchmarks.flag_modes import Mode
from benchmarks.options import FALLBACK

Program = Callable[[list[str]], object]
SMALL = {"n_layer": 1, "n_embd": 64, "n_head": 2, "n_kv_head": 2, "vocab_size": 512, "sequence_len": 128}
TINY = ["--model-size", "tiny", "--device", "cpu"]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(offline.models.SIZES, "tiny", SMALL)


def refused(program: Program, argv: Sequence[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The last line of what the program says about `argv`."""
    with pytest.raises(SystemExit) as ended:
        program(list(argv))
    assert ended.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("program", "argv", "named"),
    [
        (accuracy.main, ["--model-size", "nope"], "--model-size"),
        (accuracy.main, ["--model", "/nope", "--device", "cpu"], "--model /nope"),
        (accuracy.main, ["--streams", "a"], "--streams"),
        (accuracy.main, ["--streams", "8,0"], "--streams"),
        (accuracy.main, ["--text", "/nope.txt"], "--text"),
        (accuracy.main, ["--length", "99999", *TINY], "--length 99999"),
        (accuracy.main, ["--rows", "99999", *TINY], "--rows 99999"),
        (accuracy.main, ["--streams", "1", "--new", "99999", *TINY], "--new 99999"),
        (accuracy.main, ["--systems", "full,int3"], "--systems"),
        (accuracy.main, ["--rows", "0"], "--rows"),
        (flags.main, ["--model-size", "nope"], "--model-size"),
        (flags.main, ["--model-size", "d32-g9"], "--model-size"),
        (flags.main, ["--model", "/nope", "--device", "cpu"], "--model /nope"),
        (flags.main, ["--prompt-len", "99999", *TINY], "--prompt-len 99999"),
        (flags.main, ["--device", "tpu"], "--device"),
        (flags.main, ["--device", "meta"], "--device"),
        (flags.main, ["--batch-size", "0"], "--batch-size"),
        (flags.main, ["--modes", "fastest"], "--modes"),
        (flags.main, ["--dtype", "int3"], "--dtype"),
        (decode.main, ["--workload", "one", "--engine", "use_magic=1"], "--engine use_magic=1"),
        (decode.main, ["--workload", "one", "--engine", "kv_block_size=-1"], "--engine: kv_block_size"),
        (decode.main, ["--workload", "one", "--engine", "weight_dtype=int3"], "--engine weight_dtype=int3"),
        (decode.main, ["--workload", "one", "--engine", "use_cuda_graphs"], "--engine use_cuda_graphs"),
        (decode.main, ["--workload", "one", "--model-size", "nope"], "--model-size"),
        (decode.main, ["--streams", "1,b"], "--streams"),
        (serve.main, ["--compare", "single,dynamic"], "--compare"),
        (serve.main, ["--model-size", "nope"], "--model-size"),
    ],
)
def test_an_error_names_its_option(
    program: Program, argv: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert named in refused(program, argv, capsys)


@pytest.mark.parametrize("program", [accuracy.main, flags.main, decode.main, serve.main])
def test_a_device_must_be_here(
    program: Program, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert "--device: cuda" in refused(program, ["--device", "cuda"], capsys)


def test_a_text_must_be_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "text.txt"
    text.write_bytes(b"\xff\xfe")
    assert "--text" in refused(accuracy.main, ["--text", str(text)], capsys)
    text.write_bytes(b"")
    assert "text of 0 tokens" in refused(accuracy.main, ["--text", str(text), *TINY], capsys)


def test_what_is_known_is_accepted() -> None:
    """Also sizes of other families and generations, and no streams at all."""
    for name in ("qwen3-0.6b", "d32-g5", "tiny"):
        assert flags.arguments(["--model-size", name, "--device", "cpu"]).size == name
    assert accuracy.arguments(["--streams", ""]).streams == []
    assert accuracy.arguments(["--streams", "1,8"]).streams == [1, 8]
    assert decode.arguments(["--device", "cpu"]).streams == [1, 8], "what modes measures on a CPU"
    assert decode.arguments(["--workload", "one", "--profile", "8,64"]).profile == [8, 64]


def test_k3_no_row_rests_on_the_stub_fallback(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ["--engine", "use_clustered_attention_kernel=true", "--engine", f"{FALLBACK}=true"]
    assert FALLBACK in refused(decode.main, ["--workload", "one", *asked], capsys)
    assert FALLBACK in refused(decode.main, ["--workload", "modes", *asked], capsys)
    setting = {"use_clustered_attention_kernel": True, FALLBACK: True}
    monkeypatch.setattr(flags, "MODES", (Mode("stub", flag_modes.OFF | setting),))
    assert FALLBACK in refused(flags.main, [*TINY, "--prompt-len", "8", "--decode-len", "2"], capsys)
    monkeypatch.setitem(accuracy.SYSTEMS, "stub", {"flags": setting})
    assert FALLBACK in refused(accuracy.main, [*TINY, "--systems", "stub"], capsys)
    assert "--server-args" in refused(serve.main, ["--server-args", "--allow-kernel-stub-fallback"], capsys)


def test_k3_the_fallback_may_be_denied() -> None:
    config = offline.engine_config(decode.arguments(["--workload", "one", "--engine", f"{FALLBACK}=false"]))
    assert config.flags == {FALLBACK: False}
