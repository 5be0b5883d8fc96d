"""What the loader refuses: every fault is named, and nothing in a file is run."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.checkpoint import CheckpointError
from engine.config import Generation
from engine.loader import load_model
from tests.engine.checkpoints import write_checkpoint

State = dict[str, torch.Tensor]


def without(name: str) -> Callable[[State], State]:
    return lambda state: {key: value for key, value in state.items() if key != name}


def plus(name: str, *shape: int) -> Callable[[State], State]:
    return lambda state: state | {name: torch.zeros(shape)}


@pytest.mark.parametrize(
    ("generation", "change", "message"),
    [
        ("G3", plus("value_embed_A.weight", 2, 2), "experiment .* it has value_embed_A"),
        ("G3", plus("v0_lambdas", 4), "experiment .* v0_lambdas"),
        ("G3", plus("bigram_embed.embed.weight", 2, 2), "experiment .* bigram_embed"),
        ("G3", plus("transformer.h.1.attn.ve_gate.weight", 2, 16), "different numbers of channels"),
        ("G1", without("lm_head.weight"), r"\(G1\) lacks lm_head\.weight$"),
        ("G1", plus("transformer.h.0.attn.q_bias", 64), r"unknown transformer\.h\.0\.attn\.q_bias"),
        ("G3", plus("value_embeds.0.weight", 512, 64), r"unknown value_embeds\.0\.weight"),
        ("G5", without("value_embeds.3.weight"), r"lacks value_embeds\.3\.weight"),
        ("G2", without("x0_lambdas"), "lacks x0_lambdas"),
        ("G1", plus("transformer.wte.weight", 500, 64), "has 500 rows, fewer than the vocabulary's 512"),
        ("G1", without("transformer.wte.weight"), "no tensor transformer.wte.weight"),
        ("G1", plus("transformer.h.9.mlp.c_fc.weight", 2, 2), "says 4 layers, the weights have 5"),
        ("G1", plus("transformer.h.0.attn.c_k.weight", 33, 64), r"c_k\.weight has shape \[33, 64\]"),
        (
            "G1",
            plus("transformer.h.2.mlp.c_fc.weight", 128, 64),
            r"h\.2\.mlp\.c_fc\.weight has shape \[128, 64\], the model needs \[256, 64\]",
        ),
        ("G5", plus("smear_lambda", 2), r"smear_lambda has shape \[2\], the model needs \[1\]"),
    ],
)
def test_wrong_tensors(
    tmp_path: Path, generation: Generation, change: Callable[[State], State], message: str
) -> None:
    folder = write_checkpoint(tmp_path, generation, layout="flat")
    state = torch.load(folder / "model_000007.pt")
    torch.save(change(state), folder / "model_000007.pt")
    with pytest.raises(CheckpointError, match=message):
        load_model(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_layer": None}, "n_layer = None"),
        ({"n_layer": 10**9}, "says 1000000000 layers, the weights have 4"),
        ({"n_head": 0}, "n_head = 0"),
        ({"n_head": 3}, "which 3 heads over a width of 64 do not explain"),
        ({"n_embd": "64"}, "n_embd = '64'"),
        ({"sequence_len": True}, "sequence_len = True"),
        ({"vocab_size": 500}, "the tokenizer has 512 tokens, the model's vocabulary only 500"),
        ({"window_pattern": "SXL"}, "window_pattern 'SXL'"),
        ({"softcap": -1}, "softcap is -1"),
    ],
)
def test_wrong_descriptions(tmp_path: Path, change: dict[str, object], message: str) -> None:
    folder = write_checkpoint(tmp_path, "G2", model_config=change)
    with pytest.raises(CheckpointError, match=message):
        load_model(folder)


def test_a_description_without_model_config(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, "G1", layout="flat", meta={"model_config": 5})
    with pytest.raises(CheckpointError, match="has no model_config"):
        load_model(folder)


class _Harmful:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("harm",)


@pytest.mark.parametrize("damage", ["short", "text", "list", "object", "code"])
def test_damaged_torch_files(tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_checkpoint(tmp_path, "G1", layout="flat")
    file = folder / "model_000007.pt"
    if damage == "short":
        file.write_bytes(file.read_bytes()[:5000])
    elif damage == "text":
        file.write_text("version https://git-lfs.github.com/spec/v1\n")
    else:
        content = {"list": [1], "object": {"a": 1}, "code": {"a": _Harmful()}}[damage]
        torch.save(content, file)
    message = {"list": "holds a list", "object": "holds 'a', a int"}.get(damage, "not a readable checkpoint")
    with pytest.raises(CheckpointError, match=message) as caught:
        load_model(folder)
    assert str(file) in str(caught.value) and "\n" not in str(caught.value)
    assert "harm" not in capsys.readouterr().out


def test_damaged_safetensors(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, "G1", layout="safetensors")
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="not a readable safetensors file"):
        load_model(folder)


def test_the_same_tensor_twice(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, "G1", layout="safetensors")
    state = load_file(folder / "model.safetensors")
    save_file({"lm_head.weight": state["lm_head.weight"]}, folder / "model-extra.safetensors")
    with pytest.raises(CheckpointError, match=r"lm_head\.weight a second time"):
        load_model(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"attention_bias": True},
        {"qkv_bias": True},
        {"hidden_act": "silu"},
        {"tie_word_embeddings": True},
        {"intermediate_size": 8192},
        {"head_dim": 16},
        {"sliding_window": 128},
        {"quantization_config": {"bits": 4}},
        {"rope_parameters": {"rope_type": "yarn"}},
        {"final_logit_softcapping": None},
        {"rms_norm_eps": "1e-6"},
        {"hidden_size": -64},
    ],
    ids=lambda change: next(iter(change)),
)
def test_transformers_features_of_other_models(tmp_path: Path, change: dict[str, object]) -> None:
    folder = write_checkpoint(tmp_path, "G1", layout="transformers", meta=change)
    with pytest.raises(CheckpointError):
        load_model(folder)


def test_transformers_tensors_of_other_models(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, "G1", layout="transformers")
    state = load_file(folder / "model.safetensors")
    save_file(state | {"model.norm.weight": torch.ones(64)}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight belongs to no first-generation"):
        load_model(folder)
