"""What became of each of the seed's flags: refused, used, or not, and why."""

from collections.abc import Mapping
from dataclasses import fields
from importlib.util import find_spec

from engine.backend import Feature
from engine.flags import ABOUT, FastPathFlags, Resolved

Outcome = tuple[str, str]  # what is used, and why
OFF = "off"
TE_INSTALL = 'pip install "fastpath[te]"'


class FlagUnavailable(ValueError):
    """A flag that was asked for cannot be had here; the message names it."""


def refuse(flags: Resolved, device: str) -> None:
    """Raises FlagUnavailable for what was asked for and this kind of device cannot do, and ImportError for
    Transformer Engine that is wanted and not installed, whoever wants it.
    """
    values = flags.values
    if values.use_te_weight_only:
        _refuse_te(values)
    for name in sorted(flags.asked):
        value = getattr(values, name)
        if ABOUT[name].where == "cuda" and value is True and device != "cuda":
            raise FlagUnavailable(f"{name} was asked for, but needs a CUDA device, and this is a {device}")
    clustered = values.use_clustered_attention_kernel
    asked = "use_cta_clustering" in flags.asked and values.use_cta_clustering
    if asked and not clustered and (device != "cuda" or flags.hooked):
        raise FlagUnavailable(
            "use_cta_clustering was asked for, but here only a function of yours takes the hint "
            "(use_clustered_attention_kernel)"
        )


def _refuse_te(values: FastPathFlags) -> None:
    if values.te_weight_dtype == "int4":
        raise FlagUnavailable("te_weight_dtype is int4, which Transformer Engine has not")
    if find_spec("transformer_engine") is None:
        raise ImportError(
            f"use_te_weight_only needs transformer_engine, which is not installed: {TE_INSTALL}"
        )
    raise FlagUnavailable("use_te_weight_only: projections through Transformer Engine are not built yet")


def flag_rows(flags: Resolved, device: str, block_size: int, known: Mapping[str, Outcome]) -> list[Feature]:
    """A row of the start-up table for each flag. known: what the device's own part has to say."""
    rows: list[Feature] = []
    for flag in fields(FastPathFlags):
        outcome = known.get(flag.name) or _outcome(flag.name, flags, device, block_size)
        rows.append((flag.name, flags.origin(flag.name), *outcome))
    return rows


def _outcome(name: str, flags: Resolved, device: str, block_size: int) -> Outcome:
    values = flags.values
    value = getattr(values, name)
    if ABOUT[name].where == "training":
        return OFF, "is about the dense forward of training"
    if ABOUT[name].where == "cuda" and device != "cuda":
        return OFF, "needs a CUDA device"
    match name:
        case "use_padded_attention":
            return OFF, "rows are paged: each has its own positions, nothing is padded"
        case "kv_block_size":
            return str(block_size), "as asked" if value == block_size else "the engine's default"
        case "kv_page_size":
            return (str(value), "as asked") if value else ("one block", "the pool is not rounded further")
        case "use_clustered_attention_kernel" | "use_persistent_decode_kernel":
            return _hook(name, values) if value else (OFF, "not asked for")
        case "clustered_attention_impl" | "persistent_decode_impl":
            return (value, "imported") if value else (OFF, "not given")
        case "use_cta_clustering" | "cta_cluster_size" | "cta_cluster_seq_threshold":
            hinted = values.use_cta_clustering and values.use_clustered_attention_kernel
            return (str(value), "a hint to your kernel") if hinted else (OFF, "no kernel here takes the hint")
        case "flash3_block_size":
            return OFF, "no kernel here lets its caller choose the tile"
        case _:
            return (str(value), "as asked") if value else (OFF, "not asked for")


def _hook(name: str, values: FastPathFlags) -> Outcome:
    clustered = name == "use_clustered_attention_kernel"
    impl = values.clustered_attention_impl if clustered else values.persistent_decode_impl
    where = "every layer's attention" if clustered else "steps that only decode"
    if impl is not None:
        return impl, where
    return (
        "registered function, or the reference" if values.allow_kernel_stub_fallback else "registered",
        where,
    )
