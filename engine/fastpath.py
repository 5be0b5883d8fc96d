"""What became of each of the seed's flags: refused, used, or not, and why."""

from collections.abc import Mapping
from dataclasses import fields

import torch

from engine.backend import Feature, short
from engine.flags import ABOUT, TE_NATIVE, FastPathFlags, Resolved, check_packages
from engine.messages.config import DecodePathName
from kernels import te

Outcome = tuple[str, str]  # what is used, and why
OFF = "off"
PLAIN = "kernels of your own are called by the plain runner"


class FlagUnavailable(ValueError):
    """A flag that was asked for cannot be had here; the message names it."""


def refuse(flags: Resolved, device: str, dtype: torch.dtype) -> None:
    """Raises FlagUnavailable for what was asked for and this kind of device cannot do with a model in this
    dtype. Transformer Engine is never left out silently, whoever wants it: ImportError where it is missing or
    broken, FlagUnavailable where it cannot serve.
    """
    values = flags.values
    if values.use_te_weight_only:
        _refuse_te(flags, device, dtype)
    for name in sorted(flags.asked):
        value = getattr(values, name)
        if ABOUT[name].where != "cuda" or value is not True:
            continue
        if device != "cuda":
            raise FlagUnavailable(f"{name} was asked for, but needs a CUDA device, and this is a {device}")
        if flags.hooked(device):
            raise FlagUnavailable(f"{name} was asked for, but {PLAIN}")
    clustered = values.use_clustered_attention_kernel
    asked = "use_cta_clustering" in flags.asked and values.use_cta_clustering
    if asked and not clustered and (device != "cuda" or flags.hooked(device)):
        raise FlagUnavailable(
            "use_cta_clustering was asked for, but here only a function of yours takes the hint "
            "(use_clustered_attention_kernel)"
        )


def refuse_path(asked: str, flags: Resolved, device: str) -> None:
    """Raises FlagUnavailable for a decode path that no runner but the GPU's own has."""
    if device != "cuda":
        raise FlagUnavailable(f"decode_path is {asked}, but needs a CUDA device, and this is a {device}")
    if flags.hooked(device):
        raise FlagUnavailable(f"decode_path is {asked}, but {PLAIN}")


def resident_path(flags: Resolved, device: str, asked: DecodePathName) -> DecodePathName:
    """The decode path of an engine on this kind of device: "persistent" where `persistent_decode_impl` names
    the resident kernel, else the one that was asked for. Raises FlagUnavailable where these are at odds.
    """
    if not flags.resident or device != "cuda":
        return asked
    if asked not in ("auto", "persistent"):
        raise FlagUnavailable(
            f"decode_path {asked} excludes persistent_decode_impl {flags.values.persistent_decode_impl}, "
            "which is the path persistent"
        )
    return "persistent"


def named(flags: Resolved, device: str, error: FlagUnavailable) -> FlagUnavailable:
    """The same about a decode path, naming the flag that has asked for it."""
    if not flags.resident or device != "cuda":
        return error
    return FlagUnavailable(f"persistent_decode_impl {flags.values.persistent_decode_impl}: {error}")


def _refuse_te(flags: Resolved, device: str, dtype: torch.dtype) -> None:
    """In the order of what is cheap to find out: importing the package takes seconds."""
    asked = flags.values.te_weight_dtype
    if asked == "int4":
        raise FlagUnavailable("te_weight_dtype is int4, which Transformer Engine has not")
    check_packages(flags.values)
    if device != "cuda":
        raise FlagUnavailable(f"use_te_weight_only needs a CUDA device, and this is a {device}")
    if flags.hooked(device):
        raise FlagUnavailable(f"use_te_weight_only excludes kernels of your own: {PLAIN}")
    if dtype not in te.FULL.values():
        raise FlagUnavailable(
            f"use_te_weight_only needs a model in bfloat16 or float16, and this one is in {short(dtype)}"
        )
    if te.FULL.get(asked, dtype) != dtype:
        raise FlagUnavailable(f"te_weight_dtype is {asked}, but the model is in {short(dtype)}")
    try:
        te.load()
    except ImportError as error:
        raise ImportError(
            "use_te_weight_only needs transformer_engine, which is installed but cannot be imported: "
            f"{error}. It needs nvidia-cublas 13.2 or newer, which torch may not bring (see README.md); "
            f"{TE_NATIVE}"
        ) from error


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
    if ABOUT[name].where == "cuda" and (device != "cuda" or flags.hooked(device)):
        return OFF, "needs a CUDA device" if device != "cuda" else PLAIN
    match name:
        case "use_padded_attention":
            return OFF, "rows are paged: each has its own positions, nothing is padded"
        case "kv_block_size":
            return str(block_size), "as asked" if value == block_size else "the engine's default"
        case "kv_page_size":
            return (str(value), "as asked") if value else ("one block", "the pool is not rounded further")
        case "use_flash_sdp":
            return OFF, "attention is not by torch's own function"
        case "te_weight_dtype" | "te_include_mlp":
            return OFF, "use_te_weight_only is off"
        case "allow_kernel_stub_fallback":
            return (
                (str(value), "as asked")
                if value and flags.hooked(device)
                else (OFF, "no kernel of yours is wanted")
            )
        case "clustered_attention_impl" | "persistent_decode_impl":
            return (value, "imported") if value else (OFF, "not given")
        case "use_cta_clustering" | "cta_cluster_size" | "cta_cluster_seq_threshold":
            hinted = values.use_cta_clustering and values.use_clustered_attention_kernel
            return (str(value), "a hint to your kernel") if hinted else (OFF, "no kernel here takes the hint")
        case "flash3_block_size":
            return OFF, "no kernel here lets its caller choose the tile"
        case _:
            return (str(value), "as asked") if value else (OFF, "not asked for")
