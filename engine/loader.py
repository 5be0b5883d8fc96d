"""Loading a checkpoint: weights into a `GPT`, with its tokenizer and what is known about it.

Weights are read through a memory map and converted one tensor at a time. Nothing in a file is executed: torch
files are read with weights_only, and every tensor's name and shape is checked against the model before any is
copied.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import safetensors
import torch

from engine.checkpoint import (
    CheckpointError,
    CheckpointFiles,
    CheckpointMeta,
    locate,
    read_meta,
)
from engine.detect import Detected, detect
from engine.model import GPT
from engine.text import Tokenizer, TokenizerError, load_chat_template, load_tokenizer
from engine.transformers_format import native_config, native_name

SCALE_SUFFIX = ".scale"
_PREFIX = "_orig_mod."
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def load_model(
    path: str | Path | None,
    *,
    device: str | torch.device = "cpu",
    dtype: str = "auto",
    source: str | None = None,
    tag: str | None = None,
    step: int | None = None,
    overrides: Mapping[str, object] | None = None,
) -> tuple[GPT, Tokenizer, CheckpointMeta]:
    """The model at `path` (see `engine.checkpoint.locate`), ready for inference, its tokenizer and its meta.

    dtype: "float32", "bfloat16", or "auto": float32 on a CPU, else bfloat16. Per-layer scalars stay float32.
    overrides: fields of GPTConfig that win over the file, such as {"softcap": 20.0}.
    Raises CheckpointError, or TokenizerError for the tokenizer's files.
    """
    device = torch.device(device)
    chosen = _dtype(dtype, device)
    files = locate(path, source=source, tag=tag, step=step)
    raw = read_meta(files.meta)
    tokenizer = load_tokenizer(files.tokenizer_folder)
    with ExitStack() as stack:
        tensors = _open(files, stack)
        shapes = {name: tensor.shape for name, tensor in tensors.items() if not _is_scale(name, tensors)}
        detected = detect(shapes, _described(files, raw), overrides)
        _check_tokenizer(tokenizer, detected)
        model = _build(detected, shapes)
        state = {name: _convert(name, tensors, device, chosen) for name in shapes}
    model.load_state_dict(state, strict=True, assign=True)
    meta = CheckpointMeta(
        name=_name(files, raw),
        path=files.tokenizer_folder,
        files=files,
        generation=detected.config.generation,
        terminal_ids=_terminal_ids(files, tokenizer),
        sampling_defaults=_sampling_defaults(files, raw),
        hints=detected.hints,
        notes=detected.notes,
        raw=raw,
    )
    return model.requires_grad_(False).eval(), tokenizer, meta


def _dtype(dtype: str, device: torch.device) -> torch.dtype:
    if dtype == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    if dtype not in _DTYPES:
        # In float16 the squared ReLU of these models overflows.
        raise CheckpointError(f"dtype {dtype!r} is not one of auto, float32, bfloat16")
    return _DTYPES[dtype]


def _described(files: CheckpointFiles, raw: Mapping[str, object]) -> Mapping[str, object]:
    if files.layout == "transformers":
        return native_config(raw)
    described = raw.get("model_config")
    if not isinstance(described, dict):
        raise CheckpointError(f"{files.meta} has no model_config")
    return described


def _terminal_ids(files: CheckpointFiles, tokenizer: Tokenizer) -> list[int]:
    """As the chat template has them; a folder without one (a base model) leaves it to the tokenizer."""
    try:
        return list(load_chat_template(files.tokenizer_folder, tokenizer).terminal_ids)
    except TokenizerError:
        return []


def _name(files: CheckpointFiles, raw: Mapping[str, object]) -> str:
    """Our own format may name its model; any other is known by its folder or hub id."""
    name = raw.get("name") if files.layout == "fastpath" else None
    return name if isinstance(name, str) and name else files.name


def _sampling_defaults(files: CheckpointFiles, raw: Mapping[str, object]) -> dict[str, float]:
    """Recommended sampling: our own format's table, or transformers' generation_config.json."""
    table: object = raw.get("sampling_defaults") if files.layout == "fastpath" else None
    generation = files.folder / "generation_config.json"
    if files.layout == "transformers" and generation.is_file():
        known = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
        table = {name: value for name, value in read_meta(generation).items() if name in known}
    if not isinstance(table, dict):
        return {}
    return {
        name: value
        for name, value in table.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def _check_tokenizer(tokenizer: Tokenizer, detected: Detected) -> None:
    have, room = tokenizer.get_vocab_size(), detected.config.vocab_size
    if have > room:
        raise CheckpointError(f"the tokenizer has {have} tokens, the model's vocabulary only {room}")


def _build(detected: Detected, shapes: Mapping[str, tuple[int, ...]]) -> GPT:
    """The model without storage, after comparing every name and shape with the file's."""
    with torch.device("meta"):
        model = GPT(detected.config)
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    for what, names in (
        ("lacks", expected.keys() - shapes.keys()),
        ("has the unknown", shapes.keys() - expected.keys()),
    ):
        if names:
            listed = sorted(names)
            more = f" and {len(listed) - 3} more" if len(listed) > 3 else ""
            generation = detected.config.generation
            raise CheckpointError(f"the checkpoint ({generation}) {what} {', '.join(listed[:3])}{more}")
    for name, shape in expected.items():
        if shapes[name] != shape:
            raise CheckpointError(f"{name} has shape {list(shapes[name])}, the model needs {list(shape)}")
    return model


# ---- reading


class _Lazy(Protocol):
    """A tensor that is still in its file."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def read(self) -> torch.Tensor: ...


@dataclass(frozen=True, slots=True)
class _Mapped:
    """From a torch file, whose tensors are memory-mapped views."""

    tensor: torch.Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensor.shape)

    def read(self) -> torch.Tensor:
        return self.tensor


@dataclass(frozen=True, slots=True)
class _Sliced:
    """From an open safetensors file."""

    file: safetensors.safe_open
    name: str

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.file.get_slice(self.name).get_shape())  # type: ignore[no-untyped-call]

    def read(self) -> torch.Tensor:
        tensor: torch.Tensor = self.file.get_tensor(self.name)  # type: ignore[no-untyped-call]
        return tensor


def _open(files: CheckpointFiles, stack: ExitStack) -> dict[str, _Lazy]:
    """Every tensor of every file under nanochat's name for it."""
    tensors: dict[str, _Lazy] = {}
    for file in files.weights:
        reader = _safetensors(file, stack) if file.suffix == ".safetensors" else _torch_file(file)
        for name, tensor in reader:
            name = native_name(name) if files.layout == "transformers" else name.removeprefix(_PREFIX)
            if name in tensors:
                raise CheckpointError(f"{file} holds the tensor {name} a second time")
            tensors[name] = tensor
    return tensors


def _safetensors(file: Path, stack: ExitStack) -> Iterator[tuple[str, _Lazy]]:
    try:
        opened = stack.enter_context(safetensors.safe_open(file, framework="pt"))
    except (OSError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{file} is not a readable safetensors file: {error}") from error
    for name in opened.keys():  # noqa: SIM118 (the file object is no mapping)
        yield name, _Sliced(opened, name)


def _torch_file(file: Path) -> Iterator[tuple[str, _Lazy]]:
    try:
        state: object = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
    except Exception as error:  # a damaged file can raise nearly anything
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise CheckpointError(f"{file} is not a readable checkpoint: {reason}") from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{file} holds a {type(state).__name__}, not a table of tensors")
    for name, tensor in state.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise CheckpointError(f"{file} holds {name!r}, a {type(tensor).__name__}, among its tensors")
        yield name, _Mapped(tensor)


def _is_scale(name: str, tensors: Mapping[str, _Lazy]) -> bool:
    return name.endswith(SCALE_SUFFIX) and name.removesuffix(SCALE_SUFFIX) in tensors


def _convert(
    name: str, tensors: Mapping[str, _Lazy], device: torch.device, dtype: torch.dtype
) -> torch.Tensor:
    """A private copy in the model's dtype and place; int8 rows are multiplied by their scales."""
    tensor = tensors[name].read()
    scale = tensors.get(name + SCALE_SUFFIX)
    if tensor.dtype == torch.int8 and scale is not None:
        rows = scale.read()
        if tuple(rows.shape) != (tensor.size(0),) or not rows.is_floating_point():
            raise CheckpointError(
                f"{name}{SCALE_SUFFIX} has shape {list(rows.shape)}, {name} needs [{tensor.size(0)}]"
            )
        tensor = tensor.to(device).float() * rows.to(device).float().unsqueeze(1)
    elif not tensor.is_floating_point():
        raise CheckpointError(f"{name} is of type {tensor.dtype}, and nothing says how to scale it")
    # Scalars steer the residual stream; they are few and multiply in float32 in the original, too.
    wanted = torch.float32 if tensor.dim() == 1 else dtype
    return tensor.to(device=device, dtype=wanted, copy=True).contiguous()
