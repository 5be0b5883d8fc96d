"""Which JSON schemas can be kept to, word by word.

A keyword that the grammar compiler does not act on would make promises that nobody keeps, so a schema is
walked before it is compiled: what stands on no list is refused, with its place.
"""

from collections.abc import Iterator, Mapping

from app.http.errors import RequestError
from app.http.fields import kind, shown

MAX_DEPTH = 64
MAX_ENUM = 10_000

# What the compiler enforces. Subschemas hang under these three kinds.
_ONE = frozenset({"items", "additionalProperties"})
_LISTS = frozenset({"anyOf", "oneOf", "allOf", "prefixItems"})
_MAPS = frozenset({"properties", "patternProperties", "$defs", "definitions"})
_VALUES = frozenset(
    {
        *("type", "const", "enum", "$ref", "$anchor", "required", "minProperties", "maxProperties"),
        *("minItems", "maxItems", "minLength", "maxLength", "pattern", "format"),
        *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
    }
)
FORMATS = frozenset(
    {"date-time", "date", "time", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"}
)
ENFORCED = _ONE | _LISTS | _MAPS | _VALUES
# What says nothing about which values are valid.
ANNOTATIONS = frozenset(
    {
        *("title", "description", "default", "examples", "$comment", "deprecated", "readOnly", "writeOnly"),
        *("contentMediaType", "contentEncoding", "discriminator"),
    }
)
_ROOT_ONLY = frozenset({"$schema", "$id"})

Node = tuple[Mapping[str, object], str, int]  # a schema, its JSON pointer, its depth


def check_schema(schema: object, field: str) -> dict[str, object]:
    """The schema as it is to be compiled, without the names of its dialect and of itself. Raises RequestError
    with the field, the keyword and its place for what would not be enforced.
    """
    if schema is True:
        return {}
    if not isinstance(schema, dict):
        raise _refused(field, "#", f"must be an object, got {kind(schema)}")
    nodes: list[Node] = [(schema, "#", 1)]
    while nodes:
        node = nodes.pop()
        _check_keywords(node, field)
        nodes += _below(node, field)
    return {keyword: value for keyword, value in schema.items() if keyword not in _ROOT_ONLY}


def _check_keywords(node: Node, field: str) -> None:
    schema, place, depth = node
    if depth > MAX_DEPTH:
        raise _refused(field, place, f"is nested deeper than {MAX_DEPTH} levels")
    for keyword, value in schema.items():
        if keyword in _ROOT_ONLY and depth == 1 and isinstance(value, str):
            continue
        if keyword not in ENFORCED and keyword not in ANNOTATIONS:
            raise _refused(field, place, f"has the keyword '{shown(keyword)}', which is not supported")
    reference = schema.get("$ref")
    if isinstance(reference, str) and not reference.startswith("#"):
        raise _refused(
            field, place, f"has the '$ref' {shown(reference)!r}; only those within the schema work"
        )
    for keyword in ("exclusiveMinimum", "exclusiveMaximum"):
        if isinstance(schema.get(keyword), bool):
            raise _refused(field, place, f"has a boolean '{keyword}'; it must be a number")
    format = schema.get("format")
    if isinstance(format, str) and format not in FORMATS:
        raise _refused(field, place, f"has the 'format' {shown(format)!r}, which is not supported")
    choices = schema.get("enum")
    if isinstance(choices, list) and len(choices) > MAX_ENUM:
        raise _refused(field, place, f"has an 'enum' of more than {MAX_ENUM} values")
    _check_counts(schema, place, field)


def _check_counts(schema: Mapping[str, object], place: str, field: str) -> None:
    """Keys that are free may come twice, and count once where the answer is read."""
    least, required = schema.get("minProperties"), schema.get("required")
    known = len({name for name in required if isinstance(name, str)}) if isinstance(required, list) else 0
    if isinstance(least, int) and least > known + 1:
        raise _refused(
            field, place, f"has 'minProperties' {least}; more than one beside the required keys cannot be had"
        )


def _below(node: Node, field: str) -> Iterator[Node]:
    schema, place, depth = node
    for keyword, value in schema.items():
        at = f"{place}/{keyword}"
        children: list[tuple[object, str]] = []
        if keyword in _ONE:
            children = [(value, at)]
        elif keyword in _LISTS:
            if not isinstance(value, list):
                raise _refused(field, at, f"must be a list, got {kind(value)}")
            children = [(item, f"{at}/{k}") for k, item in enumerate(value)]
        elif keyword in _MAPS:
            if not isinstance(value, dict):
                raise _refused(field, at, f"must be an object, got {kind(value)}")
            children = [(child, f"{at}/{_escaped(name)}") for name, child in value.items()]
        for child, where in children:
            if isinstance(child, dict):
                yield child, where, depth + 1
            elif not isinstance(child, bool):
                hint = "; tuples are written with 'prefixItems'" if keyword == "items" else ""
                raise _refused(field, where, f"must be a schema, got {kind(child)}{hint}")


def _escaped(name: str) -> str:
    return shown(name.replace("~", "~0").replace("/", "~1"))


def _refused(field: str, place: str, what: str) -> RequestError:
    return RequestError("invalid_schema", f"'{field}': the schema at {shown(place, 200)} {what}.", field)
