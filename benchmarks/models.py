"""Models that benchmarks run on: seeded random weights, or a checkpoint."""

import json
from pathlib import Path

import torch

from engine.checkpoint import embedded_folder
from engine.config import GPTConfig
from engine.model import GPT

# The size of the embedded model, and that of nanochat's d20 and d32.
SIZES: dict[str, dict[str, int]] = {
    "tiny": {
        "n_layer": 8,
        "n_embd": 512,
        "n_head": 8,
        "n_kv_head": 8,
        "vocab_size": 8192,
        "sequence_len": 1024,
    },
    "d20": {
        "n_layer": 20,
        "n_embd": 1280,
        "n_head": 10,
        "n_kv_head": 10,
        "vocab_size": 65536,
        "sequence_len": 2048,
    },
    "d32": {
        "n_layer": 32,
        "n_embd": 2048,
        "n_head": 16,
        "n_kv_head": 16,
        "vocab_size": 65536,
        "sequence_len": 2048,
    },
}

EMBEDDED = "embedded"

# config.json of models in transformers' format, by name: for folders without weights (--load-format dummy).
CONFIGS: dict[str, dict[str, object]] = {
    "llama-tiny": {
        "model_type": "llama",
        "vocab_size": 8192,
        "hidden_size": 512,
        "intermediate_size": 1408,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
    },
    "llama-d32": {
        "model_type": "llama",
        "vocab_size": 65536,
        "hidden_size": 2048,
        "intermediate_size": 5504,
        "num_hidden_layers": 32,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "head_dim": 128,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": False,
    },
    "qwen3-tiny": {
        "model_type": "qwen3",
        "vocab_size": 8192,
        "hidden_size": 512,
        "intermediate_size": 1536,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 128,
        "max_position_embeddings": 4096,
        "rope_theta": 1000000,
        "tie_word_embeddings": True,
    },
    "qwen3-0.6b": {
        "model_type": "qwen3",
        "vocab_size": 151936,
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 40960,
        "rope_theta": 1000000,
        "tie_word_embeddings": True,
    },
    "llama-3.2-1b": {
        "model_type": "llama",
        "vocab_size": 128256,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-05,
        "rope_theta": 500000.0,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 32.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
        "tie_word_embeddings": True,
    },
}


def dummy_config(name: str) -> dict[str, object]:
    """The config.json of a named model: of `CONFIGS`, or of `SIZES` (nanochat, our own format; "d32-g5" is
    the fifth generation of a d32), or "embedded", the shape of the model that is shipped. Raises KeyError.
    """
    if name in CONFIGS:
        return CONFIGS[name]
    if name == EMBEDDED:
        described: dict[str, object] = json.loads((embedded_folder() / "config.json").read_text())
        return described
    size, _, generation = name.partition("-g")
    if generation not in ("", *"12345"):
        raise KeyError(name)
    described = {**SIZES[size], "generation": f"G{generation or 1}"}
    if generation not in ("", "1"):
        described["window_pattern"] = "SSSL"
    return {"model_type": "fastpath-nanochat", "name": name, "model_config": described}


def write_dummy_folder(name: str, folder: Path) -> None:
    """Writes a config.json and nothing else: load it with load_format="dummy". Raises KeyError."""
    config = dummy_config(name)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")


def random_model(size: str, dtype: torch.dtype, device: str, seed: int = 0) -> GPT:
    """A nanochat model of a named size (see `dummy_config`) with seeded random weights. Raises KeyError."""
    described = dummy_config(size)["model_config"]
    assert isinstance(described, dict)
    values = dict(described)
    model = GPT(GPTConfig.for_generation(values.pop("generation", "G1"), **values))
    model.randomize(seed)
    return model.to(device=device, dtype=dtype).requires_grad_(False).eval()


class ByteTokenizer:
    """nanochat's five methods over bytes, for engines that are fed with ids."""

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size

    def encode_special(self, text: str, /) -> int:
        raise KeyError(text)

    def get_bos_token_id(self) -> int:
        return self._vocab_size - 1

    def encode(self, text: str, /) -> list[int]:
        return list(text.encode())

    def decode(self, ids: list[int], /) -> str:
        return bytes(id for id in ids if id < 256).decode(errors="replace")

    def get_vocab_size(self) -> int:
        return self._vocab_size


def write_transformers_folder(model: GPT, folder: Path) -> None:
    """The same weights in transformers' layout, for peers."""
    from safetensors.torch import save_file

    config = model.config
    names = {"wte": "model.embed_tokens", "lm_head": "lm_head"}
    parts = {"c_q": "q_proj", "c_k": "k_proj", "c_v": "v_proj"}
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in model.state_dict().items():
        pieces = name.split(".")
        if "h" not in pieces:
            new = names[pieces[-2]]
        else:
            layer, kind, leaf = pieces[2], pieces[3], pieces[4]
            if kind == "attn":
                new = f"model.layers.{layer}.self_attn.{parts.get(leaf, 'o_proj')}"
            else:
                new = f"model.layers.{layer}.mlp.{'fc1' if leaf == 'c_fc' else 'fc2'}"
        tensors[f"{new}.weight"] = tensor.contiguous()
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    settings = {
        "architectures": ["NanoChatForCausalLM"],
        "model_type": "nanochat",
        "vocab_size": config.vocab_size,
        "hidden_size": config.n_embd,
        "intermediate_size": 4 * config.n_embd,
        "num_hidden_layers": config.n_layer,
        "num_attention_heads": config.n_head,
        "num_key_value_heads": config.n_kv_head,
        "max_position_embeddings": config.sequence_len,
        "hidden_act": "relu2",
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_theta": config.rope_base, "rope_type": "default"},
        "final_logit_softcapping": config.softcap,
        "attention_bias": False,
        "tie_word_embeddings": False,
        "bos_token_id": config.vocab_size - 1,
        "eos_token_id": config.vocab_size - 1,
        "pad_token_id": config.vocab_size - 1,
        "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
    }
    (folder / "config.json").write_text(json.dumps(settings, indent=1))
