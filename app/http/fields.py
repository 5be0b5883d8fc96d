"""Typed access to the fields of a JSON object; every rejection names its field.

JSON types are meant literally: true is no integer, "5" is no number, 5.0 is no integer. null counts as
absent.
"""

from collections.abc import Mapping

from app.http.errors import RequestError


class Fields:
    """One JSON object. `path` is put in front of the names of its fields in messages."""

    __slots__ = ("path", "values")

    def __init__(self, values: Mapping[str, object], path: str = "") -> None:
        self.values = values
        self.path = path

    def name(self, field: str) -> str:
        return f"{self.path}.{field}" if self.path else field

    def get(self, field: str) -> object:
        return self.values.get(field)

    def integer(self, field: str, low: int, high: int) -> int | None:
        value = self.values.get(field)
        return None if value is None else as_integer(value, self.name(field), low, high)

    def number(self, field: str, low: float, high: float, *, above: bool = False) -> float | None:
        """A finite number in [low, high], or in (low, high] with `above`."""
        value = self.values.get(field)
        return None if value is None else as_number(value, self.name(field), low, high, above=above)

    def boolean(self, field: str, default: bool = False) -> bool:
        value = self.values.get(field)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise wrong_type(self.name(field), "a boolean", value)
        return value

    def string(self, field: str) -> str | None:
        value = self.values.get(field)
        if value is None or isinstance(value, str):
            return value
        raise wrong_type(self.name(field), "a string", value)

    def nested(self, field: str) -> "Fields | None":
        value = self.values.get(field)
        return None if value is None else as_object(value, self.name(field))

    def items(self, field: str) -> list[object] | None:
        value = self.values.get(field)
        if value is None or isinstance(value, list):
            return value
        raise wrong_type(self.name(field), "a list", value)


def as_object(value: object, name: str) -> Fields:
    if not isinstance(value, dict):
        raise wrong_type(name, "an object", value)
    return Fields(value, name)


def as_integer(value: object, name: str, low: int, high: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise wrong_type(name, "an integer", value)
    if not low <= value <= high:
        raise RequestError(
            "out_of_range", f"'{name}' must be between {low} and {high}, got {shown(value)}.", name
        )
    return value


def as_number(value: object, name: str, low: float, high: float, *, above: bool = False) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise wrong_type(name, "a number", value)
    if not low <= value <= high or (above and value == low):
        range = f"above {low:g} and at most {high:g}" if above else f"between {low:g} and {high:g}"
        raise RequestError("out_of_range", f"'{name}' must be {range}, got {shown(value)}.", name)
    return float(value)


def wrong_type(name: str, wanted: str, value: object) -> RequestError:
    return RequestError("invalid_type", f"'{name}' must be {wanted}, got {kind(value)}.", name)


def missing(name: str) -> RequestError:
    return RequestError("missing_field", f"'{name}' is required.", name)


def kind(value: object) -> str:
    """The JSON name of a value's type."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, int):
        return "an integer"
    if isinstance(value, float):
        return "a number"
    if isinstance(value, str):
        return "a string"
    return "a list" if isinstance(value, list) else "an object"


def shown(value: object, limit: int = 60) -> str:
    """A value as it may stand in an error message: short, whatever the client sent."""
    if isinstance(value, int) and abs(value) >= 10**24:
        return "a number of more than 24 digits"
    text = str(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."
