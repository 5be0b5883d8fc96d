"""The grammars of tools, over the vocabularies of real-looking tokenizers."""

import json
import re
from collections.abc import Mapping

import pytest
from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from app.http.errors import RequestError
from app.http.fields import Fields
from app.requests.constraints import Constraint
from app.requests.tool_grammar import tool_constraint, with_token_ids
from app.requests.tools import ToolUse, parse_tools
from engine.grammar import _Wrapper
from engine.text import CALL_FORMATS, Tokenizer, load_tokenizer
from tests.engine import tool_templates
from tests.engine.tool_templates import CLOCK, WEATHER

GOOD = '{"place": "Bonn", "unit": "C"}'
BAD = '{"place": 1}'
MODELS = ("hermes", "hermes with special tokens", "llama3", "mistral")
TEMPLATES = {
    "hermes": tool_templates.QWEN,
    "llama3": tool_templates.LLAMA,
    "mistral": tool_templates.MISTRAL,
}


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    root = tmp_path_factory.mktemp("models")
    folders = (
        tool_templates.qwen(root / "qwen"),
        tool_templates.qwen(root / "flagged", flagged=True),
        tool_templates.llama(root / "llama"),
        tool_templates.mistral(root / "mistral"),
    )
    return {name: load_tokenizer(folder) for name, folder in zip(MODELS, folders, strict=True)}


class Model:
    """One model's tokenizer, and how it writes calls."""

    def __init__(self, name: str, tokenizers: Mapping[str, Tokenizer]) -> None:
        self.tokenizer = tokenizers[name]
        self.format = CALL_FORMATS[name.split()[0]]
        self.specials = self.tokenizer.special_tokens
        self.end = self.specials[self.tokenizer.eos or ""]

    def use(self, **body: object) -> ToolUse:
        fields = Fields({"tools": [WEATHER, CLOCK]} | body)
        use = parse_tools(fields, TEMPLATES[self.format.name], "auto")
        assert use is not None
        return use

    def written(self, *calls: tuple[str, str]) -> str:
        key = self.format.arguments
        objects = [f'{{"name": "{name}", "{key}": {arguments}}}' for name, arguments in calls]
        if self.format.name == "hermes":
            return "\n".join(f"<tool_call>\n{item}\n</tool_call>" for item in objects)
        return "; ".join(objects) if self.format.bare else f"[TOOL_CALLS] [{', '.join(objects)}]"

    def takes(self, use: ToolUse, text: str, answer: Constraint | None = None) -> bool:
        """Whether an answer may be exactly this text, its marks written as tokens."""
        ids = {self.specials[mark]: mark for mark in self.format.marks if mark in self.specials}
        grammar = with_token_ids(use, answer, ids)
        size = self.tokenizer.get_vocab_size()
        wrapper = _Wrapper(self.tokenizer, size, [self.end])
        tokenizer = LLTokenizer(wrapper, n_vocab=size, eos_token=[self.end])  # type: ignore[arg-type]
        matcher = LLMatcher(tokenizer, grammar, log_level=0, limits=LLParserLimits(verbose_errors=False))
        assert not matcher.is_error(), matcher.get_error()
        tokens: list[int] = []
        for part in re.split(f"({'|'.join(map(re.escape, self.specials))})", text):
            tokens += [self.specials[part]] if part in self.specials else self.tokenizer.encode(part)
        return matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()


@pytest.mark.parametrize("name", MODELS)
def test_what_an_answer_may_be(name: str, tokenizers: dict[str, Tokenizer]) -> None:
    model = Model(name, tokenizers)
    one, clock = model.written(("get_weather", GOOD)), model.written(("clock", "{}"))
    two = model.written(("get_weather", GOOD), ("clock", "{}"))
    bad = model.written(("get_weather", BAD))
    named = {"type": "function", "function": {"name": "clock"}}
    allowed = {"type": "allowed_tools", "mode": "required", "tools": [named]}
    strict = [{"type": "function", "function": {**WEATHER["function"], "strict": True}}, CLOCK]  # type: ignore[dict-item]
    cases: list[tuple[dict[str, object], set[str]]] = [
        ({"tool_choice": "required"}, {one, clock, two}),
        ({"tool_choice": "required", "parallel_tool_calls": False}, {one, clock}),
        ({"tool_choice": named}, {clock}),
        ({"tool_choice": allowed}, {clock}),
        ({"tools": strict}, {one, clock, two, "Hello there."}),
    ]
    for body, good in cases:
        use = model.use(**body)
        taken = {text for text in (one, clock, two, bad, "Hello there.") if model.takes(use, text)}
        assert taken == good, body
    if not model.format.bare:
        free = model.use(tools=strict)
        assert model.takes(free, "Well.\n" + two) and not model.takes(free, "Well.\n" + bad)


@pytest.mark.parametrize("name", MODELS)
def test_calls_or_an_answer_with_a_form(name: str, tokenizers: dict[str, Tokenizer]) -> None:
    model = Model(name, tokenizers)
    schema = {"type": "object", "properties": {"name": {"type": "string"}, "n": {"type": "integer"}}}
    answer = Constraint("response_format", "json_schema", schema | {"additionalProperties": False})
    use = model.use()
    for text, good in (
        ('{"n": 1}', True),
        ('{"n": "1"}', False),
        ('{"name": "clo", "n": 1}', True),
        ('{"name": "clock", "n": 1}', True),
        (model.written(("clock", "{}")), True),
        (model.written(("get_weather", BAD)), True),  # not strict: shown only
        ("Hello", False),
    ):
        assert model.takes(use, text, answer) == good, text
    for held in (use, model.use(tool_choice="required")):
        with pytest.raises(RequestError, match="together with 'tools'"):
            tool_constraint(held, Constraint("regex", "regex", "a+"))
    assert tool_constraint(use, None) is None


def test_references_stay_within_their_schema(tokenizers: dict[str, Tokenizer]) -> None:
    parameters = {
        "type": "object",
        "properties": {"at": {"$ref": "#/$defs/point"}},
        "required": ["at"],
        "additionalProperties": False,
        "description": "Where to.",
        "$defs": {
            "point": {
                "description": "x, y",
                "type": "array",
                "items": {"type": "integer"},
                "minItems": 2,
                "maxItems": 2,
            }
        },
    }
    tool = {"type": "function", "function": {"name": "go", "parameters": parameters}}
    model = Model("hermes", tokenizers)
    use = model.use(tools=[tool], tool_choice="required")
    assert model.takes(use, model.written(("go", json.dumps({"at": [1, 2]}))))
    assert not model.takes(use, model.written(("go", json.dumps({"at": [1]}))))
    constraint = tool_constraint(use, None)
    assert constraint is not None and constraint.field == "tools"
    assert isinstance(constraint.source, str) and "description" not in constraint.source


def test_parameters_may_be_called_like_keywords(tokenizers: dict[str, Tokenizer]) -> None:
    parameters = {
        "type": "object",
        "properties": {"description": {"enum": [{"title": 1}]}, "title": {"const": {"default": 2}}},
        "required": ["description", "title"],
        "additionalProperties": False,
    }
    tool = {"type": "function", "function": {"name": "f", "parameters": parameters}}
    model = Model("hermes", tokenizers)
    use = model.use(tools=[tool], tool_choice="required")
    good = {"description": {"title": 1}, "title": {"default": 2}}
    assert model.takes(use, model.written(("f", json.dumps(good))))
    assert not model.takes(use, model.written(("f", json.dumps({"title": {"default": 2}}))))
