"""Fields that shape an answer: what the engine is told, what is refused, and that nobody waits for it."""

import asyncio
import json
import threading

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llguidance import LLMatcher, LLTokenizer

import app.requests.constraints
from app.requests.constraints import Constraint, GrammarCompiler, choice_grammar, grammar_text
from app.requests.json_schema import ANNOTATIONS, ENFORCED, FORMATS
from tests.app.fair_clock import FairClock
from tests.app.scripted_engine import ScriptedEngine, says
from tests.app.serving import Served, served

USER = [{"role": "user", "content": "hi"}]
ROUTES: list[tuple[str, dict[str, object]]] = [
    ("/v1/chat/completions", {"messages": USER}),
    ("/v1/completions", {"prompt": "hi"}),
]
POINT = {
    "type": "object",
    "properties": {"x": {"type": "integer"}},
    "required": ["x"],
    "additionalProperties": False,
}


class Letters:
    """A vocabulary of bytes, apart from the one that is tested."""

    is_tokenizer_wrapper = True
    eos_token_id, bos_token_id, special_token_ids = 256, None, (256,)
    tokens = (*(bytes([byte]) for byte in range(256)), b"<end>")

    def __call__(self, text: str | bytes) -> list[int]:
        return list(text.encode() if isinstance(text, str) else text)


BYTES = LLTokenizer(Letters())  # type: ignore[arg-type]


def accepts(grammar: str, text: str) -> bool:
    """Whether the whole text is one that the grammar generates."""
    matcher = LLMatcher(BYTES, grammar, log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    data = list(text.encode())
    return matcher.try_consume_tokens(data) == len(data) and matcher.is_accepting()


def json_schema(schema: object, **more: object) -> dict[str, object]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, **more}}


# Fields, texts that are answers to them, texts that are not.
ASKED: list[tuple[dict[str, object], list[str], list[str]]] = [
    ({"response_format": {"type": "json_object"}}, ['{"a": [1]}', "{}"], ["[]", "x", '{"a":  1}']),
    (
        {"response_format": json_schema(POINT, strict=True, description="d")},
        ['{"x": 5}', '{"x":-5}'],
        ["{}"],
    ),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "n"}}},
        ["{}", '{"k": null}'],
        ["5", ""],
    ),
    ({"structured_outputs": {"json": POINT}}, ['{"x": 5}'], ['{"x": "5"}']),
    ({"structured_outputs": {"json": json.dumps(POINT)}}, ['{"x": 5}'], ['{"y": 5}']),
    ({"structured_outputs": {"json_object": True, "json": None}}, ["{}"], ["[]"]),
    ({"structured_outputs": {"regex": "a+b/?"}}, ["aab", "ab/"], ["b", "aabb"]),
    ({"structured_outputs": {"choice": ["yes", "no"]}}, ["yes", "no"], ["yesno", "y"]),
    ({"structured_outputs": {"grammar": 'start: "a" word\nword: /[x-z]+/'}}, ["axy"], ["a", "xy"]),
    ({"guided_json": POINT}, ['{"x": 5}'], ["{}"]),
    ({"guided_regex": r"\d{3}"}, ["123"], ["12", "1234"]),
    ({"guided_choice": ["ü", "b\x7f\n"]}, ["ü", "b\x7f\n"], ["b"]),
    ({"guided_grammar": 'start: "ok"'}, ["ok"], ["OK"]),
    ({"regex": "(foo|bar)!"}, ["foo!"], ["foo"]),
    ({"json_schema": POINT}, ['{"x": 5}'], ["[]"]),
    ({"json_schema": True}, ["5", '"x"'], ["x"]),
]


async def test_every_field_reaches_the_engine_on_both_routes() -> None:
    async with served(ScriptedEngine(says("ok"))) as s:
        for fields, good, bad in ASKED:
            for path, body in ROUTES:
                reply = await s.http.post(path, json=body | fields)
                assert reply.status_code == 200, (fields, reply.text)
                request = s.engine.requests[-1]
                grammar = request.params.grammar
                assert grammar is not None and not request.tools, fields
            for text in good:
                assert accepts(grammar, text), (fields, text)
            for text in bad:
                assert not accepts(grammar, text), (fields, text)
        for free in ({}, {"response_format": {"type": "text"}}, {"guided_choice": []}):
            assert (await s.chat(**free)).status_code == 200
            assert s.engine.requests[-1].params.grammar is None and s.engine.requests[-1].tools


FORMAT = "response_format.json_schema"
SCHEMA = f"{FORMAT}.schema"
# Fields, the field at fault, what the message has to say.
REFUSED: list[tuple[dict[str, object], str, str]] = [
    ({"response_format": {}}, "response_format.type", "required"),
    ({"response_format": {"type": "xml"}}, "response_format.type", "json_object"),
    ({"response_format": {"type": "structural_tag"}}, "response_format.type", "structural_tag"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "required"),
    ({"response_format": {"type": "json_schema", "json_schema": {}}}, f"{FORMAT}.name", "req"),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a b"}}},
        "response_format.json_schema.name",
        "letters",
    ),
    ({"response_format": json_schema(5)}, SCHEMA, "object"),
    ({"response_format": json_schema({}, strict="yes")}, "response_format.json_schema.strict", "boolean"),
    ({"structured_outputs": {}}, "structured_outputs", "one of"),
    ({"structured_outputs": {"structural_tag": "x"}}, "structured_outputs.structural_tag", "not supported"),
    ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs.choice", "Only one"),
    ({"response_format": {"type": "json_object"}, "guided_regex": "a"}, "guided_regex", "response_format"),
    ({"guided_json": {}, "json_schema": {}}, "json_schema", "guided_json"),
    ({"guided_json": '{"type'}, "guided_json", "JSON"),
    ({"guided_regex": "[a"}, "guided_regex", "unclosed"),
    ({"guided_regex": r"(a)\1"}, "guided_regex", "backreference"),
    ({"guided_regex": "(?=a)b"}, "guided_regex", "look-ahead"),
    ({"regex": 5}, "regex", "string"),
    ({"regex": "a" * 5000}, "regex", "4096"),
    ({"guided_choice": [""]}, "guided_choice", "between 1"),
    ({"guided_choice": ["a", 5]}, "guided_choice", "strings"),
    ({"structured_outputs": {"choice": []}}, "structured_outputs.choice", "at least one"),
    ({"guided_grammar": "start: nothing"}, "guided_grammar", "nothing"),
    ({"guided_grammar": "start: start"}, "guided_grammar", "no text"),
    ({"guided_grammar": "start: <|bos|>"}, "guided_grammar", "special token"),
    ({"json_schema": POINT, "ignore_eos": True}, "ignore_eos", "json_schema"),
    ({"guided_whitespace_pattern": " "}, "guided_whitespace_pattern", "not supported"),
    ({"guided_json": {"$ref": "#"}}, "guided_json", "no text"),
    ({"guided_json": {"$ref": "https://example.com/x"}}, "guided_json", "$ref"),
    ({"guided_json": {"$ref": "#/$defs/nope"}}, "guided_json", "nope"),
    ({"guided_json": {"properties": {"a/b": {"items": {"not": {}}}}}}, "guided_json", "/a~1b/items"),
    ({"guided_json": {"anyOf": [{}, {"if": {}}]}}, "guided_json", "'if'"),
    ({"guided_json": {"items": [{}]}}, "guided_json", "prefixItems"),
    ({"guided_json": {"type": "integer", "minimum": 5, "exclusiveMinimum": True}}, "guided_json", "boolean"),
    ({"guided_json": {"type": "whatever"}}, "guided_json", "whatever"),
    ({"guided_json": {"type": "string", "format": "zzz"}}, "guided_json", "zzz"),
    ({"guided_json": {"items": {"format": "unknown"}}}, "guided_json", "#/items"),
    ({"guided_json": {"type": "string", "pattern": "(?<=a)"}}, "guided_json", "look-"),
    ({"guided_json": {"type": "integer", "minimum": 2, "maximum": 1}}, "guided_json", "greater"),
    ({"guided_json": {"type": "object", "minProperties": 2}}, "guided_json", "minProperties"),
    ({"guided_json": {"oneOf": [{"type": "integer"}, {"type": "number"}]}}, "guided_json", "oneOf"),
    ({"guided_json": {"enum": [str(k) for k in range(10_001)]}}, "guided_json", "10000"),
    ({"guided_json": {"description": "x" * 300_000}}, "guided_json", "larger"),
    ({"guided_json": False}, "guided_json", "object"),
]  # fmt: skip


async def refusal(s: Served, path: str, body: dict[str, object]) -> dict[str, str]:
    reply = await s.http.post(path, json=body)
    assert reply.status_code == 400, (str(body)[:200], reply.text[:200])
    error: dict[str, str] = reply.json()["error"]
    assert error["type"] == "invalid_request_error" and len(error["message"]) < 600
    return error


async def test_what_cannot_be_kept_to_is_refused_by_name() -> None:
    async with served(ScriptedEngine(says("ok"))) as s:
        for fields, param, said in REFUSED:
            for path, body in ROUTES:
                error = await refusal(s, path, body | fields)
                assert error["param"] == param and said in error["message"], (str(fields)[:200], error)
        for keyword in ("not", "if", "then", "else", "dependentRequired", "dependentSchemas", "contains",
                        "minContains", "propertyNames", "unevaluatedProperties", "unevaluatedItems",
                        "uniqueItems", "additionalItems", "$dynamicRef", "$recursiveRef", "nullable",
                        "x-guidance", "propertyOrdering", "minLenght"):  # fmt: skip
            schema = {"type": "object", "properties": {"deep": {keyword: 1}}}
            error = await refusal(s, ROUTES[0][0], ROUTES[0][1] | {"response_format": json_schema(schema)})
            assert error["param"] == SCHEMA and error["code"] == "invalid_schema"
            assert f"'{keyword}'" in error["message"] and "#/properties/deep" in error["message"], error
        assert not s.engine.requests  # nothing was admitted


def nested(levels: int) -> str:
    return '{"items":' * levels + "{}" + "}" * levels


async def test_depth() -> None:
    compiler = GrammarCompiler()
    await compiler.compile(Constraint("f", "json_schema", nested(63)))
    for schema in (nested(64), nested(5000)):
        with pytest.raises(app.requests.constraints.RequestError) as raised:
            await compiler.compile(Constraint("f", "json_schema", schema))
        assert raised.value.code == "invalid_schema" and raised.value.param == "f"


# For every keyword that is said to be enforced: a schema with it, a text that it allows, one that it forbids.
KEPT: dict[str, tuple[dict[str, object], str, str]] = {
    "items": ({"type": "array", "items": {"type": "integer"}}, "[1,2]", '["a"]'),
    "prefixItems": ({"type": "array", "prefixItems": [{"type": "null"}]}, "[null]", "[1]"),
    "additionalProperties": (
        {"type": "object", "additionalProperties": {"type": "null"}}, '{"a":null}', '{"a":1}'),
    "anyOf": ({"anyOf": [{"type": "null"}, {"type": "boolean"}]}, "true", "1"),
    "oneOf": ({"oneOf": [{"type": "null"}, {"type": "boolean"}]}, "true", "1"),
    "allOf": ({"allOf": [{"type": "integer"}, {"minimum": 5}]}, "5", "4"),
    "properties": ({"type": "object", "properties": {"a": {"type": "null"}}}, '{"a":null}', '{"a":1}'),
    "patternProperties": (
        {"type": "object", "patternProperties": {"^a": {"type": "null"}}}, '{"ab":null}', '{"ab":1}'),
    "$defs": ({"$ref": "#/$defs/a", "$defs": {"a": {"type": "null"}}}, "null", "1"),
    "definitions": ({"$ref": "#/definitions/a", "definitions": {"a": {"type": "null"}}}, "null", "1"),
    "$ref": ({"type": "array", "items": {"$ref": "#"}}, "[[],[[]]]", "[1]"),
    "$anchor": ({"$ref": "#here", "$defs": {"a": {"$anchor": "here", "type": "null"}}}, "null", "1"),
    "type": ({"type": ["null", "integer"]}, "1", "true"),
    "const": ({"const": {"a": [1, None]}}, '{"a":[1,null]}', '{"a":[1]}'),
    "enum": ({"enum": ["a", 5]}, "5", "6"),
    "required": ({"type": "object", "required": ["a"]}, '{"a":1}', "{}"),
    "minProperties": ({"type": "object", "minProperties": 1}, '{"a":1}', "{}"),
    "maxProperties": ({"type": "object", "maxProperties": 1}, '{"a":1}', '{"a":1,"b":1}'),
    "minItems": ({"type": "array", "minItems": 2}, "[1,2]", "[1]"),
    "maxItems": ({"type": "array", "maxItems": 1}, "[1]", "[1,2]"),
    "minLength": ({"type": "string", "minLength": 2}, '"üü"', '"ü"'),
    "maxLength": ({"type": "string", "maxLength": 2}, '"üü"', '"üüü"'),
    "pattern": ({"type": "string", "pattern": "b+$"}, '"abb"', '"ba"'),
    "format": ({"type": "string", "format": "date"}, '"2024-02-29"', '"2024-13-01"'),
    "minimum": ({"type": "number", "minimum": 1.5}, "1.5", "1.4"),
    "maximum": ({"type": "integer", "maximum": -3}, "-3", "-2"),
    "exclusiveMinimum": ({"type": "integer", "exclusiveMinimum": 3}, "4", "3"),
    "exclusiveMaximum": ({"type": "number", "exclusiveMaximum": 3}, "2.9", "3"),
    "multipleOf": ({"type": "integer", "multipleOf": 7}, "49", "50"),
}  # fmt: skip


def test_every_keyword_on_the_list_is_kept_to() -> None:
    assert set(KEPT) == ENFORCED
    for keyword, (schema, good, bad) in KEPT.items():
        grammar = grammar_text(Constraint("f", "json_schema", schema))
        assert accepts(grammar, good) and not accepts(grammar, bad), keyword


FORMATTED = {
    "date-time": "2024-02-29T12:00:00Z",
    "date": "2024-02-29",
    "time": "12:30:00Z",
    "duration": "P1DT2H",
    "email": "a@example.com",
    "hostname": "example.com",
    "ipv4": "127.0.0.1",
    "ipv6": "::1",
    "uuid": "123e4567-e89b-12d3-a456-426614174000",
    "uri": "https://example.com/a?b#c",
}


def test_every_format_on_the_list_is_kept_to() -> None:
    assert set(FORMATTED) == FORMATS
    for name, good in FORMATTED.items():
        grammar = grammar_text(Constraint("f", "json_schema", {"type": "string", "format": name}))
        assert accepts(grammar, json.dumps(good)) and not accepts(grammar, '"no such thing, {}"'), name


def test_annotations_change_nothing() -> None:
    """Nor do the names of the dialect and of the schema itself."""
    schema = POINT | dict.fromkeys(ANNOTATIONS, "x") | {"$schema": "whatever", "$id": "urn:x"}
    grammar = grammar_text(Constraint("f", "json_schema", schema))
    assert accepts(grammar, '{"x": 5}') and not accepts(grammar, "{}")


def test_no_other_spelling_of_a_key_gets_around_its_schema() -> None:
    for key, other in (('a"b', r"a\u0022b"), ("é", r"\u00e9"), ("\t", r"\u0009"), ("a/b", r"a\/b")):
        schema = {"type": "object", "properties": {key: {"type": "string"}}, "additionalProperties": True}
        grammar = grammar_text(Constraint("f", "json_schema", schema))
        assert accepts(grammar, json.dumps({key: "x"}, ensure_ascii=False))
        assert not accepts(grammar, f'{{"{other}": 1}}')
        assert accepts(grammar, '{"else": 1}')


@settings(max_examples=60)
@given(st.lists(st.text(min_size=1, max_size=12), min_size=1, max_size=5))
def test_choices_are_taken_literally(texts: list[str]) -> None:
    grammar = choice_grammar(texts, "f")
    for text in texts:
        assert accepts(grammar, text)
        for other in (text[:-1], text + "x", text.swapcase()):
            assert accepts(grammar, other) == (other in texts)


HEAVY: list[dict[str, object]] = [
    {"guided_json": {"type": "integer", "multipleOf": 99991}},
    {"guided_json": {"enum": [f"value {k}" for k in range(10_000)]}},
    {"guided_json": {"allOf": [{"$ref": "#"}, {"type": "object"}]}},
    {"guided_json": {"type": "string", "pattern": "(((((a{1,100}){1,100}){1,100}){1,100}){1,100})"}},
    {"guided_regex": r"^(.*a.*){30}[^\W\d]{5,1000}$"},
    {"guided_regex": r"(\w{1,500}\s?){1,500}"},
    {"guided_json": {"type": "object", "properties": {f"p{k}": {"pattern": f"x{k}.*y"} for k in range(700)}}},
    {"guided_json": {"anyOf": [{"type": "object", "required": [f"k{k}"]} for k in range(500)]}},
    {"guided_json": {"type": "array", "minItems": 10**6, "items": {"type": "string", "minLength": 10**6}}},
]


async def test_heavy_grammars_are_served_or_refused_in_a_second_and_hold_nobody_up() -> None:
    async with served(ScriptedEngine(says("ok"))) as s:
        await s.chat(guided_regex="a")  # loads the library
        gaps: list[float] = []

        async def watch() -> None:
            while True:
                clock = FairClock()
                await asyncio.sleep(0.001)
                gaps.append(clock.seconds())

        watcher = asyncio.ensure_future(watch())
        for fields in HEAVY:
            clock = FairClock()
            reply = await s.chat(**fields)
            assert clock.seconds() < 5, str(fields)[:100]  # 0.9 s, on a machine that is free
            assert reply.status_code in (200, 400), reply.text
            assert reply.status_code == 200 or reply.json()["error"]["param"] in fields
        watcher.cancel()
        assert sorted(gaps)[-3] < 0.05, sorted(gaps)[-5:]


async def test_what_takes_too_long_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app.requests.constraints, "COMPILE_SECONDS", 0.01)
    async with served(ScriptedEngine(says("ok"))) as s:
        error = await refusal(s, ROUTES[0][0], ROUTES[0][1] | HEAVY[0])
        assert (error["code"], error["param"]) == ("grammar_too_complex", "guided_json")


async def test_a_schema_is_not_at_fault_for_the_schemas_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no thread is free, or no turn comes, that is the server's load: trying again makes sense."""
    monkeypatch.setattr(app.requests.constraints, "COMPILE_SECONDS", 0.05)
    monkeypatch.setattr(app.requests.constraints, "WAIT_SECONDS", 0.05)
    path, body = ROUTES[0]
    wanted = body | {"guided_json": POINT}
    async with served(ScriptedEngine(says("ok"))) as s:
        grammars, free = s.context.grammars, threading.Event()
        busy = [grammars._pool.submit(free.wait) for _ in range(2 * app.requests.constraints.COMPILERS)]
        replies = [await s.http.post(path, json=wanted)]
        free.set()
        for future in busy:
            future.result()
        for _ in range(app.requests.constraints.COMPILERS):
            await grammars._slots.acquire()
        replies.append(await s.http.post(path, json=wanted))
        for _ in range(app.requests.constraints.COMPILERS):
            grammars._slots.release()
        for reply in replies:
            assert (reply.status_code, reply.json()["error"]["code"]) == (503, "overloaded")
            assert reply.headers["retry-after"]
        monkeypatch.setattr(app.requests.constraints, "COMPILE_SECONDS", 5.0)
        assert (await s.http.post(path, json=wanted)).status_code == 200


async def test_many_at_once_wait_for_each_other() -> None:
    """More than may be compiled together; each gets its own answer."""
    async with served(ScriptedEngine(says("ok"), max_rows=64)) as s:
        replies: list[httpx.Response] = await asyncio.gather(
            *(s.chat(guided_regex=f"a{{{k}}}" if k % 3 else f"[{k}") for k in range(1, 30))
        )
        assert [reply.status_code for reply in replies] == [200 if k % 3 else 400 for k in range(1, 30)]
