"""The tables of docs/api.md from the code: `python -m benchmarks.api_table` writes them there."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from app.requests.catalogue import MAX_TOKENS, Field, Schema
from app.requests.dialect_fields import ROUTES
from app.settings.http import HttpSettings

DOCS = Path(__file__).parents[1] / "docs" / "api.md"


def spelled(schema: Schema) -> str:
    """A type and its range in a few words."""
    if "$ref" in schema:
        return str(schema["$ref"]).rsplit("/", 1)[1]
    if "anyOf" in schema:
        options = schema["anyOf"]
        assert isinstance(options, list)
        return " or ".join(dict.fromkeys(spelled(option) for option in options))
    if "enum" in schema:
        values = schema["enum"]
        assert isinstance(values, list)
        return " or ".join(f"`{_json(value)}`" for value in values)
    if "const" in schema:
        return f"`{_json(schema['const'])}`"
    kind = schema.get("type")
    if kind == "array":
        item = schema["items"]
        assert isinstance(item, Mapping)
        most = f" (at most {schema['maxItems']})" if "maxItems" in schema else ""
        return f"list of {spelled(item)}{most}"
    if kind is None:
        return "anything"
    low = schema.get("minimum", schema.get("exclusiveMinimum", schema.get("minLength")))
    high = schema.get("maximum", schema.get("maxLength"))
    if low is None and high is None:
        return str(kind)
    if high is None or high in (MAX_TOKENS, 2**63 - 1):
        return f"{kind}, 64 bits" if low == -(2**63) else f"{kind} from {low}"
    above = "above " if "exclusiveMinimum" in schema else ""
    characters = " characters" if kind == "string" else ""
    return f"{kind}, {above}{low} to {high}{characters}"


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()


def table(fields: Sequence[Field]) -> str:
    """The fields as rows of a Markdown table."""
    rows = ["| field | type and range | left out | what it does |", "| --- | --- | --- | --- |"]
    for field in fields:
        never = field.schema == {"type": "null"}
        allowed = "-" if never else spelled(field.schema)
        about = field.about
        if field.effect == "refused":
            about = f"**refused**: {about}" if never else f"anything else is **refused**: {about}"
        elif field.effect == "ignored":
            about = f"**no effect**: {about}"
        default = "required" if field.required else field.default or "-"
        rows.append(f"| `{field.name}` | {allowed} | {default} | {about} |")
    return "\n".join(rows)


def with_tables(page: str) -> str:
    """The page with the table of each route between its two marks."""
    for route, fields in ROUTES.items():
        start, end = f"<!-- fields of {route} -->\n", f"<!-- end of {route} -->"
        before, _, rest = page.partition(start)
        _, _, after = rest.partition(end)
        page = f"{before}{start}{table(fields(HttpSettings()))}\n{end}{after}"
    return page


if __name__ == "__main__":
    DOCS.write_text(with_tables(DOCS.read_text()))
