"""The architecture of a Llama-family model: Llama, Mistral, SmolLM, Qwen2, Qwen3. No torch here.

One configuration describes them all; `llama_config` reads it from the config.json of a transformers folder,
in the spelling of transformers 4 (rope_theta, rope_scaling) and 5 (rope_parameters). What a family means by a
missing key is transformers' default. Whatever this engine does not compute is refused, naming the key.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from engine.checkpoint import CheckpointError, Family
from engine.flags import FastPathFlags
from engine.llama_fields import flag, optional_count, positive, whole

RopeType = Literal["default", "linear", "llama3", "yarn"]

DEFAULT_THETA = {"smollm3": 2e6}
OVERRIDABLE = ("rope_base", "rms_eps", "sequence_len")


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """How the rotary frequencies are stretched (engine/llama_rope.py has the formulas).

    factor: by how much the context grew. original_len: positions before that. low_freq_factor and
    high_freq_factor: "llama3" only. beta_fast, beta_slow, truncate, attention_factor: "yarn" only; the last
    multiplies the whole table.
    """

    kind: RopeType = "default"
    factor: float = 1.0
    original_len: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float = 1.0


@dataclass(slots=True, kw_only=True)
class LlamaConfig(FastPathFlags):
    """Shape and constants of a model.

    generation: its family. qkv_bias, output_bias, mlp_bias: which projections have a bias. qk_norm: queries
    and keys are normed per head, with weights, before they are rotated. tied: the head is the embedding.
    windows: per layer, the keys visible to the left of the current one (None: all). rotated: per layer,
    whether queries and keys are rotated at all.
    """

    generation: Family
    vocab_size: int
    width: int
    inner_width: int
    n_layer: int
    n_head: int
    n_kv_head: int
    head_dim: int
    sequence_len: int
    rms_eps: float = 1e-6
    rope_base: float = 1e4
    rope_scaling: RopeScaling = field(default_factory=RopeScaling)
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    tied: bool = False
    windows: tuple[int | None, ...] = ()
    rotated: tuple[bool, ...] = ()

    def __post_init__(self) -> None:
        self.windows = self.windows or (None,) * self.n_layer
        self.rotated = self.rotated or (True,) * self.n_layer
        if self.n_head % self.n_kv_head:
            raise ValueError(
                f"num_attention_heads {self.n_head} is not a multiple of num_key_value_heads {self.n_kv_head}"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim {self.head_dim} is odd, and rotary embeddings pair channels")

    @property
    def rope_len(self) -> int:
        """Positions that the rotary table covers: those of training, or what scaling makes of them."""
        scaling = self.rope_scaling
        if scaling.kind == "yarn":
            return max(self.sequence_len, int(scaling.original_len * scaling.factor))
        return self.sequence_len

    def window(self, layer: int) -> int | None:
        """Keys visible to the left of the current one in this layer; None for all."""
        return self.windows[layer]


def llama_config(
    family: Family, raw: Mapping[str, object], overrides: Mapping[str, object] | None = None
) -> LlamaConfig:
    """The configuration that a config.json describes. overrides: `rope_base`, `rms_eps`, `sequence_len`.

    Raises CheckpointError.
    """
    _refuse_other_features(family, raw)
    heads = whole(raw, "num_attention_heads", 32)
    width = whole(raw, "hidden_size", 4096)
    kv_default = {"mistral": 8, "smollm3": 4}.get(family, heads)
    layers = whole(raw, "num_hidden_layers", 36 if family == "smollm3" else 32)
    attention_bias = family in ("llama", "qwen3", "smollm3") and flag(raw, "attention_bias", False)
    length = whole(raw, "max_position_embeddings", _DEFAULT_LENGTH[family])
    values = {
        "sequence_len": length,
        "rms_eps": positive(raw, "rms_norm_eps", 1e-6),
        "rope_base": _rope_base(family, raw),
    } | _overridden(overrides or {})
    try:
        return LlamaConfig(
            generation=family,
            vocab_size=whole(raw, "vocab_size"),
            width=width,
            inner_width=whole(raw, "intermediate_size"),
            n_layer=layers,
            n_head=heads,
            n_kv_head=optional_count(raw, "num_key_value_heads", kv_default) or heads,
            head_dim=_head_dim(family, raw, width, heads),
            rope_scaling=_rope_scaling(raw, length),
            qkv_bias=attention_bias or family == "qwen2",
            output_bias=attention_bias,
            mlp_bias=family in ("llama", "smollm3") and flag(raw, "mlp_bias", False),
            qk_norm=family == "qwen3",
            tied=flag(raw, "tie_word_embeddings", family == "smollm3"),
            windows=_windows(family, raw, layers),
            rotated=_rotated(family, raw, layers),
            **values,  # type: ignore[arg-type]
        )
    except ValueError as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"the model's configuration does not work: {error}") from error


_DEFAULT_LENGTH: dict[Family, int] = {
    "nanochat": 2048,
    "llama": 2048,
    "mistral": 131072,
    "qwen2": 32768,
    "qwen3": 32768,
    "smollm3": 32768,
}
# Keys that only models of another kind have; each says which.
_FOREIGN = {
    "quantization_config": "quantized weights",
    "compression_config": "quantized weights",
    "vision_config": "a vision model",
    "audio_config": "an audio model",
    "num_experts": "a mixture of experts",
    "num_local_experts": "a mixture of experts",
    "n_routed_experts": "a mixture of experts",
}


def _refuse_other_features(family: Family, raw: Mapping[str, object]) -> None:
    for name, what in _FOREIGN.items():
        value = raw.get(name)
        if value:
            shown = value.get("quant_method", value) if isinstance(value, dict) else value
            raise CheckpointError(f"config.json has {name} ({shown!r}): {what}, which is not supported")
    if raw.get("hidden_act", "silu") != "silu":
        raise CheckpointError(f"config.json has hidden_act = {raw['hidden_act']!r}; only 'silu' is supported")
    if raw.get("partial_rotary_factor") not in (None, 1, 1.0):
        raise CheckpointError(
            f"config.json has partial_rotary_factor = {raw['partial_rotary_factor']!r}; only 1 is supported"
        )
    if family == "mistral" and raw.get("layer_types") is not None:
        raise CheckpointError("config.json has layer_types, which a Mistral model does not have")


def _overridden(overrides: Mapping[str, object]) -> dict[str, object]:
    unknown = sorted(set(overrides) - set(OVERRIDABLE))
    if unknown:
        raise CheckpointError(
            f"no override {', '.join(unknown)} for this model; there are {', '.join(OVERRIDABLE)}"
        )
    values = dict(overrides)
    for name in ("rope_base", "rms_eps"):
        if name in values:
            values[name] = positive(values, name)
    if "sequence_len" in values:
        length = values["sequence_len"]  # the wire between the processes makes floats of whole numbers
        values["sequence_len"] = int(length) if isinstance(length, float) and length.is_integer() else length
        values["sequence_len"] = whole(values, "sequence_len")
    return values


def _head_dim(family: Family, raw: Mapping[str, object], width: int, heads: int) -> int:
    given = optional_count(raw, "head_dim", 128 if family == "qwen3" else None)
    if given is not None:
        return given
    if width % heads:
        raise CheckpointError(
            f"config.json has no head_dim, and hidden_size {width} is not a multiple of "
            f"num_attention_heads {heads}"
        )
    return width // heads


# ---- windows


def _windows(family: Family, raw: Mapping[str, object], layers: int) -> tuple[int | None, ...]:
    """Per layer. transformers counts the current key, too, so its window of W is W - 1 keys to the left."""
    if family == "llama":
        return (None,) * layers
    if family == "mistral":
        size = optional_count(raw, "sliding_window", 4096)
        return (None if size is None else size - 1,) * layers
    size = optional_count(raw, "sliding_window", None if family == "smollm3" else 4096)
    if size is None or not flag(raw, "use_sliding_window", False):
        return (None,) * layers
    kinds = raw.get("layer_types")
    if kinds is None:
        sliding = _sliding_by_position(family, raw, layers)
    elif isinstance(kinds, list) and len(kinds) == layers and set(kinds) <= _LAYER_KINDS.keys():
        sliding = [_LAYER_KINDS[kind] for kind in kinds]
    else:
        raise CheckpointError(
            f"config.json has layer_types = {kinds!r}, not {layers} of {', '.join(_LAYER_KINDS)}"
        )
    return tuple(size - 1 if is_sliding else None for is_sliding in sliding)


_LAYER_KINDS = {"full_attention": False, "sliding_attention": True}


def _sliding_by_position(family: Family, raw: Mapping[str, object], layers: int) -> list[bool]:
    if family == "smollm3":
        return [not rotated for rotated in _rotated(family, raw, layers)]
    first = raw.get("max_window_layers", 28)
    if not isinstance(first, int) or isinstance(first, bool):
        raise CheckpointError(f"config.json has max_window_layers = {first!r}, not a number of layers")
    return [layer >= first for layer in range(layers)]


def _rotated(family: Family, raw: Mapping[str, object], layers: int) -> tuple[bool, ...]:
    """Per layer; SmolLM3 leaves every fourth as it is."""
    if family != "smollm3":
        return (True,) * layers
    listed = raw.get("no_rope_layers")  # in spite of its name, 1 is a layer that rotates
    if listed is None:
        interval = whole(raw, "no_rope_layer_interval", 4)
        return tuple((layer + 1) % interval != 0 for layer in range(layers))
    if not isinstance(listed, list) or len(listed) < layers or set(listed) - {0, 1}:
        raise CheckpointError(f"config.json has no_rope_layers = {listed!r}, not {layers} times 0 or 1")
    return tuple(bool(entry) for entry in listed[:layers])


# ---- rotary embeddings


def _rope_table(raw: Mapping[str, object]) -> Mapping[str, object]:
    table = raw.get("rope_scaling") or raw.get("rope_parameters") or {}
    if not isinstance(table, dict) or any(isinstance(value, dict) for value in table.values()):
        raise CheckpointError(f"rotary embeddings with {table!r} are not supported")
    return table


def _rope_base(family: Family, raw: Mapping[str, object]) -> float:
    default = positive(raw, "rope_theta", DEFAULT_THETA.get(family, 1e4))
    return positive(_rope_table(raw), "rope_theta", default)


def _rope_scaling(raw: Mapping[str, object], length: int) -> RopeScaling:
    table = _rope_table(raw)
    kind = table.get("rope_type", table.get("type", "default"))
    if table.get("partial_rotary_factor") not in (None, 1, 1.0):
        raise CheckpointError(f"rotary embeddings with {dict(table)!r} are not supported")
    if kind == "default":
        return RopeScaling()
    if kind == "linear":
        return RopeScaling("linear", positive(table, "factor"), length)
    original = optional_count(table, "original_max_position_embeddings", None)
    original = optional_count(raw, "original_max_position_embeddings", None) or original or length
    if kind == "llama3":
        return RopeScaling(
            "llama3",
            positive(table, "factor"),
            original,
            low_freq_factor=positive(table, "low_freq_factor"),
            high_freq_factor=positive(table, "high_freq_factor"),
        )
    if kind == "yarn":
        return _yarn(table, original, length)
    raise CheckpointError(
        f"rotary embeddings of type {kind!r} are not supported; there are default, linear, llama3 and yarn"
    )


def _yarn(table: Mapping[str, object], original: int, length: int) -> RopeScaling:
    factor = positive(table, "factor", length / original)
    return RopeScaling(
        "yarn",
        factor,
        original,
        beta_fast=positive(table, "beta_fast", 32.0),
        beta_slow=positive(table, "beta_slow", 1.0),
        truncate=flag(table, "truncate", True),
        attention_factor=_attention_factor(table, factor),
    )


def _attention_factor(table: Mapping[str, object], factor: float) -> float:
    """What YaRN multiplies cosines and sines by: given, or a function of the factor."""

    def magnitude(scale: float) -> float:
        return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0

    if table.get("attention_factor") is not None:
        return positive(table, "attention_factor")
    if table.get("mscale") and table.get("mscale_all_dim"):
        return magnitude(positive(table, "mscale")) / magnitude(positive(table, "mscale_all_dim"))
    return magnitude(1.0)
