"""`python -m app convert MODEL OUT`: a checkpoint in files that cannot run code when they are read.

nanochat keeps its weights in torch files and its tokenizer in a pickle. Out of these (or of a Hugging Face
folder with pytorch_model.bin) come safetensors and text. Nothing is executed while they are read, either
(engine.loader, engine.text.files); afterwards whoever serves OUT opens neither kind of file at all.
"""

import argparse
import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

from engine.checkpoint import NATIVE_MODEL_TYPE, CheckpointError, CheckpointFiles, locate, read_meta
from engine.config import GPTConfig
from engine.detect import CONSTANTS, SIZES
from engine.loader import load_model as load
from engine.loader import open_tensors, read_sampling_defaults
from engine.text import BytePairTokenizer, TokenizerError, load_tokenizer, save_tokenizer

SHARD_BYTES = 4 * 2**30
INDEX = "model.safetensors.index.json"
EXIT_FAULT, EXIT_USAGE, EXIT_MODEL = 1, 2, 3
_DTYPES = {"keep": None, "float32": torch.float32, "bfloat16": torch.bfloat16}
_BESIDE = ("*.json", "*.jinja", "tokenizer*", "merges.txt", "vocab.*")  # what a Hugging Face folder needs
_NOT_BESIDE = ("pytorch_model.bin.index.json",)


@dataclass(frozen=True, slots=True)
class Converted:
    """files: what was written. tensors, parameters: how many."""

    files: list[Path]
    tensors: int
    parameters: int


def convert(
    path: str | Path,
    out: Path,
    *,
    source: str | None = None,
    tag: str | None = None,
    step: int | None = None,
    dtype: str = "keep",
) -> Converted:
    """Writes the checkpoint at `path` (see `engine.checkpoint.locate`) into `out`, a new or empty folder.

    dtype: of matrices, "keep" as they are; vectors keep theirs. The result is loaded and compared with the
    original, bit by bit; it stands in `out` only once that has succeeded. Raises CheckpointError,
    TokenizerError, OSError.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise CheckpointError(f"{out} exists and is not an empty folder")
    files = locate(path, source=source, tag=tag, step=step)
    if files.layout != "nanochat" and all(file.suffix == ".safetensors" for file in files.weights):
        raise CheckpointError(f"{files.folder} holds safetensors and no pickle already: serve it as it is")
    out.parent.mkdir(parents=True, exist_ok=True)
    made = out.with_name(out.name + ".new")
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir()
    try:
        result = _write(files, made, _DTYPES[dtype])
        _compare(files, made, _DTYPES[dtype])
        if out.exists():
            out.rmdir()
        os.replace(made, out)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return Converted([out / file.name for file in result.files], result.tensors, result.parameters)


def _write(files: CheckpointFiles, out: Path, dtype: torch.dtype | None) -> Converted:
    with ExitStack() as stack:
        tensors = {
            name: _in_dtype(lazy.read(), dtype)
            for name, lazy in open_tensors(files, stack, rename=files.layout != "transformers").items()
        }
        names = _write_shards(tensors, out)
        parameters = sum(tensor.numel() for tensor in tensors.values())
    if files.layout == "transformers":
        _copy_beside(files.folder, out)
    else:
        _describe(files, out)
        assert files.tokenizer_folder is not None
        tokenizer = load_tokenizer(files.tokenizer_folder)
        if not isinstance(tokenizer, BytePairTokenizer):
            raise TokenizerError(f"{files.tokenizer_folder} holds no tokenizer of nanochat's kind")
        save_tokenizer(out, tokenizer)
    return Converted([out / name for name in sorted(os.listdir(out))], len(names), parameters)


def _in_dtype(tensor: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
    """safetensors takes contiguous tensors that share no memory."""
    wanted = dtype if dtype is not None and tensor.dim() > 1 and tensor.is_floating_point() else tensor.dtype
    return tensor.detach().to(wanted, copy=True).contiguous()


def _write_shards(tensors: Mapping[str, torch.Tensor], out: Path) -> dict[str, str]:
    """Which file holds each tensor."""
    shards: list[dict[str, torch.Tensor]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        if shards[-1] and size + tensor.nbytes > SHARD_BYTES:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    count = len(shards)
    where: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = "model.safetensors" if count == 1 else f"model-{number:05d}-of-{count:05d}.safetensors"
        save_file(shard, out / file, metadata={"format": "pt"})
        where |= dict.fromkeys(shard, file)
    if count > 1:
        total = sum(tensor.nbytes for tensor in tensors.values())
        _write_json(out / INDEX, {"metadata": {"total_size": total}, "weight_map": where})
    return where


def _describe(files: CheckpointFiles, out: Path) -> None:
    """The description that engine.checkpoint reads: nanochat's own keys, and what the tensors told."""
    raw = read_meta(files.meta)
    described = raw.get("model_config")
    model, _, meta = load(files.folder, step=files.step, dtype="bfloat16")
    config = model.config
    assert isinstance(config, GPTConfig) and isinstance(described, dict)
    names = (*SIZES, "n_kv_head", "window_pattern", "generation", *CONSTANTS)
    told: dict[str, object] = {name: getattr(config, name) for name in names}
    value: dict[str, object] = {
        "model_type": NATIVE_MODEL_TYPE,
        "name": files.name,
        "model_config": described | told,
        "sampling_defaults": meta.sampling_defaults or read_sampling_defaults(files, raw),
    }
    if isinstance(raw.get("step"), int):
        value["step"] = raw["step"]
    _write_json(out / "config.json", value)


def _copy_beside(folder: Path, out: Path) -> None:
    for pattern in _BESIDE:
        for file in sorted(folder.glob(pattern)):
            if file.is_file() and file.name not in _NOT_BESIDE:
                shutil.copyfile(file, out / file.name)


def _compare(files: CheckpointFiles, made: Path, dtype: torch.dtype | None) -> None:
    """The same weights, the same tokens; and what was written loads as a server would load it."""
    load(made, dtype="bfloat16")
    with ExitStack() as stack:
        old, new = open_tensors(files, stack), open_tensors(locate(made), stack)
        for name, tensor in old.items():
            if not torch.equal(_in_dtype(tensor.read(), dtype), new[name].read()):
                raise CheckpointError(f"{name} is not what it was; nothing was written")
    assert files.tokenizer_folder is not None
    first, second = load_tokenizer(files.tokenizer_folder), load_tokenizer(made)
    text = "".join(chr(code) for code in range(1, 0x3000, 7) if not 0xD800 <= code < 0xE000)
    if first.encode(text) != second.encode(text) or first.special_tokens != second.special_tokens:
        raise TokenizerError("the converted tokenizer encodes differently; nothing was written")


def _write_json(path: Path, value: Mapping[str, object]) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    """Exit codes: 0 done, 1 not written, 2 usage, 3 no checkpoint that can be read."""
    parser = argparse.ArgumentParser(
        prog="python -m app convert",
        description="Turns a nanochat checkpoint (torch files, a pickle) into safetensors and JSON.",
        allow_abbrev=False,
    )
    parser.add_argument("model", metavar="MODEL", help="base directory, checkpoint folder or hub id")
    parser.add_argument("out", metavar="OUT", type=Path, help="a new folder")
    parser.add_argument("-i", "--source", help="training stage: base, mid, sft or rl")
    parser.add_argument("-g", "--model-tag", help="which model of a base directory")
    parser.add_argument("-s", "--step", type=int, help="which step of a checkpoint folder [the last one]")
    parser.add_argument("--dtype", choices=sorted(_DTYPES), default="keep", help="of the matrices [keep]")
    options = parser.parse_args(argv)
    try:
        done = convert(
            options.model,
            options.out,
            source=options.source,
            tag=options.model_tag,
            step=options.step,
            dtype=options.dtype,
        )
    except (CheckpointError, TokenizerError) as error:
        print(f"python -m app convert: {error}", file=sys.stderr)
        return EXIT_MODEL
    except OSError as error:
        print(f"python -m app convert: {error.filename or options.out}: {error.strerror}", file=sys.stderr)
        return EXIT_FAULT
    print(f"{done.tensors} tensors, {done.parameters / 1e6:.1f} M parameters, compared bit by bit")
    for file in done.files:
        print(f"  {file}  {file.stat().st_size / 2**20:.1f} MiB")
    print(f"Serve it with: python -m app --model {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
