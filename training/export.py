"""The shipped folder: int8 weights, one fp32 scale per output row, in safetensors shards, and the tokenizer.

A matrix is stored as int8 under its name and its scales, [rows], under `NAME.scale`: weight = int8 * scale.
What is no matrix, or a very small one, is stored in fp32 as it is: the scalars and gates of the later
generations steer whole layers, and weigh nothing.
"""

import json
import os
import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import BinaryIO

import torch
from safetensors import safe_open
from safetensors.torch import save

from engine.checkpoint import NATIVE_MODEL_TYPE
from engine.config import GPTConfig
from engine.detect import CONSTANTS, SIZES
from training.files import write_text, write_whole
from training.tokenizer import CONFIG_FILE, RANKS_FILE

SHARD_BYTES, TOTAL_BYTES = 15 * 2**20, 40 * 2**20
INDEX_FILE = "model.safetensors.index.json"
SAMPLING = {"temperature": 0.7, "top_k": 40, "repetition_penalty": 1.1, "max_tokens": 300}
_SCALE = ".scale"
_SMALLEST = 32  # rows and columns of a matrix that is worth rounding


class ExportError(Exception):
    """The model is too large to ship, or its weights cannot be rounded."""


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


def stored(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors as they are shipped. Raises ExportError for a weight that is not finite."""
    tensors: dict[str, torch.Tensor] = {}
    for name, weight in sorted(weights.items()):
        if not bool(weight.isfinite().all()):
            raise ExportError(f"{name} holds values that are not finite")
        if weight.dim() == 2 and min(weight.shape) >= _SMALLEST:
            values, scale = quantised(weight.cpu())
            tensors[name], tensors[name + _SCALE] = values.contiguous(), scale.contiguous()
        else:
            tensors[name] = weight.detach().cpu().float().contiguous().clone()
    return tensors


def export(weights: Mapping[str, torch.Tensor], config: GPTConfig, tokenizer: Path, out: Path) -> list[Path]:
    """Write weights, configuration and tokenizer to `out`, replacing older shards; returns the shards.

    Nothing is replaced before the new shards are whole. Raises ExportError for a model that is too large,
    WriteError for a full disk.
    """
    tensors = stored(weights)
    shards = _shards(tensors)
    out.mkdir(parents=True, exist_ok=True)
    names = [f"model-{at:05d}-of-{len(shards):05d}.safetensors" for at in range(1, len(shards) + 1)]
    for name, shard in zip(names, shards, strict=True):
        write_whole(out / f"{name}.new", partial(_write_shard, shard))
    for old in out.glob("model-*.safetensors"):
        old.unlink()
    for name in names:
        os.replace(out / f"{name}.new", out / name)
    where = {name: file for file, shard in zip(names, shards, strict=True) for name in shard}
    total = sum(tensor.nbytes for tensor in tensors.values())
    _write_json(out / INDEX_FILE, {"metadata": {"total_size": total}, "weight_map": where})
    _write_json(out / "config.json", _described(config, sum(weight.numel() for weight in weights.values())))
    for name in (RANKS_FILE, CONFIG_FILE):
        if (tokenizer / name).resolve() != (out / name).resolve():
            shutil.copyfile(tokenizer / name, out / name)
    return [out / name for name in names]


def _write_shard(shard: Mapping[str, torch.Tensor], file: BinaryIO) -> None:
    file.write(save(dict(shard), metadata={"format": "pt"}))


def _shards(tensors: Mapping[str, torch.Tensor]) -> list[dict[str, torch.Tensor]]:
    total = sum(tensor.nbytes for tensor in tensors.values())
    if total > TOTAL_BYTES:
        raise ExportError(
            f"the weights take {total / 2**20:.1f} MiB, more than {TOTAL_BYTES / 2**20:.0f} MiB"
        )
    shards: list[dict[str, torch.Tensor]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        if tensor.nbytes > SHARD_BYTES:
            raise ExportError(f"{name} alone takes {tensor.nbytes / 2**20:.1f} MiB, more than a shard may")
        if size + tensor.nbytes > SHARD_BYTES and shards[-1]:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    return shards


def _described(config: GPTConfig, parameters: int) -> dict[str, object]:
    """What `engine.detect` reads, the generation's constants written out."""
    names = (*SIZES, "n_kv_head", "window_pattern", "generation", *CONSTANTS)
    return {
        "model_type": NATIVE_MODEL_TYPE,
        "name": f"fastpath-{round(parameters / 1e6)}m",
        "parameters": parameters,
        "model_config": {name: getattr(config, name) for name in names},
        "quantization": {
            "format": "int8",
            "scale": f"per output row, float32, under NAME{_SCALE}",
            "kept": f"in float32: what is no matrix of at least {_SMALLEST} x {_SMALLEST}",
        },
        "sampling_defaults": SAMPLING,
    }


def _write_json(path: Path, value: dict[str, object]) -> None:
    write_text(path, json.dumps(value, indent=1) + "\n")


def read_exported(folder: Path) -> dict[str, torch.Tensor]:
    """The weights in `folder` as fp32, dequantised."""
    tensors: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("model-*.safetensors")):
        with safe_open(path, framework="pt") as shard:
            tensors.update({name: shard.get_tensor(name) for name in shard.keys()})  # noqa: SIM118
    return {
        name: tensor.float() * tensors[name + _SCALE].unsqueeze(1)
        if name + _SCALE in tensors
        else tensor.float()
        for name, tensor in tensors.items()
        if not name.endswith(_SCALE)
    }
