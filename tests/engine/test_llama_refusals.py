"""What a Llama-family folder may say and hold, and what is refused, naming it."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.checkpoint import CheckpointError
from engine.llama import Llama
from engine.llama_config import llama_config
from engine.loader import load_model
from tests.engine.checkpoints import write_transformers_tokenizer
from tests.engine.test_llama import SIZES

LLAMA = SIZES | {"model_type": "llama", "tie_word_embeddings": False}
QWEN3 = SIZES | {"model_type": "qwen3", "head_dim": 32, "tie_word_embeddings": True}


def write(folder: Path, config: dict[str, object], **extra: torch.Tensor) -> Path:
    """A folder of seeded random weights, with these tensors beside them or instead."""
    model = Llama(llama_config(config["model_type"], config))  # type: ignore[arg-type]
    model.randomize(0)
    state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    if config.get("tie_word_embeddings"):
        del state["lm_head.weight"]
    folder.mkdir(exist_ok=True)
    save_file(state | extra, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    write_transformers_tokenizer(folder)
    return folder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
        (
            {"quantization_config": {"quant_method": "awq", "bits": 4}},
            r"quantization_config \('awq'\): quantized",
        ),
        ({"num_local_experts": 8}, r"num_local_experts \(8\): a mixture of experts"),
        ({"vision_config": {"depth": 2}}, "vision_config .* a vision model"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "type 'dynamic' are not supported"),
        ({"rope_scaling": {"rope_type": "longrope", "factor": 2.0}}, "type 'longrope' are not supported"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": -2.0}}, "factor = -2.0, not a positive"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 2.0}}, "low_freq_factor = None"),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "full_attention.* not supported"),
        ({"num_attention_heads": 3, "head_dim": None}, "64 is not a multiple of num_attention_heads 3"),
        ({"num_key_value_heads": 3}, "4 is not a multiple of num_key_value_heads 3"),
        ({"head_dim": 15}, "head_dim 15 is odd"),
        ({"vocab_size": None}, "no vocab_size"),
        ({"num_hidden_layers": "3"}, "num_hidden_layers = '3'"),
        ({"attention_bias": "yes"}, "attention_bias = 'yes'"),
        ({"rms_norm_eps": 0}, "rms_norm_eps = 0"),
    ],
)
def test_descriptions_that_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        llama_config("llama", LLAMA | change)


def test_windows() -> None:
    """transformers counts the current key, too."""
    assert llama_config("mistral", LLAMA | {"sliding_window": 8}).windows == (7, 7, 7)
    assert llama_config("mistral", LLAMA).window(0) == 4095
    assert llama_config("mistral", LLAMA | {"sliding_window": None}).window(0) is None
    assert llama_config("llama", LLAMA | {"sliding_window": 8}).window(0) is None
    slides: dict[str, object] = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2}
    assert llama_config("qwen2", LLAMA | slides).windows == (None, None, 7)
    assert llama_config("qwen2", LLAMA | slides | {"use_sliding_window": False}).windows == (None,) * 3
    kinds = {"layer_types": ["sliding_attention", "full_attention", "full_attention"]}
    assert llama_config("qwen3", LLAMA | slides | kinds).windows == (7, None, None)
    with pytest.raises(CheckpointError, match="layer_types"):
        llama_config("qwen3", LLAMA | slides | {"layer_types": ["chunked_attention"] * 3})


def test_positions_that_are_covered() -> None:
    yarn = {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256}}
    assert llama_config("qwen3", LLAMA | yarn).rope_len == 1024
    config = llama_config("llama", LLAMA, {"sequence_len": 100.0, "rope_base": 5.0})
    assert (config.sequence_len, config.rope_len, config.rope_base) == (100, 100, 5.0)
    with pytest.raises(CheckpointError, match="no override softcap for this model"):
        llama_config("llama", LLAMA, {"softcap": 1.0})


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (
            {"model.layers.0.self_attn.q_proj.bias": torch.zeros(64)},
            r"\(llama\) has the unknown model.layers.0.self",
        ),
        ({"model.layers.3.mlp.up_proj.weight": torch.zeros(2, 2)}, "has the unknown model.layers.3.mlp"),
        ({"model.norm.weight": torch.zeros(3)}, r"model.norm.weight has shape \[3\], the model needs \[64\]"),
        ({"model.norm.weight": torch.zeros(64, dtype=torch.int32)}, "nothing says how to scale it"),
    ],
)
def test_tensors_that_are_refused(tmp_path: Path, extra: dict[str, torch.Tensor], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        load_model(write(tmp_path, LLAMA, **extra))


def test_a_missing_tensor(tmp_path: Path) -> None:
    folder = write(tmp_path, LLAMA)
    state = load_file(folder / "model.safetensors")
    del state["lm_head.weight"]
    save_file(state, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"\(llama\) lacks lm_head.weight"):
        load_model(folder)


def test_what_can_be_computed_is_ignored(tmp_path: Path) -> None:
    extra = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(8)}
    model, _, meta = load_model(write(tmp_path, LLAMA, **extra), dtype="bfloat16")
    assert isinstance(model, Llama) and meta.generation == "llama"
    assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.bfloat16}


def test_a_tied_head(tmp_path: Path) -> None:
    model, _, meta = load_model(write(tmp_path / "a", QWEN3))
    assert isinstance(model, Llama) and not meta.notes
    embedding = model.model.embed_tokens.weight
    assert model.lm_head.weight is embedding
    stored = model.parameter_count()
    assert stored == sum(
        tensor.numel() for name, tensor in model.state_dict().items() if name != "lm_head.weight"
    )
    # The same tensor stored twice is as good; another one counts.
    again, _, meta = load_model(write(tmp_path / "b", QWEN3, **{"lm_head.weight": embedding.clone()}))
    assert again.parameter_count() == stored and not meta.notes
    other, _, meta = load_model(write(tmp_path / "c", QWEN3, **{"lm_head.weight": embedding + 1}))
    assert other.parameter_count() == stored + embedding.numel()
    assert torch.equal(other.lm_head.weight, embedding + 1)  # type: ignore[arg-type]
    assert "another head" in meta.notes[0]


def test_recommended_sampling_and_ends(tmp_path: Path) -> None:
    folder = write(tmp_path, QWEN3)
    (folder / "generation_config.json").write_text(
        '{"temperature": 0.6, "top_k": 20, "eos_token_id": [507, 3]}'
    )
    _, tokenizer, meta = load_model(folder)
    assert meta.sampling_defaults == {"temperature": 0.6, "top_k": 20}
    assert meta.terminal_ids == [507, tokenizer.get_bos_token_id()]
