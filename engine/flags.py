"""The seed's fast-path flags, with the seed's names and defaults, and the model constants that a user may
override. No torch here: the command line imports it.

`GPTConfig` inherits `FastPathFlags`, so library use and the server share one definition; what each flag does
is said once, here, and `docs/flags.md` and `--help` are made from it.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, fields
from importlib.util import find_spec
from typing import Literal, TypeVar

T = TypeVar("T")

OverrideKind = Literal["whole", "real", "dtype", "windows"]

# Fields of GPTConfig that neither a checkpoint's tensors nor, always, its description tell: what a user may
# say about a model. windows: one of the letters S and L per layer.
OVERRIDES: dict[str, OverrideKind] = {
    "rope_base": "real",
    "qk_scale": "real",
    "value_gate_scale": "real",
    "softcap": "real",
    "short_window": "whole",
    "rms_eps": "real",
    "rope_dtype": "dtype",
    "sequence_len": "whole",
    "window_pattern": "windows",
}

Profile = Literal["fast", "seed"]
Where = Literal["any", "cuda", "training"]
Setting = bool | int | str

TE_DTYPES = ("fp8", "mxfp8", "nvfp4", "fp8_block", "fp8_current", "bf16", "fp16", "fp4", "int4")
TE_NATIVE = "--weight-dtype fp8 is the native way, without a package"
TE_INSTALL = f'pip install --no-build-isolation "transformer-engine[pytorch]==2.16.1"; {TE_NATIVE}'
IMPLEMENTATION = re.compile(r"[A-Za-z_][\w.]*(:[A-Za-z_]\w*)?")


@dataclass(frozen=True, slots=True)
class About:
    """effect: what a flag does, in one sentence. where: on which devices it can; "training": in the dense
    forward of training alone."""

    effect: str
    where: Where = "any"


def _flag(default: T, effect: str, where: Where = "any") -> T:
    return field(default=default, metadata={"about": About(effect, where)})


@dataclass(slots=True, kw_only=True)
class FastPathFlags:
    """Each flag can be measured alone."""

    use_padded_attention: bool = _flag(
        False,
        "GPT.forward takes a mask over padded rows; served rows are paged and have no padding",
    )
    use_flash_sdp: bool = _flag(
        True,
        "torch's flash kernels may serve its own attention, in training and with --attention-backend sdpa; "
        "off: its plain one",
    )
    use_fp32_logits: bool = _flag(
        True,
        "the training loss is taken from a float32 copy of all logits; off: from those of the network's own "
        "dtype, widened a few at a time",
        "training",
    )
    use_flash3: bool = _flag(
        True, "the best FlashAttention that is installed serves prefill; off: our own kernel", "cuda"
    )
    flash3_block_size: int = _flag(
        128, "tile of keys for kernels that let their caller choose one; FlashAttention's do not", "cuda"
    )
    use_cta_clustering: bool = _flag(
        False,
        "decode attention of few rows by clusters of thread blocks (Hopper and newer; if asked for, or where "
        "the cuda kernel cannot be had), and a hint to a kernel of yours",
    )
    cta_cluster_size: int = _flag(
        2,
        "most blocks of a cluster up to twice the threshold; from there on as many as the device can place; "
        "the hint is at least 3 from 2,048 keys and 4 from 4,096",
    )
    cta_cluster_seq_threshold: int = _flag(
        1024, "keys that a row can have for clusters to serve; of a hint, those that it has"
    )
    kv_block_size: int | None = _flag(None, "tokens per KV block; without it the engine's default of 16")
    kv_page_size: int | None = _flag(
        None, "tokens to a multiple of which the KV pool is rounded up; without it one block"
    )
    enable_persistent_decode: bool = _flag(
        False, "the buffers of a decode step keep their addresses from step to step", "cuda"
    )
    use_cuda_graphs: bool = _flag(False, "each step is the replay of one captured CUDA graph", "cuda")
    use_te_weight_only: bool = _flag(
        False,
        "q, k, v, output and head projections through Transformer Engine, which rounds inputs as well as "
        "weights: not weight-only math",
        "cuda",
    )
    te_weight_dtype: str = _flag(
        "fp8",
        f"their precision: {', '.join(TE_DTYPES)}. fp8: delayed scaling with scales set once at start, mxfp8 "
        "on a B200. mxfp8, nvfp4 and fp4, which is nvfp4: compute capability 10. fp8_current, nvfp4: a row's "
        "scale depends on the others of its step. int4 is refused",
        "cuda",
    )
    te_include_mlp: bool = _flag(
        False, "with use_te_weight_only: the MLP's projections through Transformer Engine, too", "cuda"
    )
    use_clustered_attention_kernel: bool = _flag(
        False, "attention of every layer through a function of yours (kernels.stubs)"
    )
    clustered_attention_impl: str | None = _flag(
        None, "that function as module:function; `clustered_attention` of a module given alone"
    )
    use_persistent_decode_kernel: bool = _flag(
        False, "steps that only decode through a function of yours (kernels.stubs)"
    )
    persistent_decode_impl: str | None = _flag(
        None, "that function as module:function; `persistent_decode_step` of a module given alone"
    )
    allow_kernel_stub_fallback: bool = _flag(
        False, "where there is no such function the reference serves, with a warning"
    )


ABOUT: dict[str, About] = {flag.name: flag.metadata["about"] for flag in fields(FastPathFlags)}
DEFAULTS: dict[str, Setting | None] = asdict(FastPathFlags())
# What `--profile fast` turns on where the device can.
FAST: dict[str, Setting] = {
    "use_cuda_graphs": True,
    "enable_persistent_decode": True,
    "use_cta_clustering": True,
}
# Names of our own kernel of whole decode steps.
RESIDENT = ("kernels.persistent_decode", "kernels.persistent_decode:persistent_decode_step")
_HOOKS = {
    "clustered_attention_impl": "use_clustered_attention_kernel",
    "persistent_decode_impl": "use_persistent_decode_kernel",
}


def check_flags(flags: FastPathFlags) -> None:
    """Raises ValueError, naming the flag, for a value that no engine could serve."""
    for name in ("flash3_block_size", "cta_cluster_seq_threshold", "kv_block_size", "kv_page_size"):
        value: object = getattr(flags, name)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise ValueError(f"{name} is {value!r}; a positive number of tokens is needed")
    size: object = flags.cta_cluster_size
    if not isinstance(size, int) or isinstance(size, bool) or not 1 <= size <= 16:
        raise ValueError(f"cta_cluster_size is {size!r}; a cluster has 1 to 16 blocks")
    if flags.te_weight_dtype not in TE_DTYPES:
        raise ValueError(f"te_weight_dtype is {flags.te_weight_dtype!r}, none of {', '.join(TE_DTYPES)}")
    for name in _HOOKS:
        impl: object = getattr(flags, name)
        if impl is not None and not (isinstance(impl, str) and IMPLEMENTATION.fullmatch(impl)):
            raise ValueError(f"{name} is {impl!r}, not of the form module:function")
    for name, default in DEFAULTS.items():
        if isinstance(default, bool) and not isinstance(getattr(flags, name), bool):
            raise ValueError(f"{name} is {getattr(flags, name)!r}, neither True nor False")


@dataclass(frozen=True, slots=True)
class Resolved:
    """The flags in force. asked: those that the command line, the environment or a file asked for: what of
    them cannot be had is an error, while the others fall back with a reason. hinted: those that the model's
    own configuration sets.
    """

    values: FastPathFlags
    asked: frozenset[str] = frozenset()
    hinted: frozenset[str] = frozenset()

    def origin(self, name: str) -> str:
        """For the start-up table: the value that was asked for, and by whom."""
        value = getattr(self.values, name)
        if name in self.asked:
            return str(value)
        return f"{value} (model)" if name in self.hinted else "auto"

    @property
    def resident(self) -> bool:
        """Whether `persistent_decode_impl` names ours, which on a GPU is the kernel of --decode-path
        persistent, and its reference elsewhere.
        """
        values = self.values
        ours = values.persistent_decode_impl in RESIDENT
        return ours and values.use_persistent_decode_kernel and not values.use_clustered_attention_kernel

    def hooked(self, device: str) -> bool:
        """Whether some kernel is the user's own on this kind of device."""
        values = self.values
        if self.resident and device == "cuda":
            return False
        return values.use_clustered_attention_kernel or values.use_persistent_decode_kernel


def check_weights(weight_dtype: str, flags: FastPathFlags) -> None:
    """Raises ValueError, naming both, where two say what a projection's weights are kept in."""
    if flags.use_te_weight_only and weight_dtype != "auto":
        raise ValueError(
            f"use_te_weight_only excludes weight_dtype {weight_dtype}: each says what projections are kept in"
        )


def check_kernels(asked: Mapping[str, Setting]) -> None:
    """Raises ValueError for a kernel of one's own that is switched on where nobody can have given it. asked:
    on a command line; a module that is named for the other place may register both.
    """
    if asked.get("allow_kernel_stub_fallback") or any(name in asked for name in _HOOKS):
        return
    for impl, use in _HOOKS.items():
        if asked.get(use):
            raise ValueError(
                f"{use}: there is no kernel; name one with {impl}, or allow the reference with "
                "allow_kernel_stub_fallback"
            )


def check_packages(flags: FastPathFlags) -> None:
    """Raises ImportError, naming the flag, where a package that one cannot do without is not installed."""
    if flags.use_te_weight_only and find_spec("transformer_engine") is None:
        raise ImportError(
            f"use_te_weight_only needs transformer_engine, which is not installed: {TE_INSTALL}"
        )


def resolve(
    model: object, profile: Profile, asked: Mapping[str, Setting], hints: Collection[str] = ()
) -> Resolved:
    """What was asked for stands above the model's configuration, and that above the profile's defaults.

    model: a configuration, of which a `FastPathFlags` counts. hints: the flags that its file has set, to the
    seed's defaults even. Raises ValueError, naming the flag, for unknown
    flags and for values or combinations that no engine could serve.
    """
    unknown = sorted(set(asked) - set(DEFAULTS))
    if unknown:
        raise ValueError(f"there is no flag {', '.join(unknown)}; there are {', '.join(DEFAULTS)}")
    own: dict[str, Setting | None] = {}
    if isinstance(model, FastPathFlags):
        said = {name: getattr(model, name) for name in DEFAULTS}
        own = {name: value for name, value in said.items() if name in hints or value != DEFAULTS[name]}
    defaults = FAST if profile == "fast" else {}
    values = FastPathFlags(**(defaults | own | dict(asked)))  # type: ignore[arg-type]
    check_flags(values)
    if values.use_clustered_attention_kernel and "use_cta_clustering" not in own | dict(asked):
        values.use_cta_clustering = False  # the profile speaks of our own kernel, not of a hint to another's
    for impl, use in _HOOKS.items():
        if impl in asked and not getattr(values, use):
            raise ValueError(f"{impl} does nothing without {use}")
    if model is not None and asked.get("te_include_mlp") and not values.use_te_weight_only:
        raise ValueError("te_include_mlp does nothing without use_te_weight_only")
    resolved = Resolved(values, frozenset(asked), frozenset(own))
    if values.use_persistent_decode_kernel and asked.get("use_cuda_graphs") and not resolved.resident:
        raise ValueError("use_cuda_graphs excludes use_persistent_decode_kernel: its calls are not captured")
    if values.use_clustered_attention_kernel and asked.get("use_cuda_graphs"):
        raise ValueError(
            "use_cuda_graphs excludes use_clustered_attention_kernel: its calls are not captured"
        )
    return resolved
