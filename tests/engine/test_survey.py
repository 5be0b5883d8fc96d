"""What is told of a model without loading it is what loading makes of it."""

import shutil
from pathlib import Path

import pytest

from engine.checkpoint import embedded_folder
from engine.loader import load_model, outline_model
from engine.messages import EngineConfig
from engine.messages.finding import Finding
from engine.survey import survey
from tests.app.server_process import GOLDEN
from tests.engine.checkpoints import GENERATIONS, write_checkpoint


def found(model: Path | str, **settings: object) -> dict[str, Finding]:
    return {row.what: row for row in survey(EngineConfig(model=str(model), **settings))}  # type: ignore[arg-type]


@pytest.mark.parametrize("generation", GENERATIONS)
def test_an_outline_is_the_model_without_its_weights(generation: str, tmp_path: Path) -> None:
    base = write_checkpoint(tmp_path, generation)
    model, tokenizer, meta = load_model(base)
    outline, same, told = outline_model(base)
    assert told == meta
    assert same.get_vocab_size() == tokenizer.get_vocab_size()
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert {name: tuple(tensor.shape) for name, tensor in outline.state_dict().items()} == shapes
    assert all(tensor.is_meta for tensor in outline.parameters())


def test_weights_are_not_read_but_their_files_are_opened(tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "model", "G5", layout="safetensors")
    weights = next(model.glob("*.safetensors"))
    data = bytearray(weights.read_bytes())
    header = int.from_bytes(data[:8], "little")
    data[8 + header :] = b"\xff" * (len(data) - 8 - header)  # none of them is a number: nobody looks
    weights.write_bytes(data)
    rows = found(model)
    assert {"device", "model", "tokenizer", "chat template", "context", "KV pool", "memory"} == rows.keys()
    assert not any(row.code for row in rows.values())
    weights.write_bytes(data[: len(data) // 2])
    rows = found(model)
    assert (rows["model"].code, rows["model"].flag) == (3, "--model") and weights.name in rows["model"].says


@pytest.mark.parametrize("damage", ["tokenizer.tiktoken", "tokenizer_config.json"])
def test_a_damaged_tokenizer_is_the_tokenizers_fault(damage: str, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(embedded_folder(), model)
    (model / damage).write_bytes(b"\xff not this")
    rows = found(model)
    assert (rows["tokenizer"].code, rows["tokenizer"].flag) == (3, "--model")


@pytest.mark.parametrize(
    ("settings", "what", "flag", "code"),
    [
        ({"device": "cuda:7"}, "device", "--device", 2),
        ({"max_model_len": 100_000}, "context", "--max-model-len", 3),
        ({"max_model_len": 100, "num_blocks": 1, "device": "cpu"}, "KV pool", "", 0),
        ({"flags": {"use_te_weight_only": True}}, "fast paths", "--use-te-weight-only", 2),
        ({"decode_path": "chained", "device": "cpu"}, "fast paths", "--decode-path", 2),
        ({"kv_dtype": "fp8", "device": "cpu"}, "fast paths", "--kv-dtype", 2),
        ({"tag": "d99"}, "model", "--model-tag", 3),
        ({"step": 99}, "model", "--step", 3),
    ],
)
def test_a_fault_has_the_servers_exit_code_and_its_flag(
    settings: dict[str, object], what: str, flag: str, code: int
) -> None:
    row = found(GOLDEN, **settings)[what]
    assert (row.flag, row.code, row.state) == (flag, code, "wrong" if code else "ok"), row


def test_memory_that_is_not_there_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.survey.free_memory", lambda: 1 << 20)
    rows = found(GOLDEN)
    assert (rows["memory"].state, rows["memory"].code) == ("note", 0)


def test_random_weights_need_no_tokenizer(tmp_path: Path) -> None:
    shutil.copy(embedded_folder() / "config.json", tmp_path)
    rows = found(tmp_path, load_format="dummy")
    assert (rows["tokenizer"].state, rows["model"].code) == ("note", 0)
    assert "random weights" in rows["model"].says
