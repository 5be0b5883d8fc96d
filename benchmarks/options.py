"""What the programs' options may say; whatever they may not ends in one line that names the option."""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

import msgspec
import torch

from benchmarks import models
from engine.flags import DEFAULTS, FastPathFlags, resolve
from engine.messages import EngineConfig

FALLBACK = "allow_kernel_stub_fallback"


class Unfit(ValueError):
    """What was asked for does not go together with the model or the text; the message names the option."""


def refuse(error: Exception) -> NoReturn:
    """Ends the program as argparse does."""
    print(f"error: {error}", file=sys.stderr)
    raise SystemExit(2)


def size(text: str) -> str:
    """A model's size that has a description."""
    try:
        models.dummy_config(text)
    except KeyError:
        known = ", ".join([*models.SIZES, models.EMBEDDED, *models.CONFIGS])
        raise argparse.ArgumentTypeError(f"there is no size {text!r}; there are {known}") from None
    return text


def device(text: str) -> str:
    """A device that is here."""
    try:
        kind = torch.device(text)
    except RuntimeError:
        raise argparse.ArgumentTypeError(f"there is no device {text!r}; there are cpu and cuda") from None
    if kind.type not in ("cpu", "cuda"):
        raise argparse.ArgumentTypeError(f"{text} is neither cpu nor cuda")
    if kind.type == "cuda" and (kind.index or 0) >= torch.cuda.device_count():
        raise argparse.ArgumentTypeError(f"{text}: torch {torch.__version__} sees no such GPU here")
    return text


def counts(text: str) -> list[int]:
    """Positive numbers with commas between them; none of an empty text."""
    try:
        found = [int(part) for part in text.split(",") if part]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not numbers with commas between them") from None
    if any(count < 1 for count in found):
        raise argparse.ArgumentTypeError(f"{text}: not all of them are positive")
    return found


def text_file(text: str) -> Path:
    """A file of UTF-8 text."""
    path = Path(text)
    try:
        path.read_text(encoding="utf-8")
    except OSError as error:
        raise argparse.ArgumentTypeError(f"cannot read {text}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise argparse.ArgumentTypeError(f"{text} is not text in UTF-8") from None
    return path


# ---- what engines are given


def refuse_fallback(flags: Mapping[str, object]) -> None:
    """Raises Unfit where the reference may serve for a kernel that is not there: such a row would bear the
    kernel's name. (No checkpoint can set that flag.)
    """
    if flags.get(FALLBACK):
        raise Unfit(
            f"{FALLBACK} is for debugging: the reference would serve in place of the kernel that the row is "
            "named after"
        )


def engine_settings(pairs: list[str]) -> tuple[dict[str, object], dict[str, object]]:
    """Fields of EngineConfig, and flags, of FIELD=VALUE pairs. Raises Unfit, naming the pair or the flag."""
    fields: dict[str, object] = {}
    flags: dict[str, object] = {}
    for pair in pairs:
        name, given, text = pair.partition("=")
        value = _value(text)
        if not given:
            raise Unfit(f"--engine {pair}: not of the form FIELD=VALUE")
        if name in DEFAULTS:
            flags[name] = value
            continue
        if name not in EngineConfig.__struct_fields__:
            raise Unfit(f"--engine {pair}: EngineConfig has no field {name}, and there is no such flag")
        try:
            msgspec.convert({name: value}, EngineConfig)
        except msgspec.ValidationError as error:
            raise Unfit(f"--engine {pair}: {error}") from None
        fields[name] = value
    profile = fields.get("profile", "fast")
    try:
        resolve(FastPathFlags(), profile, flags)  # type: ignore[arg-type]
    except ValueError as error:
        raise Unfit(f"--engine: {error}") from None
    try:
        refuse_fallback(flags)
    except Unfit as error:
        raise Unfit(f"--engine: {error}") from None
    return fields, flags


def _value(text: str) -> object:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return {"true": True, "false": False, "none": None}.get(text.lower(), text)
