"""/v1/responses and /v1/messages with the real engine, through the clients that their makers publish."""

import json
from collections.abc import Iterator
from typing import Literal

import anthropic
import httpx
import jsonschema
import pydantic
import pytest
from openai import OpenAI

from tests.app.server_process import Server, until
from tests.e2e.conftest import start
from tests.engine import tool_templates
from tests.engine.tool_templates import CLOCK, WEATHER

TURNS = [
    {"role": "user", "content": "Grüße! 空 🌤️"},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "Say more."},
]
SYSTEM = "Be brief."
HOW = {"temperature": 0.9, "top_p": 0.95}
MORE = {"seed": 7, "ignore_eos": True}
FUNCTION = WEATHER["function"]
SCHEMA = {
    "type": "object",
    "properties": {
        "mood": {"enum": ["good", "bad"]},
        "days": {"type": "integer", "minimum": 0, "maximum": 9},
    },
    "required": ["mood", "days"],
    "additionalProperties": False,
}


class Mood(pydantic.BaseModel):
    mood: Literal["good", "bad"]
    sunny: bool


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A chat template that knows tools, on random weights."""
    folder = tool_templates.qwen(tmp_path_factory.mktemp("models") / "qwen")
    with start(folder, "--load-format", "dummy", "--served-model-name", "tiny") as server:
        yield server


@pytest.fixture(scope="module")
def oai(server: Server) -> Iterator[OpenAI]:
    url = f"http://127.0.0.1:{server.port}/v1"
    with OpenAI(base_url=url, api_key="unused", max_retries=0, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def rival(server: Server) -> Iterator[anthropic.Anthropic]:
    url = f"http://127.0.0.1:{server.port}"
    with anthropic.Anthropic(base_url=url, api_key="unused", max_retries=0, timeout=60) as client:
        yield client


def test_three_routes_one_answer(oai: OpenAI, rival: anthropic.Anthropic) -> None:
    messages = [{"role": "system", "content": SYSTEM}, *TURNS]
    chat = oai.chat.completions.create(  # type: ignore[call-overload]
        model="tiny", messages=messages, max_tokens=24, **HOW, extra_body=MORE
    )
    text = chat.choices[0].message.content
    about = {"model": "tiny", "input": TURNS, "instructions": SYSTEM, "max_output_tokens": 24, **HOW}
    response = oai.responses.create(**about, extra_body=MORE)  # type: ignore[call-overload]
    assert text and response.output_text == text
    assert (response.status, response.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    usage = response.usage
    assert (usage.input_tokens, usage.output_tokens) == (chat.usage.prompt_tokens, 24)
    assert usage.input_tokens_details.cached_tokens > 0
    events = list(oai.responses.create(**about, extra_body=MORE, stream=True))  # type: ignore[call-overload]
    assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == text
    assert events[-1].type == "response.incomplete" and events[-1].response.output_text == text

    mine = {"model": "tiny", "messages": TURNS, "system": SYSTEM, "max_tokens": 24}
    message = rival.messages.create(**mine, extra_body=HOW | MORE)  # type: ignore[call-overload]
    assert (message.content[0].text, message.stop_reason) == (text, "max_tokens")
    with rival.messages.stream(**mine, extra_body=HOW | MORE) as stream:  # type: ignore[arg-type]
        assert "".join(stream.text_stream) == text
        final = stream.get_final_message()
    assert final.usage == message.usage
    read = message.usage.cache_read_input_tokens or 0
    counted = rival.messages.count_tokens(model="tiny", messages=TURNS, system=SYSTEM)  # type: ignore[arg-type]
    assert message.usage.input_tokens + read == counted.input_tokens == chat.usage.prompt_tokens


def test_calls_that_have_to_be(oai: OpenAI, rival: anthropic.Anthropic) -> None:
    flat = [{"type": "function", **tool["function"]} for tool in (WEATHER, CLOCK)]  # type: ignore[dict-item]
    about = {"model": "tiny", "input": "Weather?", "tools": flat, "parallel_tool_calls": False}
    choice = {"type": "function", "name": "get_weather"}
    with oai.responses.stream(**about, tool_choice=choice, extra_body={"seed": 3}) as stream:  # type: ignore[arg-type]
        response = stream.get_final_response()
    (call,) = response.output
    assert call.type == "function_call" and call.name == "get_weather"
    jsonschema.validate(json.loads(call.arguments), FUNCTION["parameters"])  # type: ignore[index]
    tools = [{"name": "get_weather", "input_schema": FUNCTION["parameters"]}]  # type: ignore[index]
    mine = {"model": "tiny", "messages": [{"role": "user", "content": "Weather?"}], "max_tokens": 300}
    choose = {"type": "any", "disable_parallel_tool_use": True}
    with rival.messages.stream(**mine, tools=tools, tool_choice=choose, extra_body={"seed": 3}) as opened:  # type: ignore[arg-type]
        message = opened.get_final_message()
    (use,) = message.content
    assert use.type == "tool_use" and message.stop_reason == "tool_use"
    jsonschema.validate(use.input, FUNCTION["parameters"])  # type: ignore[index]
    # The conversation goes on behind a result.
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "21"}
    turns = [{"role": "user", "content": "Weather?"}, *response.output, result]
    after = oai.responses.create(model="tiny", input=turns, tools=flat, max_output_tokens=5)  # type: ignore[call-overload]
    assert after.usage.input_tokens > response.usage.input_tokens  # type: ignore[union-attr]
    results = [{"type": "tool_result", "tool_use_id": use.id, "content": "21"}]
    turns = [
        *mine["messages"],
        {"role": "assistant", "content": message.content},
        {"role": "user", "content": results},
    ]
    rival.messages.create(model="tiny", max_tokens=5, messages=turns, tools=tools)  # type: ignore[arg-type]


def test_schemas(oai: OpenAI, rival: anthropic.Anthropic) -> None:
    format = {"type": "json_schema", "name": "mood", "schema": SCHEMA, "strict": True}
    response = oai.responses.create(model="tiny", input="Mood?", text={"format": format})  # type: ignore[call-overload]
    jsonschema.validate(json.loads(response.output_text), SCHEMA)
    message = rival.messages.create(
        model="tiny",
        max_tokens=100,
        messages=[{"role": "user", "content": "Mood?"}],
        output_config={"format": {"type": "json_schema", "schema": SCHEMA}},
    )
    jsonschema.validate(json.loads(message.content[0].text), SCHEMA)  # type: ignore[union-attr]
    parsed = oai.responses.parse(model="tiny", input="Mood?", text_format=Mood)
    assert isinstance(parsed.output_parsed, Mood)
    turn = {"role": "user", "content": "Mood?"}
    said = rival.messages.parse(model="tiny", max_tokens=100, messages=[turn], output_format=Mood)  # type: ignore[list-item]
    assert isinstance(said.parsed_output, Mood)


def test_leaving_frees_the_row(oai: OpenAI, rival: anthropic.Anthropic, server: Server) -> None:
    endless = {"ignore_eos": True}
    stream = oai.responses.create(model="tiny", input="x", stream=True, extra_body=endless)
    for event in stream:
        if event.type == "response.output_text.delta":
            break
    stream.close()
    with rival.messages.stream(
        model="tiny", max_tokens=3000, messages=[{"role": "user", "content": "x"}], extra_body=endless
    ) as opened:
        next(iter(opened.text_stream))

    def idle() -> bool:
        stats = httpx.get(f"http://127.0.0.1:{server.port}/stats").json()
        return stats["running"] == stats["waiting"] == stats["open_answers"] == 0

    until(idle)
