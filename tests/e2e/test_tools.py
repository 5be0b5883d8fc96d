"""Function calls from real servers on models with random weights: what they must do, they do."""

import json
from collections.abc import Iterator

import jsonschema
import pytest
from openai import OpenAI
from openai.types.chat import ChatCompletionMessageToolCall

from tests.app.server_process import Server
from tests.e2e.conftest import start
from tests.engine import tool_templates
from tests.engine.tool_templates import CLOCK, WEATHER

ASK = [{"role": "user", "content": "Weather?"}]
TOOLS = [WEATHER, CLOCK]
SCHEMAS = {tool["function"]["name"]: tool["function"]["parameters"] for tool in TOOLS}  # type: ignore[index]
FAMILIES = {"qwen": tool_templates.qwen, "llama": tool_templates.llama, "mistral": tool_templates.mistral}


@pytest.fixture(scope="module", params=["qwen", "llama", pytest.param("mistral", marks=pytest.mark.slow)])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = FAMILIES[request.param](tmp_path_factory.mktemp("models") / request.param)
    with start(folder, "--load-format", "dummy", "--served-model-name", "tiny") as server:
        yield server


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[OpenAI]:
    url = f"http://127.0.0.1:{server.port}/v1"
    with OpenAI(base_url=url, api_key="unused", max_retries=0, timeout=60) as client:
        yield client


def valid(call: ChatCompletionMessageToolCall) -> str:
    """The name of a call whose arguments have been looked at."""
    jsonschema.validate(json.loads(call.function.arguments), SCHEMAS[call.function.name])
    return call.function.name


@pytest.mark.parametrize(
    ("choose", "names"),
    [
        ("required", {"get_weather", "clock"}),
        ({"type": "function", "function": {"name": "get_weather"}}, {"get_weather"}),
    ],
    ids=["required", "named"],
)
def test_calls_that_have_to_be(client: OpenAI, choose: object, names: set[str]) -> None:
    about = {
        "model": "tiny",
        "messages": ASK,
        "tools": TOOLS,
        "tool_choice": choose,
        "parallel_tool_calls": False,
        "n": 8,
        "seed": 3,
        "temperature": 1.0,
    }
    answer = client.chat.completions.create(**about)  # type: ignore[call-overload]
    with client.chat.completions.stream(**about) as stream:
        streamed = stream.get_final_completion()
    found = set()
    for plain, other in zip(answer.choices, streamed.choices, strict=True):
        (call,), (same,) = plain.message.tool_calls, other.message.tool_calls or []
        assert plain.message.content is None and plain.finish_reason == other.finish_reason == "tool_calls"
        assert call.function.arguments == same.function.arguments and call.id != same.id
        found |= {valid(call)}
    assert found and found <= names
    assert answer.usage == streamed.usage or streamed.usage is None


def test_the_conversation_goes_on(client: OpenAI) -> None:
    """A call, its result, and an answer that may be anything."""
    about = {"model": "tiny", "tools": TOOLS, "seed": 1, "max_tokens": 12}
    first = client.chat.completions.create(  # type: ignore[call-overload]
        **about | {"max_tokens": 200}, messages=ASK, tool_choice="required", parallel_tool_calls=False
    )
    message = first.choices[0].message
    (call,) = message.tool_calls
    result = {"role": "tool", "tool_call_id": call.id, "content": '{"degrees": 21}'}
    turns = [*ASK, message, result]
    second = client.chat.completions.create(**about, messages=turns)  # type: ignore[call-overload]
    assert second.choices[0].finish_reason in ("length", "stop")
    assert second.usage.prompt_tokens > first.usage.prompt_tokens
    assert second.usage.prompt_tokens_details.cached_tokens > 0


def test_strict_functions_hold_only_their_calls(client: OpenAI) -> None:
    strict = {"type": "function", "function": {**WEATHER["function"], "strict": True}}  # type: ignore[dict-item]
    answer = client.chat.completions.create(  # type: ignore[call-overload]
        model="tiny", messages=ASK, tools=[strict], n=4, seed=2, max_tokens=60
    )
    for choice in answer.choices:
        for call in choice.message.tool_calls or []:
            if choice.finish_reason == "tool_calls":
                valid(call)
        assert choice.message.content or choice.message.tool_calls
