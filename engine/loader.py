"""Loading a checkpoint: weights into a `GPT` or `Llama`, with its tokenizer and what is known about it.

Weights are read through a memory map and converted one tensor at a time. Nothing in a file is executed: torch
files are read with weights_only, and every tensor's name and shape is checked against the model before any is
copied.
"""

import re
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
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
from engine.config import GPTConfig
from engine.detect import Detected, assume, detect
from engine.dummy import dummy_state
from engine.llama import Llama
from engine.llama_config import LlamaConfig, llama_config
from engine.messages.config import LoadFormat
from engine.model import GPT
from engine.skeleton import skeleton
from engine.text import StandInTokenizer, Tokenizer, TokenizerError, load_chat_template, load_tokenizer
from engine.transformers_format import native_config, native_name

SCALE_SUFFIX = ".scale"
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
_PREFIX = "_orig_mod."
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# Old files hold what can be computed, too.
_COMPUTED = re.compile(r".*\.rotary_emb\.inv_freq")
_COPIES = 8  # tensors on their way to a GPU at once: each waits for pages of its file


def load_model(
    path: str | Path | None,
    *,
    device: str | torch.device = "cpu",
    dtype: str = "auto",
    source: str | None = None,
    tag: str | None = None,
    step: int | None = None,
    overrides: Mapping[str, object] | None = None,
    load_format: LoadFormat = "auto",
    seed: int = 0,
) -> tuple[GPT | Llama, Tokenizer, CheckpointMeta]:
    """The model at `path` (see `engine.checkpoint.locate`), ready for inference, its tokenizer and its meta.

    dtype: "float32", "bfloat16", or "auto": float32 on a CPU, else bfloat16. nanochat's per-layer scalars
    stay float32. overrides: fields of GPTConfig (of LlamaConfig, those it has) that win over the file, such
    as {"softcap": 20.0}. load_format: "dummy" reads the description alone and fills the model with random
    weights of this seed; where there is no tokenizer, a stand-in serves. Raises CheckpointError, or
    TokenizerError for the tokenizer's files.
    """
    device = torch.device(device)
    chosen = _dtype(dtype, device)
    dummy = load_format == "dummy"
    files = locate(path, source=source, tag=tag, step=step, weights=not dummy)
    with ExitStack() as stack:
        model, tokenizer, meta, tensors = _outline(files, stack, overrides, dummy)
        state = (
            dummy_state(model, device, chosen, seed)
            if tensors is None
            else _read(model, tensors, device, chosen)
        )
    _assign(model, state)
    return model.requires_grad_(False).eval(), tokenizer, meta


def outline_model(
    path: str | Path | None,
    *,
    source: str | None = None,
    tag: str | None = None,
    step: int | None = None,
    overrides: Mapping[str, object] | None = None,
    load_format: LoadFormat = "auto",
) -> tuple[GPT | Llama, Tokenizer, CheckpointMeta]:
    """As `load_model`, but no weight is read: the files are opened, every name and shape is compared, and the
    model's parameters stay without storage (on torch's meta device). Raises as `load_model` does.
    """
    dummy = load_format == "dummy"
    files = locate(path, source=source, tag=tag, step=step, weights=not dummy)
    with ExitStack() as stack:
        model, tokenizer, meta, _ = _outline(files, stack, overrides, dummy)
    return model, tokenizer, meta


def _outline(
    files: CheckpointFiles, stack: ExitStack, overrides: Mapping[str, object] | None, dummy: bool
) -> "tuple[GPT | Llama, Tokenizer, CheckpointMeta, dict[str, _Lazy] | None]":
    """The model without storage, what belongs to it, and its tensors, which are still in their files."""
    raw = read_meta(files.meta)
    tokenizer = load_tokenizer(files.tokenizer_folder) if files.tokenizer_folder is not None else None
    tensors = None if dummy else open_tensors(files, stack)
    detected = _detect(files, raw, tensors, overrides)
    config = detected.config
    tokenizer = tokenizer or StandInTokenizer(config.vocab_size)
    _check_tokenizer(tokenizer, detected)
    stored = "int8" if tensors is not None and HEAD + SCALE_SUFFIX in tensors else ""
    with skeleton():
        model = GPT(config) if isinstance(config, GPTConfig) else Llama(config)
    if tensors is not None:
        _check_tensors(model, tensors)
    meta = CheckpointMeta(
        name=_name(files, raw),
        path=files.tokenizer_folder,
        files=files,
        generation=config.generation,
        terminal_ids=_terminal_ids(files, tokenizer),
        sampling_defaults=read_sampling_defaults(files, raw),
        hints=detected.hints,
        notes=[*detected.notes, *(["random weights"] if dummy else [])],
        raw=raw,
        stored=stored,
    )
    return model, tokenizer, meta, tensors


def _dtype(dtype: str, device: torch.device) -> torch.dtype:
    if dtype == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    if dtype not in _DTYPES:
        # In float16 the squared ReLU of these models overflows.
        raise CheckpointError(f"dtype {dtype!r} is not one of auto, float32, bfloat16")
    return _DTYPES[dtype]


def _detect(
    files: CheckpointFiles,
    raw: Mapping[str, object],
    tensors: "dict[str, _Lazy] | None",
    overrides: Mapping[str, object] | None,
) -> Detected:
    """The configuration; `tensors` loses what a tied model stores twice. None: there are no tensors."""
    if files.family != "nanochat":
        detected = Detected(llama_config(files.family, raw, overrides))
        if tensors is not None:
            _untie(detected, tensors)
        return detected
    described = _described(files, raw)
    if tensors is None:
        return assume(described, overrides)
    shapes = {name: tensor.shape for name, tensor in tensors.items() if not _is_scale(name, tensors)}
    return detect(shapes, described, overrides)


def _described(files: CheckpointFiles, raw: Mapping[str, object]) -> Mapping[str, object]:
    if files.layout == "transformers":
        return native_config(raw)
    described = raw.get("model_config")
    if not isinstance(described, dict):
        raise CheckpointError(f"{files.meta} has no model_config")
    return described


def _untie(detected: Detected, tensors: "dict[str, _Lazy]") -> None:
    """As transformers does: a head that differs from the embedding counts, whatever the description says."""
    config = detected.config
    assert isinstance(config, LlamaConfig)
    if not config.tied or HEAD not in tensors or EMBEDDING not in tensors:
        return
    if torch.equal(tensors[HEAD].read(), tensors[EMBEDDING].read()):
        del tensors[HEAD]
    else:
        config.tied = False
        detected.notes.append(
            "the description ties the head to the embedding, but the weights have another head"
        )


def _terminal_ids(files: CheckpointFiles, tokenizer: Tokenizer) -> list[int]:
    """As the chat template has them; a folder without one (a base model) leaves it to the tokenizer."""
    if files.tokenizer_folder is None:
        return [tokenizer.get_bos_token_id()]
    try:
        return list(load_chat_template(files.tokenizer_folder, tokenizer).terminal_ids)
    except TokenizerError:
        return []


def _name(files: CheckpointFiles, raw: Mapping[str, object]) -> str:
    """Our own format may name its model; any other is known by its folder or hub id."""
    name = raw.get("name") if files.layout == "fastpath" else None
    return name if isinstance(name, str) and name else files.name


def read_sampling_defaults(files: CheckpointFiles, raw: Mapping[str, object]) -> dict[str, float]:
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


def _check_tensors(model: GPT | Llama, tensors: "Mapping[str, _Lazy]") -> None:
    """Compares every name and shape with the model's."""
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if isinstance(model, Llama) and model.config.tied:
        del expected[HEAD]
    shapes = {name: tensor.shape for name, tensor in tensors.items() if not _is_scale(name, tensors)}
    for what, names in (
        ("lacks", expected.keys() - shapes.keys()),
        ("has the unknown", shapes.keys() - expected.keys()),
    ):
        if names:
            listed = sorted(names)
            more = f" and {len(listed) - 3} more" if len(listed) > 3 else ""
            generation = model.config.generation
            raise CheckpointError(f"the checkpoint ({generation}) {what} {', '.join(listed[:3])}{more}")
    for name, shape in expected.items():
        if shapes[name] != shape:
            raise CheckpointError(f"{name} has shape {list(shapes[name])}, the model needs {list(shape)}")


def _read(
    model: GPT | Llama, tensors: "Mapping[str, _Lazy]", device: torch.device, dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    """Every tensor in the model's dtype and place."""
    # nanochat's scalars steer the residual stream; they are few and multiply in float32 in the original, too.
    vectors = torch.float32 if isinstance(model, GPT) else dtype
    names = [name for name in tensors if not _is_scale(name, tensors)]

    def convert(name: str) -> torch.Tensor:
        return _convert(name, tensors, device, dtype, vectors)

    if device.type == "cpu":
        return {name: convert(name) for name in names}
    with ThreadPoolExecutor(_COPIES) as pool:
        return dict(zip(names, pool.map(convert, names), strict=True))


def _assign(model: GPT | Llama, state: dict[str, torch.Tensor]) -> None:
    if isinstance(model, Llama) and model.config.tied:
        state = state | {HEAD: state[EMBEDDING]}
    model.load_state_dict(state, strict=True, assign=True)
    if isinstance(model, Llama):
        model.tie()


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


def open_tensors(files: CheckpointFiles, stack: ExitStack, *, rename: bool = True) -> dict[str, _Lazy]:
    """Every tensor of every file under the model's name for it, or the file's own."""
    tensors: dict[str, _Lazy] = {}
    for file in files.weights:
        reader = _safetensors(file, stack) if file.suffix == ".safetensors" else _torch_file(file)
        for name, tensor in reader:
            if not rename:
                pass
            elif files.layout != "transformers":
                name = name.removeprefix(_PREFIX)
            elif files.family == "nanochat":
                name = native_name(name)
            elif _COMPUTED.fullmatch(name):
                continue
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
    name: str,
    tensors: Mapping[str, _Lazy],
    device: torch.device,
    dtype: torch.dtype,
    vectors: torch.dtype,
) -> torch.Tensor:
    """A private copy in place, matrices in `dtype`, vectors in `vectors`; int8 rows are multiplied by their
    scales.
    """
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
    wanted = vectors if tensor.dim() == 1 else dtype
    if device.type != "cpu":
        return tensor.to(device).to(wanted).contiguous()  # converted there, which is faster than here
    return tensor.to(device=device, dtype=wanted, copy=True).contiguous()
