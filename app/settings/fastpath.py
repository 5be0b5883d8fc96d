"""The seed's fast-path flags on the command line. What they mean is said in engine.flags."""
# ruff: noqa: RUF009  (each default is made by a function that returns a dataclass field)

import re
from dataclasses import asdict, dataclass

from app.settings.options import choice, option, switch, whole
from engine.flags import ABOUT, DEFAULTS, FAST, IMPLEMENTATION, TE_DTYPES, Profile, Setting


def _about(name: str) -> str:
    return ABOUT[name].effect


def _shown(name: str) -> str:
    default = DEFAULTS[name]
    if isinstance(default, bool):
        return "on" if default else "on with --profile fast" if FAST.get(name) else "off"
    return "none" if default is None else str(default)


def _implementation(value: str) -> str:
    if not re.fullmatch(IMPLEMENTATION, value):
        raise ValueError(f"{value!r} is not of the form module:function")
    return value


def _on_off(name: str) -> bool | None:
    return switch(None, _about(name), shown=_shown(name))


def _tokens(name: str) -> int | None:
    return option(None, whole(1, 1 << 20), _about(name), metavar="TOKENS", shown=_shown(name))


def _function(name: str) -> str | None:
    return option(None, _implementation, _about(name), metavar="MODULE:FUNCTION", shown=_shown(name))


@dataclass(frozen=True, slots=True, kw_only=True)
class FastPath:
    """The seed's flags, each to be measured alone; one that is given and cannot be had is an error."""

    profile: Profile = option(
        "fast",
        choice("fast", "seed"),
        "where these flags start from: fast is each that the device can, seed the seed's defaults",
    )
    use_padded_attention: bool | None = _on_off("use_padded_attention")
    use_flash_sdp: bool | None = _on_off("use_flash_sdp")
    use_fp32_logits: bool | None = _on_off("use_fp32_logits")
    use_flash3: bool | None = _on_off("use_flash3")
    flash3_block_size: int | None = _tokens("flash3_block_size")
    use_cta_clustering: bool | None = _on_off("use_cta_clustering")
    cta_cluster_size: int | None = option(
        None,
        whole(1, 16),
        _about("cta_cluster_size"),
        metavar="BLOCKS",
        shown=_shown("cta_cluster_size"),
    )
    cta_cluster_seq_threshold: int | None = _tokens("cta_cluster_seq_threshold")
    enable_persistent_decode: bool | None = _on_off("enable_persistent_decode")
    use_te_weight_only: bool | None = _on_off("use_te_weight_only")
    te_weight_dtype: str | None = option(
        None,
        choice(*TE_DTYPES),
        _about("te_weight_dtype"),
        metavar="DTYPE",
        shown=_shown("te_weight_dtype"),
    )
    te_include_mlp: bool | None = _on_off("te_include_mlp")
    use_clustered_attention_kernel: bool | None = _on_off("use_clustered_attention_kernel")
    clustered_attention_impl: str | None = _function("clustered_attention_impl")
    use_persistent_decode_kernel: bool | None = _on_off("use_persistent_decode_kernel")
    persistent_decode_impl: str | None = _function("persistent_decode_impl")
    allow_kernel_stub_fallback: bool | None = _on_off("allow_kernel_stub_fallback")

    def asked(self) -> dict[str, Setting]:
        """The flags that were given, by name."""
        given: dict[str, Setting | None] = asdict(self)
        return {name: value for name, value in given.items() if name in ABOUT and value is not None}


def spelled(message: str) -> str:
    """A message about flags with their names as on the command line."""
    others = ("weight_dtype", "kv_dtype", "decode_path", "max_num_blocks", "num_blocks")
    for name in sorted([*ABOUT, *others], key=len, reverse=True):
        message = re.sub(rf"(?<![\w-]){name}(?!\w)", "--" + name.replace("_", "-"), message)
    return message
