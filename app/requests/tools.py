"""Functions that a request offers to the model: its fields, and what of them the model is shown.

Whether a model can call functions is its chat template's affair: one that never reads `tools` cannot show
any, and a request that offers some is refused. (The calculator of nanochat's models is something else: it
belongs to the model, and no client has to offer it.)
"""

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol

import msgspec

from app.http.errors import RequestError, Unsupported
from app.http.fields import Fields, as_object, kind, missing, shown, wrong_type
from app.settings.http import CallFormatName
from engine.text import CALL_FORMATS, CallFormat, Tool, ToolCall, detect_call_format

FIELDS = ("tools", "tool_choice", "functions", "function_call")  # of chat requests; other routes refuse them
NO_TOOLS = "this model's chat template has no tools."
MAX_TOOLS = 128
MAX_ID = 256
MAX_SCHEMA_DEPTH = 64

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_TYPES = ("object", "array", "string", "number", "integer", "boolean", "null")
_SCHEMAS = ("items", "additionalProperties", "not", "if", "then", "else", "contains", "propertyNames")
_SCHEMA_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
_SCHEMA_MAPS = ("properties", "patternProperties", "$defs", "definitions")


@dataclass(frozen=True, slots=True)
class Function:
    """`parameters` is a JSON schema of an object; `field` is where it stands in the request."""

    name: str
    description: str | None
    parameters: dict[str, object]
    strict: bool
    field: str

    def shown(self) -> Tool:
        """As chat templates know it."""
        about: dict[str, object] = {"name": self.name}
        if self.description is not None:
            about["description"] = self.description
        return {"type": "function", "function": about | {"parameters": self.parameters}}


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolUse:
    """What a request says about calls. The model is shown `functions` and may call `allowed` ones.

    required: the answer is a call. single: it ends with the first one.
    """

    functions: tuple[Function, ...]
    allowed: tuple[Function, ...]
    required: bool
    single: bool
    format: CallFormat

    @property
    def constrained(self) -> bool:
        """Whether a grammar is needed to keep to it."""
        return self.required or any(function.strict for function in self.allowed)


class Spelling(Protocol):
    """How a route says what `ToolUse` is made from."""

    def function(self, fields: Fields) -> Function:
        """One of `tools`."""
        ...

    def harmless(self, choice: object) -> bool:
        """Whether a `tool_choice` means nothing where there are no tools."""
        ...

    def choice(self, fields: Fields, names: Collection[str]) -> tuple[str, Collection[str]]:
        """The mode (none, auto, required or named), and the names that may be called."""
        ...

    def parallel(self, fields: Fields) -> bool: ...


class ChatSpelling:
    """That of /v1/chat/completions."""

    def function(self, fields: Fields) -> Function:
        check_type(fields)
        about = fields.nested("function")
        if about is None:
            raise missing(fields.name("function"))
        return parse_function(about)

    def harmless(self, choice: object) -> bool:
        return choice in (None, "none", "auto")

    def choice(self, fields: Fields, names: Collection[str]) -> tuple[str, Collection[str]]:
        return parse_choice(fields, names, "function")

    def parallel(self, fields: Fields) -> bool:
        return fields.boolean("parallel_tool_calls", True)


class FlatSpelling(ChatSpelling):
    """That of /v1/responses, without the inner object `function`."""

    def function(self, fields: Fields) -> Function:
        check_type(fields)
        return parse_function(fields)

    def choice(self, fields: Fields, names: Collection[str]) -> tuple[str, Collection[str]]:
        return parse_choice(fields, names)


def parse_tools(fields: Fields, tool_source: str | None, parser: CallFormatName) -> ToolUse | None:
    """Of a chat request. Raises RequestError."""
    if fields.get("functions") not in (None, []):
        raise Unsupported("functions", "use 'tools' instead.")
    if fields.get("function_call") not in (None, "none", "auto"):
        raise Unsupported("function_call", "use 'tool_choice' instead.")
    return parse_offer(fields, tool_source, parser, ChatSpelling())


def parse_offer(
    fields: Fields, tool_source: str | None, parser: CallFormatName, spelling: Spelling
) -> ToolUse | None:
    """None where no function may be called. `tool_source` is the chat template's text if it knows tools.
    Raises RequestError.
    """
    parallel = spelling.parallel(fields)
    items = fields.items("tools") or []
    if not items:
        if not spelling.harmless(fields.get("tool_choice")):
            if tool_source is None:
                raise Unsupported("tool_choice", NO_TOOLS)
            raise RequestError("invalid_value", "'tool_choice' needs 'tools' to choose from.", "tool_choice")
        return None
    format = _format(tool_source, parser)
    if len(items) > MAX_TOOLS:
        raise RequestError("out_of_range", f"'tools' holds more than {MAX_TOOLS} tools.", "tools")
    functions = tuple(spelling.function(as_object(item, f"tools[{k}]")) for k, item in enumerate(items))
    names = [function.name for function in functions]
    for k, name in enumerate(names):
        if name in names[:k]:
            field = functions[k].field.rpartition(".")[0] + ".name"
            raise RequestError("invalid_value", f"'{field}' is '{name}', as an earlier tool's is.", field)
    mode, allowed = spelling.choice(fields, names)
    if mode == "none":
        return None
    return ToolUse(
        functions=functions,
        allowed=tuple(function for function in functions if function.name in allowed),
        required=mode != "auto",
        single=mode == "named" or not parallel,
        format=format,
    )


def _format(tool_source: str | None, parser: CallFormatName) -> CallFormat:
    if tool_source is None:
        raise Unsupported("tools", NO_TOOLS)
    format = detect_call_format(tool_source) if parser == "auto" else CALL_FORMATS[parser]
    if format is None:
        known = ", ".join(CALL_FORMATS)
        raise Unsupported(
            "tools", f"this model's chat template has tools, but in none of the formats {known}."
        )
    return format


def parse_function(about: Fields, schema_field: str = "parameters") -> Function:
    """From the object that has its name. Raises RequestError."""
    schema = about.nested(schema_field)
    parameters: dict[str, object] = {"type": "object", "properties": {}}
    if schema is not None:
        _check_parameters(schema)
        parameters = dict(schema.values)
    return Function(
        name=function_name(about),
        description=about.string("description"),
        parameters=parameters,
        strict=about.boolean("strict"),
        field=about.name(schema_field),
    )


def check_type(fields: Fields) -> None:
    type = fields.string("type")
    if type is None:
        raise missing(fields.name("type"))
    if type != "function":
        message = f"'{fields.name('type')}' must be function, got '{shown(type)}'."
        raise RequestError("invalid_value", message, fields.name("type"))


def function_name(fields: Fields) -> str:
    name = fields.string("name")
    if name is None:
        raise missing(fields.name("name"))
    if not _NAME.fullmatch(name):
        message = f"'{fields.name('name')}' must be 1 to 64 letters, digits, '_' or '-'."
        raise RequestError("invalid_value", message, fields.name("name"))
    return name


# ---- which functions


def parse_choice(
    fields: Fields, names: Collection[str], inner: str | None = None
) -> tuple[str, Collection[str]]:
    """The mode (none, auto, required or named), and the names that may be called. inner: the field that holds
    the object with a function's name, if that is one of its own.
    """
    value = fields.get("tool_choice")
    if value is None:
        return "auto", names
    if isinstance(value, str):
        return _mode(value, "tool_choice", ("none", "auto", "required")), names
    if not isinstance(value, dict):
        raise wrong_type("tool_choice", "a string or an object", value)
    choice = Fields(value, "tool_choice")
    type = choice.string("type")
    if type is None:
        raise missing(choice.name("type"))
    if type == "function":
        return "named", (chosen(choice, names, inner),)
    if type != "allowed_tools":
        message = f"'{choice.name('type')}' must be function or allowed_tools, got '{shown(type)}'."
        raise RequestError("invalid_value", message, choice.name("type"))
    # OpenAI's chat route has the two fields in an object of their own.
    allowed = choice.nested("allowed_tools") or choice
    mode = _mode(allowed.string("mode") or "auto", allowed.name("mode"), ("auto", "required"))
    items = allowed.items("tools")
    if not items:
        raise missing(allowed.name("tools"))
    listed = [as_object(item, f"{allowed.name('tools')}[{k}]") for k, item in enumerate(items)]
    for item in listed:
        check_type(item)
    return mode, {chosen(item, names, inner) for item in listed}


def _mode(mode: str, field: str, modes: Collection[str]) -> str:
    if mode not in modes:
        message = f"'{field}' must be one of {', '.join(modes)}, got '{shown(mode)}'."
        raise RequestError("invalid_value", message, field)
    return mode


def chosen(choice: Fields, names: Collection[str], inner: str | None = None) -> str:
    """The name in a choice of one function. Raises RequestError."""
    about = choice if inner is None else choice.nested(inner)
    if about is None:
        raise missing(choice.name(inner or ""))
    name = about.string("name")
    if name is None:
        raise missing(about.name("name"))
    if name not in names:
        message = f"'{about.name('name')}' is '{shown(name)}', which is no function of 'tools'."
        raise RequestError("invalid_value", message, about.name("name"))
    return name


# ---- schemas


def _check_parameters(schema: Fields) -> None:
    """Raises RequestError for what is no JSON schema of an object. Not every keyword is looked at: a model
    is only shown the schema, unless it is held to it, and then it is checked word by word.
    """
    if schema.values.get("type", "object") != "object":
        raise _bad_schema(schema.path, "#/type", "must be 'object'")
    nodes: list[tuple[object, str, int]] = [(schema.values, "#", 1)]
    while nodes:
        node, place, depth = nodes.pop()
        if isinstance(node, bool) and depth > 1:
            continue
        if not isinstance(node, dict):
            raise _bad_schema(schema.path, place, f"must be a schema, got {kind(node)}")
        if depth > MAX_SCHEMA_DEPTH:
            raise _bad_schema(schema.path, place, f"is nested deeper than {MAX_SCHEMA_DEPTH} levels")
        _check_values(node, place, schema.path)
        for keyword, value in node.items():
            at = f"{place}/{keyword}"
            if keyword in _SCHEMA_LISTS or (keyword == "items" and isinstance(value, list)):
                if not isinstance(value, list):
                    raise _bad_schema(schema.path, at, f"must be a list, got {kind(value)}")
                nodes += [(item, f"{at}/{k}", depth + 1) for k, item in enumerate(value)]
            elif keyword in _SCHEMA_MAPS:
                if not isinstance(value, dict):
                    raise _bad_schema(schema.path, at, f"must be an object, got {kind(value)}")
                nodes += [(item, f"{at}/{name}", depth + 1) for name, item in value.items()]
            elif keyword in _SCHEMAS:
                nodes.append((value, at, depth + 1))


def _check_values(schema: dict[str, object], place: str, field: str) -> None:
    type = schema.get("type", [])
    types = type if isinstance(type, list) else [type]
    if not all(name in _TYPES for name in types):
        raise _bad_schema(field, f"{place}/type", f"must be one of {', '.join(_TYPES)}")
    required = schema.get("required", [])
    if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
        raise _bad_schema(field, f"{place}/required", "must be a list of strings")
    if not isinstance(schema.get("enum", []), list):
        raise _bad_schema(field, f"{place}/enum", "must be a list")


def _bad_schema(field: str, place: str, what: str) -> RequestError:
    return RequestError("invalid_schema", f"'{field}': the schema at {shown(place, 200)} {what}.", field)


# ---- calls of earlier turns


def parse_tool_calls(fields: Fields) -> tuple[ToolCall, ...]:
    """The calls in an assistant's message."""
    items = fields.items("tool_calls") or []
    name = fields.name("tool_calls")
    if len(items) > MAX_TOOLS:
        raise RequestError("out_of_range", f"'{name}' holds more than {MAX_TOOLS} calls.", name)
    return tuple(_tool_call(as_object(item, f"{name}[{k}]")) for k, item in enumerate(items))


def _tool_call(fields: Fields) -> ToolCall:
    check_type(fields)
    about = fields.nested("function")
    if about is None:
        raise missing(fields.name("function"))
    text = about.string("arguments")
    if text is None:
        raise missing(about.name("arguments"))
    return ToolCall(
        tool_call_id(fields, "id"), function_name(about), parse_arguments(text, about.name("arguments"))
    )


def tool_call_id(fields: Fields, field: str) -> str:
    id = fields.string(field)
    if id is None:
        raise missing(fields.name(field))
    if not 0 < len(id) <= MAX_ID:
        message = f"'{fields.name(field)}' must have between 1 and {MAX_ID} characters."
        raise RequestError("out_of_range", message, fields.name(field))
    return id


def parse_arguments(text: str, field: str) -> dict[str, object]:
    """Clients send the text back that they got; templates want the object that it says."""
    try:
        value: object = msgspec.json.decode(text) if text.strip() else {}
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise RequestError("invalid_value", f"'{field}' must be the JSON of an object.", field)
    return value
