"""What model a checkpoint holds: its generation from the tensors' names and shapes, its sizes from the
description. Also a nanochat model's configuration without any tensors, for models with random weights.

Nothing is believed that the tensors contradict. No torch here: a tensor is a name and a shape.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields

from engine.checkpoint import CheckpointError
from engine.config import GENERATIONS, Generation, GPTConfig
from engine.flags import OVERRIDES, FastPathFlags
from engine.llama_config import LlamaConfig

Shapes = Mapping[str, tuple[int, ...]]

WTE = "transformer.wte.weight"
SIZES = ("sequence_len", "vocab_size", "n_layer", "n_head", "n_embd")
# What a description may say beside the sizes.
CONSTANTS = tuple(name for name in OVERRIDES if name not in ("sequence_len", "window_pattern"))
# Tensors of experiments that lived for hours in January 2026.
_TRANSIENT = ("value_embed_A.", "value_embed_B.", "v0_lambdas", "bigram_")
# Flags that name code, or allow a slow stand-in for it, never come from a downloaded file.
_NEVER_FROM_FILES = ("allow_kernel_stub_fallback",)


@dataclass(slots=True)
class Detected:
    """A model's configuration, the flags that its file hints at, and remarks on what was unusual."""

    config: GPTConfig | LlamaConfig
    hints: dict[str, bool | int | float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def detect_generation(shapes: Shapes) -> Generation:
    """The generation of these tensors, named without `_orig_mod.`. Raises CheckpointError."""
    transient = [name for name in shapes if name.startswith(_TRANSIENT)]
    if transient:
        raise CheckpointError(
            "the checkpoint comes from an experiment of January 2026 that nanochat did not keep: "
            f"it has {', '.join(sorted(transient)[:3])}"
        )
    channels = gate_channels(shapes)
    if "smear_gate.weight" in shapes:
        return "G5"
    if channels == 12:
        return "G4"
    if channels == 32:
        return "G3"
    if channels:
        raise CheckpointError(f"value embedding gates have {channels} channels; known are 12 and 32")
    if "resid_lambdas" in shapes and not any(name.startswith("value_embeds.") for name in shapes):
        return "G2"
    return "G1"


def gate_channels(shapes: Shapes) -> int:
    """Inputs of the value embedding gates; 0 if the model has none. Raises CheckpointError if they differ."""
    gates = [shape for name, shape in shapes.items() if name.endswith(".attn.ve_gate.weight")]
    found = {shape[1] for shape in gates if len(shape) == 2}
    if len(found) > 1:
        raise CheckpointError(f"value embedding gates have different numbers of channels: {sorted(found)}")
    return found.pop() if found else 0


def detect(
    shapes: Shapes, described: Mapping[str, object], overrides: Mapping[str, object] | None = None
) -> Detected:
    """Configuration of the model with these tensors and this `model_config`.

    Keys of `described` that are unknown here are ignored. `overrides` are the fields of GPTConfig that
    `OVERRIDES` lists and win over both. Raises CheckpointError.
    """
    generation = detect_generation(shapes)
    values: dict[str, object] = {name: _size(described, name) for name in SIZES}
    notes: list[str] = []
    rows = _rows(shapes, values["vocab_size"])
    if rows != values["vocab_size"]:
        notes.append(f"vocabulary padded to {rows} rows")
    _check_layers(shapes, values["n_layer"])
    values["padded_vocab_size"] = rows
    values["n_kv_head"] = _kv_heads(shapes, values, described, notes)
    values["value_gate_channels"] = gate_channels(shapes)
    return _configured(generation, values, described, overrides, notes)


def assume(described: Mapping[str, object], overrides: Mapping[str, object] | None = None) -> Detected:
    """Configuration of a model whose tensors are not there, from its `model_config` alone.

    The generation is its key "generation", else G1. Raises CheckpointError.
    """
    generation = described.get("generation", "G1")
    if generation not in GENERATIONS:
        raise CheckpointError(f"there is no generation {generation!r}; there are {', '.join(GENERATIONS)}")
    values: dict[str, object] = {name: _size(described, name) for name in SIZES}
    values["n_kv_head"] = _size(described, "n_kv_head") if "n_kv_head" in described else values["n_head"]
    return _configured(generation, values, described, overrides, [])


def _configured(
    generation: Generation,
    values: dict[str, object],
    described: Mapping[str, object],
    overrides: Mapping[str, object] | None,
    notes: list[str],
) -> Detected:
    """With the description's constants, and the overrides over everything."""
    pattern = described.get("window_pattern")
    values["window_pattern"] = pattern if isinstance(pattern, str) and pattern else "L"
    for name in CONSTANTS:
        if described.get(name) is not None:
            values[name] = described[name]
    hints = _hints(described)
    values |= hints | _overridden(overrides or {})
    try:
        config = GPTConfig.for_generation(generation, **values)
    except (TypeError, ValueError, ArithmeticError) as error:
        raise CheckpointError(f"the model's configuration does not work: {error}") from error
    _check_constants(config)
    return Detected(config, hints, notes)


def _overridden(overrides: Mapping[str, object]) -> dict[str, object]:
    """The overrides, with the whole numbers that the wire between the processes made floats of restored."""
    unknown = sorted(set(overrides) - set(OVERRIDES))
    if unknown:
        raise CheckpointError(f"no override {', '.join(unknown)}; there are {', '.join(OVERRIDES)}")
    values = dict(overrides)
    for name, value in overrides.items():
        if OVERRIDES[name] == "whole" and isinstance(value, float) and value.is_integer():
            values[name] = int(value)
    return values


def _size(described: Mapping[str, object], name: str) -> int:
    value = described.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise CheckpointError(f"the model's description has {name} = {value!r}, not a positive number")
    return value


def _rows(shapes: Shapes, vocab_size: object) -> int:
    shape = shapes.get(WTE)
    if shape is None or len(shape) != 2:
        raise CheckpointError(f"there is no tensor {WTE}: these are not the weights of a nanochat model")
    if not isinstance(vocab_size, int) or shape[0] < vocab_size:
        raise CheckpointError(f"{WTE} has {shape[0]} rows, fewer than the vocabulary's {vocab_size}")
    return shape[0]


def _check_layers(shapes: Shapes, n_layer: object) -> None:
    prefix = "transformer.h."
    found = {name[len(prefix) :].partition(".")[0] for name in shapes if name.startswith(prefix)}
    if not isinstance(n_layer, int) or len(found) != n_layer:
        raise CheckpointError(f"the description says {n_layer} layers, the weights have {len(found)}")


def _kv_heads(
    shapes: Shapes, values: Mapping[str, object], described: Mapping[str, object], notes: list[str]
) -> int:
    """Key-value heads, from the rows of the key projection."""
    width, heads = values["n_embd"], values["n_head"]
    assert isinstance(width, int) and isinstance(heads, int)
    name = "transformer.h.0.attn.c_k.weight"
    shape = shapes.get(name)
    if shape is None:
        raise CheckpointError(f"there is no tensor {name}")
    head_dim = width // heads
    if width % heads or not shape[0] or shape[0] % head_dim:
        raise CheckpointError(
            f"{name} has shape {list(shape)}, which {heads} heads over a width of {width} do not explain"
        )
    kv_heads = shape[0] // head_dim
    if described.get("n_kv_head", kv_heads) != kv_heads:
        said = described["n_kv_head"]
        notes.append(f"the description says {said} key-value heads, the weights have {kv_heads}")
    return kv_heads


def _hints(described: Mapping[str, object]) -> dict[str, bool | int | float]:
    """The seed's flags among the description's keys, where their values are of the flag's kind."""
    hints: dict[str, bool | int | float] = {}
    for flag in fields(FastPathFlags):
        value = described.get(flag.name)
        if flag.name in _NEVER_FROM_FILES or flag.name.endswith("_impl"):
            continue
        if not isinstance(value, bool | int | float):
            continue
        if isinstance(value, bool) == isinstance(flag.default, bool):
            hints[flag.name] = value
    return hints


def _check_constants(config: GPTConfig) -> None:
    """Values from a file or the command line may be of any type."""
    for name in ("rope_base", "softcap", "rms_eps", "qk_scale"):
        value: object = getattr(config, name)
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < float("inf"):
            raise CheckpointError(f"{name} is {value!r}, not a positive number")
    gate: object = config.value_gate_scale
    if not isinstance(gate, int | float) or isinstance(gate, bool):
        raise CheckpointError(f"value_gate_scale is {gate!r}, not a number")
    length: object = config.sequence_len
    if not isinstance(length, int) or length < 1:
        raise CheckpointError(f"sequence_len is {length!r}, not a positive number of tokens")
    window: object = config.short_window
    if not isinstance(window, int) or isinstance(window, bool) or window < 0:
        raise CheckpointError(f"short_window is {window!r}, not a number of tokens")
    if config.rope_dtype not in ("bfloat16", "float32"):
        raise CheckpointError(f"rope_dtype is {config.rope_dtype!r}, neither bfloat16 nor float32")
