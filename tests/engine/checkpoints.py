"""Writes tiny random checkpoints of every generation in every layout, for tests of whatever needs a model on
disk.

They use the vocabulary of the golden checkpoints: 503 ordinary tokens and nanochat's nine special ones.
"""

import json
import shutil
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import save_file

from engine.config import Generation, GPTConfig
from engine.model import GPT
from engine.text import BytePairTokenizer, load_tokenizer, save_tokenizer
from tests.engine.golden import G1

Layout = Literal["base", "flat", "safetensors", "transformers"]
GENERATIONS: tuple[Generation, ...] = ("G1", "G2", "G3", "G4", "G5")

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}"
    "<|assistant_start|>{{ message['content'] }}<|assistant_end|>"
    "{% else %}<|user_start|>{{ message['content'] }}<|user_end|>{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant_start|>{% endif %}"
)


def write_checkpoint(
    folder: Path,
    generation: Generation,
    *,
    layout: Layout = "base",
    seed: int = 0,
    source: str = "sft",
    tag: str = "d4",
    step: int = 7,
    prefix: str = "",
    shards: int = 1,
    index: bool = True,
    int8: bool = False,
    meta: Mapping[str, object] | None = None,
    model_config: Mapping[str, object] | None = None,
    **dims: object,
) -> Path:
    """Writes one checkpoint of seeded random weights into `folder`, which is returned.

    dims: fields of GPTConfig. prefix: put before every tensor name ("_orig_mod."). shards, index: of
    safetensors.
    int8: block matrices as int8 with row scales ("safetensors" only). meta, model_config: more keys of the
    description. The layout "transformers" takes the generation G1 only.
    """
    model = make_model(generation, seed, **dims)
    state = {prefix + name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    described = description(model.config) | dict(model_config or {})
    if layout in ("base", "flat"):
        where = folder
        if layout == "base":
            names = {"sft": "chatsft", "rl": "chatrl", "mid": "mid", "base": "base"}
            where = folder / f"{names[source]}_checkpoints" / tag
        where.mkdir(parents=True, exist_ok=True)
        torch.save(state, where / f"model_{step:06d}.pt")
        described_step = {"step": step, "model_config": described} | dict(meta or {})
        _write_json(where / f"meta_{step:06d}.json", described_step)
        _copy_pickle(folder / "tokenizer" if layout == "base" else folder)
    elif layout == "safetensors":
        _write_safetensors(folder, quantise(state) if int8 else state, shards, index)
        config = {"model_type": "fastpath-nanochat", "model_config": described} | dict(meta or {})
        _write_json(folder / "config.json", config)
        tokenizer = golden_tokenizer()
        save_tokenizer(folder, tokenizer)
    else:
        assert generation == "G1", "transformers knows the first generation only"
        _write_safetensors(folder, {_transformers_name(name): t for name, t in state.items()}, shards, index)
        _write_json(folder / "config.json", transformers_config(model.config) | dict(meta or {}))
        write_transformers_tokenizer(folder)
    return folder


def make_model(generation: Generation, seed: int = 0, **dims: object) -> GPT:
    """A tiny model with random weights; its float32 parameters are what `write_checkpoint` stores."""
    sizes: dict[str, object] = {
        "sequence_len": 256,
        "vocab_size": 512,
        "n_layer": 4,
        "n_head": 2,
        "n_kv_head": 2,
        "n_embd": 64,
        "window_pattern": "L" if generation == "G1" else "SSSL",
    }
    model = GPT(GPTConfig.for_generation(generation, **(sizes | dims)))
    model.randomize(seed)
    return model.requires_grad_(False).eval()


def description(config: GPTConfig) -> dict[str, object]:
    """nanochat's `model_config`."""
    names = ["sequence_len", "vocab_size", "n_layer", "n_head", "n_kv_head", "n_embd"]
    if config.generation != "G1":
        names.append("window_pattern")
    return {name: getattr(config, name) for name in names}


def transformers_config(config: GPTConfig) -> dict[str, object]:
    return {
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
        "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
        "final_logit_softcapping": 15.0,
        "attention_bias": False,
        "tie_word_embeddings": False,
        "bos_token_id": 0,
        "eos_token_id": 1,
    }


def quantise(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Block matrices as int8 with one float32 scale per row, the rest in bfloat16."""
    stored: dict[str, torch.Tensor] = {}
    for name, tensor in state.items():
        if ".h." in name and tensor.dim() == 2:
            scale = tensor.abs().amax(dim=1).clamp(min=1e-12) / 127
            stored[name] = (tensor / scale.unsqueeze(1)).round().to(torch.int8)
            stored[name + ".scale"] = scale
        else:
            stored[name] = tensor.bfloat16()
    return stored


def golden_tokenizer() -> BytePairTokenizer:
    tokenizer = load_tokenizer(G1)
    assert isinstance(tokenizer, BytePairTokenizer)
    return tokenizer


def write_transformers_tokenizer(folder: Path) -> None:
    """The golden tokenizer as tokenizer.json, with the files that transformers keeps beside it."""
    tokenizer = golden_tokenizer()
    folder.mkdir(parents=True, exist_ok=True)
    written = {token: _printable(token) for token in tokenizer.ranks}
    added = [
        {"id": id, "content": token, "special": True, "single_word": False, "lstrip": False, "rstrip": False}
        | {"normalized": False}
        for token, id in tokenizer.special_tokens.items()
    ]
    pattern = {"Regex": tokenizer.pattern}
    split = {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}
    levels = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    model = {
        "type": "BPE",
        "vocab": {written[token]: rank for token, rank in tokenizer.ranks.items()} | tokenizer.special_tokens,
        "merges": [[_printable(a), _printable(b)] for a, b in _merges(tokenizer.ranks)],
    }
    data = {
        "version": "1.0",
        "added_tokens": added,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, levels]},
        "decoder": levels,
        "model": model,
    }
    _write_json(folder / "tokenizer.json", data)
    config = {"bos_token": "<|bos|>", "eos_token": {"content": "<|assistant_end|>"}}
    _write_json(folder / "tokenizer_config.json", config)
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")


def _merges(ranks: Mapping[bytes, int]) -> list[tuple[bytes, bytes]]:
    """The pair that each token was merged from: what lower ranks make of its bytes.

    Tokens that no merge reaches (the golden vocabulary is filled up with some) have none.
    """
    merges = []
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        parts = [bytes([byte]) for byte in token]
        while len(parts) > 2:
            pairs = [ranks.get(a + b, rank) for a, b in pairwise(parts)]
            if min(pairs) == rank:
                break
            best = pairs.index(min(pairs))
            parts[best : best + 2] = [parts[best] + parts[best + 1]]
        if len(parts) == 2:
            merges.append((parts[0], parts[1]))
    return merges


def _printable(token: bytes) -> str:
    """GPT-2's spelling of raw bytes."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return "".join(chr(byte) if byte in plain else chr(256 + others.index(byte)) for byte in token)


def _transformers_name(name: str) -> str:
    for ours, theirs in (
        ("transformer.wte", "model.embed_tokens"),
        ("transformer.h.", "model.layers."),
        ("attn.c_proj", "self_attn.o_proj"),
        ("attn.c_", "self_attn."),
        ("self_attn.q.", "self_attn.q_proj."),
        ("self_attn.k.", "self_attn.k_proj."),
        ("self_attn.v.", "self_attn.v_proj."),
        ("mlp.c_fc", "mlp.fc1"),
        ("mlp.c_proj", "mlp.fc2"),
    ):
        name = name.replace(ours, theirs)
    return name


def _write_safetensors(folder: Path, state: Mapping[str, torch.Tensor], shards: int, index: bool) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if shards == 1:
        save_file(dict(state), folder / "model.safetensors")
        return
    places: dict[str, str] = {}
    for i in range(shards):
        file = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        part = dict(list(state.items())[i::shards])
        save_file(part, folder / file)
        places |= dict.fromkeys(part, file)
    if index:
        _write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": places})


def _copy_pickle(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(G1 / "tokenizer" / "tokenizer.pkl", folder / "tokenizer.pkl")


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2), encoding="utf-8")
