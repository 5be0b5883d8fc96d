"""Checkpoints in files that cannot run code: the same model, and nothing to unpickle."""

import json
import pickletools
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from app.__main__ import main
from engine import load_model
from engine.checkpoint import CheckpointError
from engine.convert import EXIT_FAULT, EXIT_MODEL, convert
from engine.convert import main as program
from tests.engine.checkpoints import GENERATIONS, write_checkpoint


@pytest.mark.parametrize("generation", GENERATIONS)
def test_the_same_model_without_a_pickle(generation: str, tmp_path: Path) -> None:
    base = write_checkpoint(tmp_path / "base", generation, prefix="_orig_mod.", layout="base")
    out = tmp_path / "out"
    done = convert(base, out)
    assert {file.name for file in done.files} == {
        "config.json",
        "model.safetensors",
        "tokenizer.tiktoken",
        "tokenizer_config.json",
    }
    before, first, old = load_model(base)
    after, second, new = load_model(out)
    assert old.generation == new.generation and old.name == new.name
    assert old.terminal_ids == new.terminal_ids
    assert before.config == after.config
    theirs = after.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in before.state_dict().items())
    ids = torch.arange(24).reshape(1, 24)
    assert torch.equal(before(ids), after(ids))
    assert first.encode("one 12 été") == second.encode("one 12 été")
    assert first.special_tokens == second.special_tokens
    with pytest.raises(CheckpointError, match="no pickle already"):
        convert(out, tmp_path / "again")


def test_what_is_written_holds_no_pickle(tmp_path: Path) -> None:
    base = write_checkpoint(tmp_path / "base", "G1", layout="flat")
    done = convert(base, tmp_path / "out")
    for file in done.files:
        data = file.read_bytes()
        assert not data.startswith((b"PK", b"\x80"))  # a torch archive, a pickle
        with pytest.raises(ValueError):
            list(pickletools.genops(data))


def test_another_precision(tmp_path: Path) -> None:
    base = write_checkpoint(tmp_path / "base", "G4", layout="base")
    convert(base, tmp_path / "out", dtype="bfloat16")
    with safe_open(tmp_path / "out" / "model.safetensors", framework="pt") as file:
        kinds = {(len(file.get_slice(n).get_shape()), file.get_tensor(n).dtype) for n in file.keys()}  # noqa: SIM118
    assert {dtype for size, dtype in kinds if size > 1} == {torch.bfloat16}
    assert {dtype for size, dtype in kinds if size == 1} == {torch.float32}


def test_nothing_is_overwritten_or_left_behind(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    base = write_checkpoint(tmp_path / "base", "G1", layout="base")
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine").write_text("x")
    assert main(["convert", str(base), str(out)]) == EXIT_MODEL
    assert "not an empty folder" in capfd.readouterr().err
    assert (out / "mine").read_text() == "x"
    assert program([str(tmp_path / "none"), str(tmp_path / "new")]) == EXIT_MODEL
    assert program([str(base), "/proc/nowhere/out"]) == EXIT_FAULT
    weights = next((base / "chatsft_checkpoints").rglob("model_*.pt"))
    weights.write_bytes(weights.read_bytes()[:-200])
    assert program([str(base), str(tmp_path / "new")]) == EXIT_MODEL
    assert "not a readable checkpoint" in capfd.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "out"]


def test_a_served_base_directory_keeps_its_description(tmp_path: Path) -> None:
    base = write_checkpoint(tmp_path / "base", "G1", tag="d4", step=7)
    write_checkpoint(tmp_path / "base", "G1", tag="d4", step=9, seed=1)
    convert(base, tmp_path / "out", source="sft", tag="d4", step=7)
    described = json.loads((tmp_path / "out" / "config.json").read_text())
    assert described["step"] == 7 and described["name"] == "nanochat-d4"
    wanted, _, _ = load_model(base, step=7)
    model, _, _ = load_model(tmp_path / "out")
    assert torch.equal(wanted.lm_head.weight, model.lm_head.weight)
