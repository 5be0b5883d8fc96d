"""Three routes for a conversation say the same, whatever the model writes."""

import json

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.app import test_messages, test_responses
from tests.app.scripted_engine import END
from tests.app.test_tools import block, calling
from tests.engine.tool_templates import CLOCK, WEATHER

PARTS = ["Hi. ", "\n", "é🎉", block(), block("clock", "{}"), block("none"), block()[:40], "<tool_", '"\\']
Said = tuple[str, list[tuple[str, object]]]


def of_chat(message: dict[str, object]) -> Said:
    calls = [call["function"] for call in message.get("tool_calls", [])]  # type: ignore[attr-defined]
    return str(message["content"] or ""), [(call["name"], json.loads(call["arguments"])) for call in calls]


def of_response(response: dict[str, object]) -> Said:
    items = response["output"]
    assert isinstance(items, list)
    text = "".join(item["content"][0]["text"] for item in items if item["type"] == "message")
    calls = [item for item in items if item["type"] == "function_call"]
    return text, [(call["name"], json.loads(call["arguments"])) for call in calls]


def of_message(message: dict[str, object]) -> Said:
    blocks = message["content"]
    assert isinstance(blocks, list)
    text = "".join(part["text"] for part in blocks if part["type"] == "text")
    return text, [(part["name"], part["input"]) for part in blocks if part["type"] == "tool_use"]


async def test_what_the_model_writes_is_the_same_on_every_route() -> None:
    texts: list[str] = []

    @settings(max_examples=12, database=None)
    @given(st.lists(st.sampled_from(PARTS), max_size=5))
    def collect(drawn: list[str]) -> None:
        texts.append("".join(drawn))

    collect()
    spoken = ""
    offered = {"tools": test_messages.TOOLS, "max_tokens": 2000}
    async with calling(lambda request, choice: [*spoken.encode(), END]) as s:
        for text in texts:
            spoken = text
            choice = (await s.chat(tools=[WEATHER, CLOCK], seed=1)).json()["choices"][0]
            said = of_chat(choice["message"])
            response = await test_responses.ask(s, tools=test_responses.TOOLS)
            assert of_response(response) == said
            found = await test_responses.stream(s, tools=test_responses.TOOLS)
            assert of_response(test_responses.added_up(found)) == said
            message = await test_messages.ask(s, **offered)
            assert of_message(message) == said
            assert (message["stop_reason"] == "tool_use") == (choice["finish_reason"] == "tool_calls")
            events = await test_messages.stream(s, **offered)
            streamed = "".join(
                event["delta"].get("text", "")  # type: ignore[attr-defined]
                for event in events
                if event["type"] == "content_block_delta"
            )
            assert streamed == said[0]
            if message["stop_reason"] == "tool_use":
                assert of_message(test_messages.added_up(events)) == said
            counts = {
                response["usage"]["output_tokens"],  # type: ignore[index]
                message["usage"]["output_tokens"],  # type: ignore[index]
            }
            assert counts == {len(text.encode()) + 1}
