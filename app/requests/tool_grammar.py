"""The grammar that keeps an answer to a request's tools: that there is a call, and that its arguments fit.

A model that has marks of its own for calls gets them as the tokens that they are; where they are ordinary
text, text without a call must not contain them. With `auto`, an answer without a call stays free, or is what
`response_format` asks for.
"""

import json
from collections.abc import Mapping
from dataclasses import replace

import msgspec

from app.http.errors import RequestError
from app.requests.constraints import Constraint, guided_schema, lark_literal
from app.requests.json_schema import ANNOTATIONS, check_schema
from app.requests.tools import Function, ToolUse
from engine.text import CallFormat

_NAMED = ("properties", "patternProperties", "$defs", "definitions")  # names, not keywords, are in these
_VALUES = ("const", "enum")


def tool_constraint(use: ToolUse, answer: Constraint | None) -> Constraint | None:
    """What the answer is held to; `answer` is what it is held to where it is no call. None: nothing.

    Marks stand in it as text, so that it compiles for any vocabulary. Raises RequestError.
    """
    if answer is not None:
        _answer_schema(answer)  # also where it does not come to that: the answer is always a call
    elif not use.constrained:
        return None
    return Constraint("tools", "lark", _grammar(use, answer, {}))


def with_token_ids(use: ToolUse, answer: Constraint | None, ids: Mapping[int, str]) -> str:
    """The same grammar for a model that has marks as tokens: id to spelling."""
    return _grammar(use, answer, {spelling: f"<[{id}]>" for id, spelling in ids.items()})


def _grammar(use: ToolUse, answer: Constraint | None, tokens: Mapping[str, str]) -> str:
    format = use.format
    rules = [_start(use, answer, tokens)]
    names = [f"args_{k}" for k in range(len(use.allowed))]
    calls = [_call(function, name, format) for function, name in zip(use.allowed, names, strict=True)]
    rules.append("call: " + " | ".join(calls))
    for function, name in zip(use.allowed, names, strict=True):
        rules.append(f"{name}: %json {_schema(_parameters(use, function))}")
    if answer is not None and not use.required:
        rules.append(f"answer: %json {_schema(_answer_schema(answer))}")
    return "\n".join(rules) + "\n"


def _start(use: ToolUse, answer: Constraint | None, tokens: Mapping[str, str]) -> str:
    """The first rules: how calls and text follow each other."""
    format = use.format
    blocks = _calls(use, tokens)
    if use.required:
        return f"start: {blocks}"
    if answer is not None:
        return f"start: {blocks} | answer"
    rest = r"/(?s:.*)/ & ~/(?s:.*)" + _escaped(format.marker) + "(?s:.*)/"
    if format.bare:  # an object at the beginning is a call, and nothing else is
        free = r"/\s*([^\s{](?s:.*))?/" + rest.removeprefix("/(?s:.*)/")
        return f"start: {blocks} | REST\nREST: {free}"
    if format.marker in tokens:
        return f"start: REST ({_block(format, tokens)} REST)*\nREST: {rest}"
    inside = _block(format, tokens).removeprefix(lark_literal(format.marker))
    text = f"text[stop={lark_literal(format.marker)}]: /(?s:.*)/"
    return f"start: (text {inside})* rest\n{text}\nrest: /(?s:.*)/"


def _calls(use: ToolUse, tokens: Mapping[str, str]) -> str:
    """One call or, where the request takes them, several."""
    format = use.format
    if format.bare:
        return "call" if use.single else f"call ({lark_literal(format.separator + ' ')} call)*"
    single = replace(format, separator="") if use.single else format
    block = _block(single, tokens)
    return block if use.single or format.separator else f'{block} ("\\n" {block})*'


def _block(format: CallFormat, tokens: Mapping[str, str]) -> str:
    """Calls between their marks, spelled as templates show them."""
    marker = tokens.get(format.marker, lark_literal(format.marker))
    closer = tokens.get(format.closer, lark_literal(format.closer))
    if not format.opener:
        return f'{marker} "\\n" call "\\n" {closer}'
    more = f" ({lark_literal(format.separator + ' ')} call)*" if format.separator else ""
    return f'{marker} " "? {lark_literal(format.opener)} call{more} {closer}'


def _call(function: Function, arguments: str, format: CallFormat) -> str:
    """In the same lexemes as JSON with a schema has, for an answer in that form may begin like a call."""
    name, value, key = (lark_literal(json.dumps(text)) for text in ("name", function.name, format.arguments))
    return f'"{{" {name} /: ?/ {value} /, ?/ {key} /: ?/ {arguments} "}}"'


def _parameters(use: ToolUse, function: Function) -> dict[str, object]:
    if use.required or function.strict:
        return {"type": "object"} | _bare(check_schema(function.parameters, function.field))
    return {"type": "object"}


def _bare(schema: dict[str, object]) -> dict[str, object]:
    """A checked schema without its annotations: the model has read them, and they can be long."""
    kept = {keyword: value for keyword, value in schema.items() if keyword not in ANNOTATIONS}
    for keyword, value in kept.items():
        if keyword in _NAMED and isinstance(value, dict):
            kept[keyword] = {name: _below(child) for name, child in value.items()}
        elif keyword not in _VALUES:
            kept[keyword] = [_below(child) for child in value] if isinstance(value, list) else _below(value)
    return kept


def _below(child: object) -> object:
    return _bare(child) if isinstance(child, dict) else child


def _answer_schema(answer: Constraint) -> dict[str, object]:
    if answer.kind != "json_schema":
        message = f"'{answer.field}' cannot be had together with 'tools'."
        raise RequestError("invalid_value", message, answer.field)
    return check_schema(answer.source, answer.field)


def _schema(schema: dict[str, object]) -> str:
    return msgspec.json.encode(guided_schema(schema)).decode()


def _escaped(text: str) -> str:
    """For a regex of llguidance's, which knows no more than Rust's."""
    return "".join(c if c.isalnum() or c in "_<>" else "\\" + c for c in text)
