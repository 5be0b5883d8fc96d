"""The table of fields is true: the parsers read these fields, within these ranges, and no others."""

import ast
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.routing import Route

from app.http.errors import ApiError, RequestError
from app.requests.catalogue import (
    Field,
    chat_fields,
    completion_fields,
    detokenize_fields,
    tokenize_fields,
)
from app.requests.dialect_fields import OUTPUT_LOGPROBS, ROUTES, message_fields, response_fields
from app.requests.messages import parse_message
from app.requests.openai import ChatRequest, CompletionRequest, parse_chat, parse_completion
from app.requests.responses import parse_response
from app.requests.text import TextService
from app.routes.openapi import ERRORS, operations
from app.routes.server import create_app
from app.routes.tokens import Detokenize, Tokenize
from app.settings.http import HttpSettings
from benchmarks.api_table import DOCS, with_tables
from engine.messages import ModelInfo
from tests.app.scripted_engine import ScriptedEngine, byte_template, byte_tokenizer

SETTINGS = HttpSettings(allow_priority=True)
INFO = ScriptedEngine().info
APP = Path(__file__).parents[2] / "app"
Body = dict[str, object]
Parser = Callable[[Body, ModelInfo, HttpSettings], ChatRequest | CompletionRequest]
CHAT: Body = {"messages": [{"role": "user", "content": "x"}]}
TEXT: Body = {"prompt": "x"}
INPUT: Body = {"input": "x"}
TURNS: Body = {**CHAT, "max_tokens": 9}
PARSERS: list[tuple[Parser, Body, list[Field]]] = [
    (parse_chat, CHAT, chat_fields(SETTINGS)),
    (parse_completion, TEXT, completion_fields(SETTINGS)),
    (parse_response, INPUT, response_fields(SETTINGS)),
    (parse_message, TURNS, message_fields(SETTINGS)),
]
IDS = ["chat", "text", "responses", "messages"]


class Watched(dict[str, object]):
    """A body that remembers which of its fields were asked for."""

    def __init__(self, values: Body) -> None:
        super().__init__(values)
        self.read: set[str] = set()

    def get(self, name: str, default: object = None) -> object:  # type: ignore[override]
        self.read.add(name)
        return super().get(name, default)


def acting(fields: list[Field]) -> set[str]:
    return {field.name for field in fields if field.effect != "ignored"}


@pytest.mark.parametrize(("parse", "body", "fields"), PARSERS, ids=IDS)
def test_the_parsers_read_what_is_listed(parse: Parser, body: Body, fields: list[Field]) -> None:
    watched = Watched(body)
    parse(watched, INFO, SETTINGS)
    assert watched.read == acting(fields)


async def test_tokenize_and_detokenize_read_what_is_listed() -> None:
    app = create_app(ScriptedEngine(), TextService(byte_tokenizer(), byte_template()))
    context = app.state.context
    text, talk, ids = Watched({"prompt": "x"}), Watched(CHAT), Watched({"tokens": [1]})
    for body in (text, talk):
        await Tokenize(context).prepare(body, INFO, 0.0)
    await Detokenize(context).prepare(ids, INFO, 0.0)
    assert text.read | talk.read == acting(tokenize_fields(SETTINGS))
    assert ids.read == acting(detokenize_fields(SETTINGS))


# Whether the value at the border can be had depends on other fields, too: those say so by another code.
@pytest.mark.parametrize(("parse", "body", "fields"), PARSERS, ids=IDS)
def test_ranges_are_those_that_are_listed(parse: Parser, body: Body, fields: list[Field]) -> None:
    checked = 0
    for field in fields:
        schema = field.schema
        if schema.get("type") not in ("integer", "number"):
            continue
        low, high = schema.get("minimum"), schema.get("maximum")
        above = schema.get("exclusiveMinimum")
        step = 1 if schema["type"] == "integer" else 1e-6
        inside = [value for value in (low, high) if value is not None]
        outside = [above] if above is not None else []
        outside += [low - step] if isinstance(low, int | float) else []
        outside += [high + step] if isinstance(high, int | float) else []
        for value in inside:
            with_others = {}
            if field.name == "top_logprobs":
                with_others = {"logprobs": True} if parse is parse_chat else {"include": [OUTPUT_LOGPROBS]}
            try:
                parse({**body, **with_others, field.name: value}, INFO, SETTINGS)
            except RequestError as error:
                assert error.code != "out_of_range" or "echo" in field.about or value == 0, field.name
        for value in outside:
            with pytest.raises(RequestError) as raised:
                parse({**body, field.name: value}, INFO, SETTINGS)
            assert (raised.value.code, raised.value.param) == ("out_of_range", field.name)
            checked += 1
    assert checked > 20


def test_fields_that_nobody_knows_are_named_when_that_is_asked_for() -> None:
    strict = HttpSettings(strict_fields=True)
    for parse, body, fields in PARSERS:
        parse({**body, "temprature": 1}, INFO, SETTINGS)
        with pytest.raises(RequestError) as raised:
            parse({**body, "temprature": 1}, INFO, strict)
        assert (raised.value.code, raised.value.param) == ("unknown_field", "temprature")
        parse({**body, **{f.name: None for f in fields if not f.required}}, INFO, strict)


LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 300),
    st.integers(),
    st.floats(-3, 3),
    st.text(max_size=4),
    st.sampled_from(["user", "assistant", "text", "stop", "auto", "none", "scripted"]),
)
KEYS = st.sampled_from(["role", "content", "type", "text", "include_usage", "65", "x"]) | st.text(max_size=3)
JSON = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4), max_leaves=8
)


@settings(max_examples=100, database=None)
@given(st.data())
@pytest.mark.parametrize(("parse", "body", "fields"), PARSERS, ids=IDS)
def test_any_body_is_a_request_or_an_error_with_a_name(
    parse: Parser, body: Body, fields: list[Field], data: st.DataObject
) -> None:
    known = st.sampled_from([field.name for field in fields])
    drawn = data.draw(st.dictionaries(known | st.text(max_size=4), JSON, max_size=5))
    base = body if data.draw(st.booleans()) else {}
    try:
        request = parse({**base, **drawn}, INFO, SETTINGS)
        request.sampling.params(5, INFO, "prompt")
    except ApiError as error:
        assert error.status in (400, 404) and error.param is not None
        assert len(error.message) < 500
    else:
        assert isinstance(request, ChatRequest | CompletionRequest)


def test_every_route_is_described() -> None:
    app = create_app(ScriptedEngine(), TextService(byte_tokenizer(), byte_template()), HttpSettings(ui=False))
    routes = {
        (re.sub(r":\w+", "", route.path), method.lower())
        for route in app.routes
        if isinstance(route, Route) and route.methods and not route.path.startswith("/docs")
        for method in route.methods - {"HEAD"}
    }
    endpoints = {  # routes whose endpoint is an application: Starlette fills in GET for nobody
        (path, method) for path, methods in operations(SETTINGS).items() for method in methods
    }
    assert endpoints == routes


def test_without_docs() -> None:
    app = create_app(ScriptedEngine(), TextService(), HttpSettings(docs=False, ui=False))
    assert not [route for route in app.routes if isinstance(route, Route) and "doc" in route.path]


def test_the_page_has_the_tables() -> None:
    page = DOCS.read_text()
    assert all(f"<!-- fields of {route} -->" in page for route in ROUTES)
    assert with_tables(page) == page, "python -m benchmarks.api_table"


def raised_codes() -> dict[str, set[int | None]]:
    """Each code that app/ makes an error of, and the statuses where they stand beside it.

    An error is made by a call of one of the tree's classes, or by a subclass that calls its base.
    """
    found: dict[str, set[int | None]] = {}
    for path in APP.glob("**/*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            name = ast.unparse(node.func).rsplit(".", 1)[-1]
            if not (name == "__init__" or name[:1].isupper()):
                continue
            values = [arg.value for arg in node.args[:2] if isinstance(arg, ast.Constant)]
            status = next((value for value in values if isinstance(value, int)), None)
            code = next((value for value in values if isinstance(value, str)), "")
            is_error = name in ("ApiError", "RequestError", "Unavailable") or (
                name == "__init__" and path.name == "errors.py"
            )
            if is_error and re.fullmatch(r"[a-z]+(_[a-z]+)*", code):
                own = {"RequestError": 400, "Unavailable": 503}.get(name)
                found.setdefault(code, set()).add(status or own)
    return found


def test_the_catalogue_of_errors_is_whole() -> None:
    page = (DOCS.parent / "errors.md").read_text()
    rows = re.findall(r"^\| (\d{3}|any) \| `(\w+)` \| `(\w+)` \|", page, re.MULTILINE)
    listed: dict[str, int | None] = {code: int(status) for status, _, code in rows if status != "any"}
    listed |= {code: None for status, _, code in rows if status == "any"}
    codes = raised_codes()
    assert set(listed) == set(codes)
    for code, statuses in codes.items():
        assert statuses <= {None, listed[code]}, code
    assert set(listed.values()) <= {None, *ERRORS}
