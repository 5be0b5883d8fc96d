"""Conversations with tools, against plain jinja and the `tokenizers` library."""

import json
from pathlib import Path

import jinja2
import pytest
import tokenizers

from engine.text import ChatMessage, TemplateError, ToolCall, load_chat_template, load_tokenizer
from tests.engine import tool_templates
from tests.engine.test_hugging_face import llama3
from tests.engine.tool_templates import CLOCK, WEATHER

TOOLS = [WEATHER, CLOCK]
ARGUMENTS = {"place": 'Köln "am" Rhein', "days": [1, 2.5, None, True], "more": {"x y": {}}}
TURNS = [
    ChatMessage("user", "Weather?"),
    ChatMessage("assistant", "", (ToolCall("abcdefgh1", "get_weather", ARGUMENTS),)),
    ChatMessage("tool", '{"degrees": 21}', tool_call_id="abcdefgh1", name="get_weather"),
    ChatMessage("assistant", "21 degrees."),
    ChatMessage("user", "And the time?"),
]
SHOWN = [
    {"role": "user", "content": "Weather?"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {
                "id": "abcdefgh1",
                "type": "function",
                "function": {"name": "get_weather", "arguments": ARGUMENTS},
            }
        ],
    },
    {"role": "tool", "content": '{"degrees": 21}', "tool_call_id": "abcdefgh1", "name": "get_weather"},
    {"role": "assistant", "content": "21 degrees."},
    {"role": "user", "content": "And the time?"},
]


def refuse(message: str) -> None:
    raise AssertionError(message)


@pytest.mark.parametrize("name", ["qwen", "llama", "mistral"])
@pytest.mark.parametrize("tools", [[], TOOLS], ids=["none", "two"])
def test_as_the_libraries_have_it(name: str, tools: list[dict[str, object]], tmp_path: Path) -> None:
    folder = getattr(tool_templates, name)(tmp_path / name)
    tokenizer = load_tokenizer(folder)
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = lambda value, indent=None: json.dumps(
        value, ensure_ascii=False, indent=indent
    )
    environment.globals["raise_exception"] = refuse
    source = environment.from_string((folder / "chat_template.jinja").read_text())
    text = source.render(
        messages=SHOWN,
        tools=tools or None,
        add_generation_prompt=True,
        bos_token=tokenizer.bos,
        eos_token=tokenizer.eos,
    )
    assert ("get_weather" in text) and ("clock" in text) == bool(tools)
    library = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    rendered = load_chat_template(folder, tokenizer).render(TURNS, tools=tools)
    assert rendered == library.encode(text, add_special_tokens=False).ids


def test_a_template_without_tools_refuses(tmp_path: Path) -> None:
    folder = llama3(tmp_path / "plain")
    template = load_chat_template(folder, load_tokenizer(folder))
    assert template.tool_source is None
    for turns, tools in ((TURNS[:1], TOOLS), (TURNS[:2], []), (TURNS[2:3], [])):
        with pytest.raises(TemplateError, match="chat template has no"):
            template.render(turns, tools=tools)


def test_a_runaway_template_is_stopped(tmp_path: Path) -> None:
    folder = tool_templates.qwen(tmp_path / "runaway")
    endless = "{% for a in range(99999) %}{% for b in range(99999) %}{{ tools }}{% endfor %}{% endfor %}"
    (folder / "chat_template.jinja").write_text(endless)
    with pytest.raises(TemplateError, match="exceeds"):
        load_chat_template(folder, load_tokenizer(folder)).render(TURNS, tools=TOOLS)
