"""Transformers' folders of nanochat models: their names for tensors and settings. No torch here.

That port covers the first generation only, and its converter silently drops what it does not know, so
anything that a first-generation model cannot have is refused.
"""

import re
from collections.abc import Mapping

from engine.checkpoint import CheckpointError

_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)")
_IN_LAYER = {
    "self_attn.q_proj.weight": "attn.c_q.weight",
    "self_attn.k_proj.weight": "attn.c_k.weight",
    "self_attn.v_proj.weight": "attn.c_v.weight",
    "self_attn.o_proj.weight": "attn.c_proj.weight",
    "mlp.fc1.weight": "mlp.c_fc.weight",
    "mlp.fc2.weight": "mlp.c_proj.weight",
}
_OUTSIDE = {"model.embed_tokens.weight": "transformer.wte.weight", "lm_head.weight": "lm_head.weight"}


def native_name(name: str) -> str:
    """nanochat's name of a tensor. Raises CheckpointError for one that the first generation does not have."""
    layer = _LAYER.fullmatch(name)
    inner = _IN_LAYER.get(layer[2]) if layer is not None else None
    if layer is not None and inner is not None:
        return f"transformer.h.{layer[1]}.{inner}"
    if name in _OUTSIDE:
        return _OUTSIDE[name]
    raise CheckpointError(f"the tensor {name} belongs to no first-generation nanochat model")


def native_config(config: Mapping[str, object]) -> dict[str, object]:
    """The `model_config` that a transformers config.json describes. Raises CheckpointError."""
    width = _number(config, "hidden_size", 768)
    heads = _number(config, "num_attention_heads", 6)
    _refuse_other_features(config, width, heads)
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(rope, dict) or rope.get("rope_type", rope.get("type", "default")) != "default":
        raise CheckpointError(f"rotary embeddings with {rope!r} are not supported")
    softcap = 15.0
    for name in ("final_logit_softcapping", "logits_soft_cap", "logits_softcap"):
        if name in config:
            softcap = _number(config, name, 15.0)
            break
    return {
        "sequence_len": config.get("max_position_embeddings", 2048),
        "vocab_size": config.get("vocab_size", 50304),
        "n_layer": config.get("num_hidden_layers", 12),
        "n_head": heads,
        "n_kv_head": config.get("num_key_value_heads") or heads,
        "n_embd": width,
        "rope_base": rope.get("rope_theta", config.get("rope_theta", 10000.0)),
        "softcap": softcap,
        "rms_eps": _number(config, "rms_norm_eps", 1e-6),
        "rope_dtype": "float32",
    }


def _refuse_other_features(config: Mapping[str, object], width: float, heads: float) -> None:
    required = {
        "hidden_act": ("relu2", "relu2"),
        "attention_bias": (False, False),
        "qkv_bias": (False, False),
        "tie_word_embeddings": (False, False),
        "intermediate_size": (8192, 4 * width),
        "head_dim": (None, width / heads),
        "sliding_window": (None, None),
        "layer_types": (None, None),
        "quantization_config": (None, None),
    }
    for name, (default, expected) in required.items():
        value = config.get(name, default)
        if value != expected and not (value is None and name == "head_dim"):
            raise CheckpointError(
                f"config.json has {name} = {value!r}; a first-generation model has {expected!r}"
            )


def _number(config: Mapping[str, object], name: str, default: float) -> float:
    value = config.get(name, default)
    if not isinstance(value, int | float) or isinstance(value, bool) or value <= 0:
        raise CheckpointError(f"config.json has {name} = {value!r}, not a positive number")
    return value
