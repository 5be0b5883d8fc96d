"""Typed reading of a config.json. Missing keys take their default. No torch here."""

from collections.abc import Mapping

from engine.checkpoint import CheckpointError


def whole(table: Mapping[str, object], name: str, default: int | None = None) -> int:
    """A positive whole number. Raises CheckpointError, also where there is neither a value nor a default."""
    value = optional_count(table, name, default)
    if value is None:
        raise CheckpointError(f"the model's description has no {name}")
    return value


def optional_count(table: Mapping[str, object], name: str, default: int | None) -> int | None:
    """A positive whole number, or None where the description says null; `default` where it says nothing."""
    if name not in table:
        return default
    value = table[name]
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
        raise CheckpointError(f"the model's description has {name} = {value!r}, not a positive number")
    return value


def positive(table: Mapping[str, object], name: str, default: float | None = None) -> float:
    """A positive, finite number; null counts as missing. Raises CheckpointError, also without any default."""
    value = table.get(name)
    value = default if value is None else value
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < float("inf"):
        raise CheckpointError(f"the model's description has {name} = {value!r}, not a positive number")
    return float(value)


def flag(table: Mapping[str, object], name: str, default: bool) -> bool:
    """true or false; null counts as missing. Raises CheckpointError."""
    value = table.get(name)
    value = default if value is None else value
    if not isinstance(value, bool):
        raise CheckpointError(f"the model's description has {name} = {value!r}, neither true nor false")
    return value
