"""The shipped folder: every generation comes back as it went, and nothing too large is written."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from engine.config import GENERATIONS, Generation
from engine.loader import load_model
from engine.model import GPT
from tests.training.teaching import VOCABULARY, small_config, small_tokenizer
from training.export import (
    INDEX_FILE,
    SHARD_BYTES,
    TOTAL_BYTES,
    ExportError,
    export,
    quantised,
    read_exported,
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("tokenizer")
    small_tokenizer(folder)
    return folder


def randomised(generation: Generation, seed: int = 1) -> GPT:
    model = GPT(small_config(generation, context=256))
    model.randomize(seed)
    return model.requires_grad_(False).eval()


@pytest.mark.parametrize("generation", GENERATIONS)
def test_every_generation_comes_back(generation: Generation, tokenizer: Path, tmp_path: Path) -> None:
    model = randomised(generation)
    export(model.state_dict(), model.config, tokenizer, tmp_path)
    loaded, _, meta = load_model(tmp_path, device="cpu", dtype="float32")
    assert meta.generation == generation and loaded.config == model.config
    ids = torch.randint(VOCABULARY, (2, 200), generator=torch.Generator().manual_seed(2))
    rounded = GPT(model.config)
    rounded.load_state_dict(read_exported(tmp_path))
    with torch.inference_mode():
        expected, got = model(ids), loaded(ids)
        assert (got - expected).norm() / expected.norm() < 0.04
        assert torch.allclose(rounded(ids), got, atol=1e-4)


@pytest.mark.parametrize("generation", GENERATIONS)
def test_scalars_and_gates_are_kept_to_the_bit(
    generation: Generation, tokenizer: Path, tmp_path: Path
) -> None:
    model = randomised(generation)
    paths = export(model.state_dict(), model.config, tokenizer, tmp_path)
    kept = {name: tensor for path in paths for name, tensor in load_file(path).items()}
    small = {
        name: weight
        for name, weight in model.state_dict().items()
        if weight.dim() < 2 or min(weight.shape) < 32
    }
    assert bool(small) == (generation != "G1")
    for name, weight in small.items():
        assert torch.equal(kept[name], weight) and f"{name}.scale" not in kept
    rounded = {name.removesuffix(".scale") for name in kept if name.endswith(".scale")}
    assert rounded == set(model.state_dict()) - set(small)
    assert all(kept[name].dtype == torch.int8 for name in rounded)


def test_constants_of_the_run_win_over_the_generation(tokenizer: Path, tmp_path: Path) -> None:
    model = randomised("G4")
    model.config.qk_scale, model.config.softcap, model.config.short_window = 1.3, 20.0, 64
    export(model.state_dict(), model.config, tokenizer, tmp_path)
    config = load_model(tmp_path)[0].config
    assert (config.qk_scale, config.softcap, config.short_window) == (1.3, 20.0, 64)  # type: ignore[union-attr]
    described = json.loads((tmp_path / "config.json").read_text())
    assert described["parameters"] == model.parameter_count()


def test_quantised_rows_round_closely() -> None:
    weight = torch.randn(64, 96, generator=torch.Generator().manual_seed(0)) * torch.logspace(
        -4, 2, 64
    ).unsqueeze(1)
    weight[3] = 0.0
    values, scale = quantised(weight)
    assert values.dtype == torch.int8 and scale.shape == (64,)
    error = (values.float() * scale.unsqueeze(1) - weight).norm(dim=1)
    assert (error <= 0.012 * weight.norm(dim=1)).all()


def test_shards_stay_small(tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert SHARD_BYTES < 16 * 2**20 and TOTAL_BYTES == 40 * 2**20
    model = randomised("G3")
    export(model.state_dict(), model.config, tokenizer, tmp_path)
    monkeypatch.setattr("training.export.SHARD_BYTES", 60_000)
    shards = export(model.state_dict(), model.config, tokenizer, tmp_path)
    assert len(shards) > 2 and all(path.stat().st_size < 80_000 for path in shards)
    assert sorted(tmp_path.glob("*.safetensors*")) == sorted([*shards, tmp_path / INDEX_FILE])
    assert set(read_exported(tmp_path)) == set(model.state_dict())


@pytest.mark.parametrize(
    ("limit", "message"),
    [
        ("SHARD_BYTES", "alone takes"),
        ("TOTAL_BYTES", "the weights take"),
        (None, "lm_head.weight .* not finite"),
    ],
)
def test_what_cannot_ship_leaves_the_folder_as_it_was(
    limit: str | None, message: str, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = randomised("G3")
    export(model.state_dict(), model.config, tokenizer, tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    weights = randomised("G3", seed=2).state_dict()
    if limit is None:
        weights["lm_head.weight"][3, 4] = float("nan")
    else:
        monkeypatch.setattr(f"training.export.{limit}", 20_000)
    with pytest.raises(ExportError, match=message):
        export(weights, model.config, tokenizer, tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
