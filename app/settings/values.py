"""What the values of single settings may be."""

import re
from collections.abc import Callable
from urllib.parse import urlsplit

from app.settings.options import choice, real, whole
from engine.flags import OVERRIDES, OverrideKind


def device(value: str) -> str:
    """nanochat's empty device means "find out"."""
    if value == "mps":
        raise ValueError("mps has no float64, which sampling needs; use cpu")
    if value and not re.fullmatch(r"auto|cpu|cuda(:\d+)?", value):
        raise ValueError(f"{value!r} is none of auto, cpu, cuda, cuda:N")
    return value or "auto"


def windows(value: str) -> str:
    if not re.fullmatch("[SLsl]+", value):
        raise ValueError(f"{value!r} may hold the letters S and L only")
    return value


def stretch(value: str) -> float:
    number = real(0, 1e6)(value)
    if 0 < number < 1:
        raise ValueError(f"{value} is less than 1: the running streams alone take as long as that")
    return number


def collector(value: str) -> str:
    try:
        url = urlsplit(value)
        sound = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
    except ValueError:
        sound = False
    if not sound:
        raise ValueError(f"{value!r} is no URL of the form http://HOST:PORT")
    return value


_constant: dict[OverrideKind, Callable[[str], int | float | str]] = {
    "whole": whole(0),
    "real": real(-1e12, 1e12),
    "dtype": choice("bfloat16", "float32"),
    "windows": windows,
}


def assignment(value: str) -> str:
    name, separator, constant = value.partition("=")
    if not separator:
        raise ValueError(f"{value!r} is not of the form NAME=VALUE")
    if name not in OVERRIDES:
        raise ValueError(f"there is no model constant {name!r}; there are {', '.join(OVERRIDES)}")
    _constant[OVERRIDES[name]](constant)
    return value


def overrides(assignments: tuple[str, ...]) -> dict[str, float | str]:
    pairs = (item.split("=", 1) for item in assignments)
    return {name: _constant[OVERRIDES[name]](constant) for name, constant in pairs}
