"""The shipped folder: int8 weights, one fp32 scale per output row, in safetensors shards, and the tokenizer.

A matrix is stored as int8 under its name and its scales, [rows], under `NAME.scale`: weight = int8 * scale.
"""

import json
import shutil
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from training.settings import Settings
from training.tokenizer import CONFIG_FILE, RANKS_FILE

SHARD_BYTES = 15 * 2**20
INDEX_FILE = "model.safetensors.index.json"
SAMPLING = {"temperature": 0.7, "top_k": 40, "repetition_penalty": 1.1, "max_tokens": 300}


def quantised(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """int8 values and fp32 scales, [rows], of a matrix; each row has the scale of least rounding error."""
    weight = weight.float()
    top = weight.abs().amax(dim=1).clamp_min(1e-12)
    best = top / 127
    least = torch.full_like(top, torch.inf)
    for shrink in (1.0, 0.97, 0.94, 0.9, 0.86, 0.82):
        scale = top * shrink / 127
        values = (weight / scale.unsqueeze(1)).round().clamp_(-127, 127)
        error = (values * scale.unsqueeze(1) - weight).square().sum(dim=1)
        better = error < least
        best, least = torch.where(better, scale, best), torch.where(better, error, least)
    values = (weight / best.unsqueeze(1)).round().clamp_(-127, 127).to(torch.int8)
    return values, best


def export(weights: dict[str, torch.Tensor], settings: Settings, tokenizer: Path, out: Path) -> list[Path]:
    """Write weights, configuration and tokenizer to `out`, replacing older shards; returns the shards."""
    out.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, torch.Tensor] = {}
    for name, weight in sorted(weights.items()):
        values, scale = quantised(weight.cpu())
        tensors[name], tensors[f"{name}.scale"] = values.contiguous(), scale.contiguous()
    shards: list[dict[str, torch.Tensor]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        if size + tensor.nbytes > SHARD_BYTES and shards[-1]:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    for old in out.glob("model-*.safetensors"):
        old.unlink()
    paths, where = [], {}
    for at, shard in enumerate(shards, 1):
        path = out / f"model-{at:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, path, metadata={"format": "pt"})
        paths.append(path)
        where.update(dict.fromkeys(shard, path.name))
    total = sum(tensor.nbytes for tensor in tensors.values())
    _write_json(out / INDEX_FILE, {"metadata": {"total_size": total}, "weight_map": where})
    _write_json(out / "config.json", _config(settings))
    for name in (RANKS_FILE, CONFIG_FILE):
        if (tokenizer / name).resolve() != (out / name).resolve():
            shutil.copyfile(tokenizer / name, out / name)
    return paths


def _config(settings: Settings) -> dict[str, object]:
    parameters = 2 * settings.vocab_size * settings.n_embd + 12 * settings.n_layer * settings.n_embd**2
    return {
        "model_type": "fastpath-nanochat",
        "name": f"fastpath-{round(parameters / 1e6)}m",
        "model_config": {
            "sequence_len": settings.context,
            "vocab_size": settings.vocab_size,
            "n_layer": settings.n_layer,
            "n_head": settings.n_head,
            "n_kv_head": settings.n_head,
            "n_embd": settings.n_embd,
        },
        "quantization": {"format": "int8", "scale": "per output row, float32, under NAME.scale"},
        "sampling_defaults": SAMPLING,
    }


def _write_json(path: Path, value: dict[str, object]) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n", "utf-8")


def read_exported(folder: Path) -> dict[str, torch.Tensor]:
    """The weights in `folder` as fp32, dequantised."""
    tensors: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("model-*.safetensors")):
        with safe_open(path, framework="pt") as shard:
            tensors.update({name: shard.get_tensor(name) for name in shard.keys()})  # noqa: SIM118
    return {
        name: tensor.float() * tensors[f"{name}.scale"].unsqueeze(1)
        for name, tensor in tensors.items()
        if not name.endswith(".scale")
    }
