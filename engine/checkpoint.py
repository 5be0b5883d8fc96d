"""Finding a checkpoint's files. No torch here.

A checkpoint is one of: a nanochat base directory (`chatsft_checkpoints/d20/model_000650.pt` and so on, one
`tokenizer` folder for all), any folder below it, one flat folder with nanochat's files, a folder in our own
format (config.json with model_type "fastpath-nanochat", safetensors), a transformers folder (of a model_type
in `FAMILIES`), or the name of one of these on the Hugging Face hub. Anything else is refused with what was
seen.
"""

import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from engine.text import has_tokenizer

NATIVE_MODEL_TYPE = "fastpath-nanochat"

# What transformers calls the models that can be served. SmolLM and SmolLM2 are "llama".
Family = Literal["nanochat", "llama", "mistral", "qwen2", "qwen3", "smollm3"]
FAMILIES: tuple[Family, ...] = get_args(Family)

Layout = Literal["nanochat", "fastpath", "transformers"]
Source = Literal["base", "mid", "sft", "rl"]

SOURCES: dict[str, str] = {
    "sft": "chatsft_checkpoints",
    "rl": "chatrl_checkpoints",
    "mid": "mid_checkpoints",
    "base": "base_checkpoints",
}

_MODEL_FILE = re.compile(r"model_(\d+)\.pt")
_TAG = re.compile(r"d(\d+)")
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*(@[\w./-]+)?", re.ASCII)
_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.(?:safetensors|bin)")
# What a hub repository may hold that is of use here; optimizer states and other runtimes' copies are left
# out.
_HUB_DESCRIPTIONS = ["*.json", "*.jinja", "tokenizer*"]
_HUB_FILES = [*_HUB_DESCRIPTIONS, "model*.safetensors", "model_*.pt", "pytorch_model*.bin"]


class CheckpointError(ValueError):
    """There is no checkpoint there, or not one that can be loaded; the message says what was seen."""


@dataclass(frozen=True, slots=True)
class CheckpointFiles:
    """Where a checkpoint's parts are.

    meta: the JSON file that describes the model. weights: one file, or the shards in order; none where they
    were not asked for. tokenizer_folder: None where there is none, and weights were not asked for. step, tag
    and source are None where the layout has none.
    """

    layout: Layout
    name: str
    folder: Path
    weights: tuple[Path, ...]
    meta: Path
    tokenizer_folder: Path | None
    source: str | None = None
    tag: str | None = None
    step: int | None = None
    family: Family = "nanochat"


@dataclass(frozen=True, slots=True)
class CheckpointMeta:
    """What is known about a loaded checkpoint beyond its weights.

    path: folder of the tokenizer and the chat template; None: there is none (engine.text.StandInTokenizer).
    generation: "G1" to "G5", or the family's name. terminal_ids: what ends a turn. hints: the seed's
    flags that the file sets, as defaults. notes: what was unusual. raw: the describing JSON, unknown keys
    included. stored: "int8" where projections are kept in eight bits in the file, else "".
    """

    name: str
    path: Path | None
    files: CheckpointFiles
    generation: str
    terminal_ids: list[int] = field(default_factory=list)
    sampling_defaults: dict[str, float] = field(default_factory=dict)
    hints: dict[str, bool | int | float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    raw: dict[str, object] = field(default_factory=dict)
    stored: str = ""


def locate(
    path: str | Path | None,
    *,
    source: str | None = None,
    tag: str | None = None,
    step: int | None = None,
    weights: bool = True,
) -> CheckpointFiles:
    """The files of the checkpoint at `path`: a folder, or a hub id such as "owner/name" or
    "owner/name@revision".

    Without a path: nanochat's base directory (NANOCHAT_BASE_DIR, else ~/.cache/nanochat) if it holds
    checkpoints, else the model that ships with this package. `source` ("sft", "rl", "mid", "base": the first
    that exists), `tag` (largest d<depth>, else the newest folder) and `step` (highest) choose within a base
    directory. Without `weights` a folder with nothing but a config.json will do. Raises CheckpointError.
    """
    if source is not None and source not in SOURCES:
        raise CheckpointError(f"there is no checkpoint source {source!r}; there are {', '.join(SOURCES)}")
    try:
        return _locate(path, source, tag, step, weights)
    except OSError as error:
        raise CheckpointError(f"cannot read {error.filename}: {error.strerror}") from error


def _locate(
    path: str | Path | None, source: str | None, tag: str | None, step: int | None, weights: bool
) -> CheckpointFiles:
    if path is None:
        base = _default_base()
        if base is not None:
            return _in_base(base, source, tag, step)
        if source or tag or step is not None:
            raise CheckpointError("source, tag or step given, but there are no nanochat checkpoints here")
        return _embedded()
    folder = Path(path).expanduser()
    if folder.is_dir():
        return _in_folder(folder, source, tag, step, weights)
    if folder.exists():
        raise CheckpointError(f"{folder} is a file; a checkpoint is given by its folder")
    if not isinstance(path, Path) and _HUB_ID.fullmatch(path):
        return _in_folder(_download(path, weights), source, tag, step, weights, path)
    raise CheckpointError(f"{folder} does not exist")


def embedded_folder() -> Path:
    """The package's `models` folder; it is installed beside this package."""
    return Path(__file__).resolve().parent.parent / "models"


def read_meta(path: Path) -> dict[str, object]:
    """A describing JSON file. Raises CheckpointError."""
    try:
        value: object = json.loads(path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} is not a JSON object")
    return value


# ---- the places to look


def _default_base() -> Path | None:
    base = Path(os.environ.get("NANOCHAT_BASE_DIR") or "~/.cache/nanochat").expanduser()
    return base if _sources_in(base) else None


def _embedded() -> CheckpointFiles:
    models = embedded_folder()
    for config in sorted([*models.glob("config.json"), *models.glob("*/config.json")]):
        if read_meta(config).get("model_type") == NATIVE_MODEL_TYPE:
            return _in_folder(config.parent, None, None, None, True)
    raise CheckpointError(f"no model was given, and none ships in {models}")


def _in_folder(
    folder: Path,
    source: str | None,
    tag: str | None,
    step: int | None,
    weights: bool,
    hub_id: str | None = None,
) -> CheckpointFiles:
    """`folder` as whatever kind of checkpoint it is."""
    name = hub_id.partition("@")[0] if hub_id else folder.resolve().name
    model_type = None
    if (folder / "config.json").is_file():
        model_type = read_meta(folder / "config.json").get("model_type")
        if model_type == NATIVE_MODEL_TYPE:
            return _described_by_config(folder, name, "fastpath", "nanochat", weights)
        if model_type in FAMILIES:
            return _described_by_config(folder, name, "transformers", model_type, weights)
    if _steps_in(folder):
        return _in_tag(folder, name, None, step)
    if _sources_in(folder):
        return _in_base(folder, source, tag, step)
    by_folder = {directory: name for name, directory in SOURCES.items()}
    if folder.resolve().name in by_folder and _tags_in(folder):
        return _in_source(folder, by_folder[folder.resolve().name], tag, step)
    if model_type is not None:
        raise CheckpointError(
            f"{folder} holds a model of type {model_type!r}; there are {', '.join(FAMILIES)}"
        )
    seen = sorted(entry.name + ("/" if entry.is_dir() else "") for entry in folder.iterdir())
    listing = ", ".join(seen[:8]) + (" ..." if len(seen) > 8 else "") if seen else "nothing"
    raise CheckpointError(
        f"{folder} is no checkpoint: there is neither a model_*.pt, nor one of nanochat's checkpoint "
        f"folders, nor a config.json of a nanochat model. It holds {listing}"
    )


# ---- nanochat's own files


def _sources_in(base: Path) -> list[str]:
    return [source for source, directory in SOURCES.items() if _tags_in(base / directory)]


def _tags_in(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return [entry for entry in sorted(folder.iterdir()) if entry.is_dir() and _steps_in(entry)]


def _steps_in(folder: Path) -> dict[int, Path]:
    matches = [(_MODEL_FILE.fullmatch(entry.name), entry) for entry in folder.iterdir()]
    return {int(match[1]): entry for match, entry in matches if match is not None}


def _in_base(base: Path, source: str | None, tag: str | None, step: int | None) -> CheckpointFiles:
    present = _sources_in(base)
    if source is not None and source not in present:
        raise CheckpointError(
            f"{base} has no checkpoints of source {source!r}; it has {', '.join(present) or 'none'}"
        )
    chosen = source or present[0]
    return _in_source(base / SOURCES[chosen], chosen, tag, step)


def _in_source(folder: Path, source: str, tag: str | None, step: int | None) -> CheckpointFiles:
    tags = {entry.name: entry for entry in _tags_in(folder)}
    if tag is not None and tag not in tags:
        raise CheckpointError(f"{folder} has no checkpoint {tag!r}; it has {', '.join(tags)}")
    if tag is None:
        depths = {name: int(match[1]) for name in tags if (match := _TAG.match(name))}
        if depths:
            tag = max(depths, key=lambda name: depths[name])
        else:
            tag = max(tags, key=lambda name: tags[name].stat().st_mtime_ns)
    return _in_tag(tags[tag], f"nanochat-{tag}", source, step)


def _in_tag(folder: Path, name: str, source: str | None, step: int | None) -> CheckpointFiles:
    steps = _steps_in(folder)
    if step is None:
        step = max(steps)
    if step not in steps:
        raise CheckpointError(f"{folder} has no step {step}; it has {', '.join(map(str, sorted(steps)))}")
    weights = steps[step]
    meta = weights.with_name(weights.name.replace("model_", "meta_").replace(".pt", ".json"))
    if not meta.is_file():
        raise CheckpointError(f"{weights} lacks its description {meta.name}")
    parent = folder.resolve().parent
    if source is None:
        source = next((key for key, directory in SOURCES.items() if directory == parent.name), None)
        name = f"nanochat-{folder.resolve().name}" if source is not None else name
    for tokenizer in (folder, folder / "tokenizer", parent.parent / "tokenizer"):
        if has_tokenizer(tokenizer):
            break
    else:
        shared = parent.parent / "tokenizer"
        raise CheckpointError(f"no tokenizer for {folder}: neither in it nor in {shared}")
    tag = folder.resolve().name if source is not None else None
    return CheckpointFiles("nanochat", name, folder, (weights,), meta, tokenizer, source, tag, step)


# ---- folders with a config.json


def _described_by_config(
    folder: Path, name: str, layout: Layout, family: Family, weights: bool
) -> CheckpointFiles:
    files = (_indexed(folder) or _unindexed(folder)) if weights else ()
    if weights and not files:
        raise CheckpointError(f"{folder} has a config.json but no weights (model*.safetensors)")
    tokenizer = folder if has_tokenizer(folder) else None
    if weights and tokenizer is None:
        raise CheckpointError(f"{folder} has no tokenizer")
    return CheckpointFiles(layout, name, folder, files, folder / "config.json", tokenizer, family=family)


def _indexed(folder: Path) -> tuple[Path, ...]:
    """The shards that an index file lists."""
    for index in ("model.safetensors.index.json", "pytorch_model.bin.index.json"):
        if not (folder / index).is_file():
            continue
        shards = read_meta(folder / index).get("weight_map")
        if not isinstance(shards, dict) or not shards:
            raise CheckpointError(f"{folder / index} has no weight_map")
        names = sorted({str(name) for name in shards.values()})
        for name in names:
            if Path(name).name != name:
                raise CheckpointError(f"{folder / index} points outside its folder, at {name!r}")
            if not (folder / name).is_file():
                raise CheckpointError(f"{folder} lacks {name}, which its index lists")
        return tuple(folder / name for name in names)
    return ()


def _unindexed(folder: Path) -> tuple[Path, ...]:
    """All model*.safetensors, else all pytorch_model*.bin; a series of shards must be whole."""
    for pattern in ("model*.safetensors", "pytorch_model*.bin"):
        files = sorted(folder.glob(pattern))
        for file in files:
            shard = _SHARD.fullmatch(file.name)
            if shard is None:
                continue
            expected = {f"{shard[1]}-{i:05d}-of-{shard[3]}{file.suffix}" for i in range(1, int(shard[3]) + 1)}
            missing = sorted(expected - {other.name for other in files})
            if missing:
                raise CheckpointError(f"{folder} lacks {missing[0]}")
        if files:
            return tuple(files)
    return ()


def _download(hub_id: str, weights: bool) -> Path:
    import huggingface_hub
    from huggingface_hub.errors import HFValidationError

    name, _, revision = hub_id.partition("@")
    # The library lets its HTTP client's errors through, which have no class in common with its own.
    failures: tuple[type[Exception], ...] = (OSError, HFValidationError, *_http_errors())
    wanted = _HUB_FILES if weights else _HUB_DESCRIPTIONS
    try:
        return Path(huggingface_hub.snapshot_download(name, revision=revision or None, allow_patterns=wanted))
    except failures as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise CheckpointError(
            f"{hub_id!r} is no folder here, and fetching it from the Hugging Face hub failed: {reason}"
        ) from error


def _http_errors() -> tuple[type[Exception], ...]:
    try:
        import httpx
    except ImportError:  # older versions of the library use requests, whose errors are OSErrors
        return ()
    return (httpx.HTTPError,)
