"""/v1/responses: the chat route's answers, in the events and the body that OpenAI's client reads."""

import asyncio
import json
import random
import re

import openai
import pytest
from openai.types.responses import Response

from app.settings.http import HttpSettings
from engine.messages import EngineState, Finish, Request
from tests.app.named_events import named_events, timeless
from tests.app.scripted_engine import END, Script, ScriptedEngine, says
from tests.app.serving import Served, served
from tests.app.test_tools import ARGUMENTS, block, calling
from tests.engine.tool_templates import CLOCK, WEATHER

SAID = 'né "quotes"\n\\ and 🎉 done'
PATH = "/v1/responses"
BEGIN = ["response.created", "response.in_progress"]
MESSAGE = ["response.output_item.added", "response.content_part.added"]
MESSAGE_END = ["response.output_text.done", "response.content_part.done", "response.output_item.done"]
CALL = ["response.output_item.added"]
CALL_END = ["response.function_call_arguments.done", "response.output_item.done"]


def flat(tool: dict[str, object]) -> dict[str, object]:
    function = tool["function"]
    assert isinstance(function, dict)
    return {"type": "function", **function}


TOOLS = [flat(WEATHER), flat(CLOCK)]


def drawn(request: Request, choice: int) -> list[int]:
    """Depends on everything that a request says about its tokens."""
    about = (request.prompt, request.params)
    return [*random.Random(repr(about)).choices('aé🎉\n"', k=12).__str__().encode(), END]


async def ask(s: Served, **body: object) -> dict[str, object]:
    reply = await s.http.post(PATH, json={"input": "hi", "seed": 1} | body)
    assert reply.status_code == 200, reply.text
    return reply.json()


async def stream(s: Served, **body: object) -> list[dict[str, object]]:
    """Checks what holds of every stream."""
    reply = await s.http.post(PATH, json={"input": "hi", "seed": 1, "stream": True} | body)
    assert reply.status_code == 200, reply.text
    assert "[DONE]" not in reply.text
    found = named_events(reply.text)
    assert [event["sequence_number"] for event in found] == list(range(len(found)))
    return found


def types(found: list[dict[str, object]]) -> list[object]:
    """Of the events; deltas that follow each other are one."""
    names = [event["type"] for event in found]
    return [name for k, name in enumerate(names) if k == 0 or name != names[k - 1]]


def added_up(found: list[dict[str, object]]) -> dict[str, object]:
    """The last event's response, whose texts are those of the deltas and of the events that end items."""
    texts: dict[object, str] = {}
    done: dict[object, object] = {}
    for event in found:
        if str(event["type"]).endswith(".delta"):
            texts[event["item_id"]] = texts.get(event["item_id"], "") + str(event["delta"])
        elif event["type"] == "response.output_item.done":
            item = event["item"]
            assert isinstance(item, dict)
            done[item["id"]] = item
        elif event["type"] in ("response.output_text.done", "response.function_call_arguments.done"):
            assert texts.get(event["item_id"], "") == event.get("text", event.get("arguments"))
    last = found[-1]["response"]
    assert isinstance(last, dict)
    assert all(done[item["id"]] == item for item in last["output"])
    for item in last["output"]:
        whole = item["arguments"] if item["type"] == "function_call" else item["content"][0]["text"]
        assert texts.get(item["id"], "") == whole
    return last


def same(one: object, other: object) -> bool:
    return timeless(json.dumps(one)) == timeless(json.dumps(other))


# ---- text


async def test_events_come_in_order_and_add_up_to_the_answer() -> None:
    async with served(ScriptedEngine(says(SAID))) as s:
        found = await stream(s)
        plain = await ask(s)
    assert types(found) == [
        *BEGIN,
        *MESSAGE,
        "response.output_text.delta",
        *MESSAGE_END,
        "response.completed",
    ]
    assert sum(event["type"] == "response.output_text.delta" for event in found) == len(SAID)
    assert same(added_up(found), plain)
    assert plain["output"][0]["content"][0]["text"] == SAID  # type: ignore[index]
    assert (plain["status"], plain["store"], plain["seed"]) == ("completed", False, 1)
    usage = plain["usage"]
    assert isinstance(usage, dict)
    assert usage["output_tokens"] == len(SAID.encode()) + 1
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]


@pytest.mark.parametrize(
    ("body", "chat"),
    [
        ({}, {}),
        (
            {"temperature": 0.3, "top_p": 0.5, "max_output_tokens": 7},
            {"temperature": 0.3, "top_p": 0.5, "max_tokens": 7},
        ),
        ({"top_k": 3, "min_p": 0.1, "presence_penalty": 1, "logit_bias": {"65": 2}, "stop": "a"},) * 2,
    ],
)
async def test_answers_are_those_of_the_chat_route(body: dict[str, object], chat: dict[str, object]) -> None:
    items = [
        {"type": "message", "role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "input_text", "text": text} for text in "éx"]},
        {"id": "msg_1", "type": "message", "role": "assistant", "status": "completed",
         "content": [{"type": "output_text", "text": "ok", "annotations": [], "logprobs": []}]},
        {"role": "user", "content": "go on"},
    ]  # fmt: skip
    messages = [
        {"role": "system", "content": "In front."},
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": "éx"},
        {"role": "assistant", "content": "ok"},
        {"role": "user", "content": "go on"},
    ]
    async with served(ScriptedEngine(drawn)) as s:
        answer = await ask(s, input=items, instructions="In front.", **body)
        streamed = added_up(await stream(s, input=items, instructions="In front.", **body))
        reply = await s.http.post("/v1/chat/completions", json={"messages": messages, "seed": 1, **chat})
        first, *others = s.engine.requests
        assert all((r.prompt, r.params) == (first.prompt, first.params) for r in others)
    assert same(answer, streamed)
    choice = reply.json()["choices"][0]
    assert answer["output"][0]["content"][0]["text"] == choice["message"]["content"]  # type: ignore[index]
    assert (answer["status"] == "incomplete") == (choice["finish_reason"] == "length")


@pytest.mark.parametrize(
    ("script", "body", "text", "status"),
    [
        (says(SAID), {"max_output_tokens": 5}, 'né "', "incomplete"),
        (says(SAID), {"stop": ["and"]}, 'né "quotes"\n\\ ', "completed"),
        (says(""), {}, "", "completed"),
        (lambda r, k: [*b"ab", 0xE2, 0x9C, END], {"max_output_tokens": 3}, "ab\ufffd", "incomplete"),
    ],
)
async def test_endings(script: Script, body: dict[str, object], text: str, status: str) -> None:
    async with served(ScriptedEngine(script)) as s:
        plain, found = await ask(s, **body), await stream(s, **body)
    assert same(added_up(found), plain)
    (item,) = plain["output"]  # type: ignore[misc]
    assert (item["content"][0]["text"], item["status"], plain["status"]) == (text, status, status)
    assert found[-1]["type"] == f"response.{status}"
    reason = {"reason": "max_output_tokens"} if status == "incomplete" else None
    assert plain["incomplete_details"] == reason


async def test_both_ways_of_a_token_give_the_same_bytes() -> None:
    """With the short way from the engine to the connection, and without."""
    bodies: list[dict[str, object]] = [
        {},
        {"stop": ["do"]},
        {"stream_interval": 4},
        {"include": ["message.output_text.logprobs"], "top_logprobs": 1},
    ]
    answers: dict[bool, list[str]] = {}
    for direct in (True, False):
        async with served(ScriptedEngine(says(SAID)), direct=direct) as s:
            replies = [
                await s.http.post(PATH, json={"input": "hi", "seed": 1, "stream": True, **body})
                for body in bodies
            ]
            answers[direct] = [timeless(reply.text) for reply in replies]
    assert answers[True] == answers[False]


async def test_plain_tokens_wake_nobody_and_keep_their_numbers() -> None:
    engine = ScriptedEngine()
    async with served(engine) as s:
        task = asyncio.ensure_future(s.http.post(PATH, json={"input": "x", "stream": True}))
        await engine.until(lambda: bool(engine.requests))
        id, metrics = engine.requests[0].id, s.context.metrics
        engine.emit(id, b"0")
        while metrics.events < 1:
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        for at, token in enumerate(b'1"3', 1):
            engine.emit(id, [token])
            assert metrics.events == at + 1, "it was not written at once"
        engine.emit(id, "é".encode())
        while metrics.events < 5:
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        engine.emit(id, b"ab")  # two at once
        engine.emit(id, b"c", Finish(id, "length"))
        found = named_events((await task).text)
    assert [event["sequence_number"] for event in found] == list(range(len(found)))
    assert [event["delta"] for event in found if "delta" in event] == [*'01"3éabc']
    assert added_up(found)["output"][0]["content"][0]["text"] == '01"3éabc'  # type: ignore[index]


async def test_logprobs() -> None:
    wanted = {"include": ["message.output_text.logprobs"], "top_logprobs": 2}
    async with served(ScriptedEngine(says("aé"))) as s:
        plain, found = await ask(s, **wanted), await stream(s, **wanted)
        chat = (await s.chat(logprobs=True, top_logprobs=2, seed=1)).json()
    entries = plain["output"][0]["content"][0]["logprobs"]  # type: ignore[index]
    assert entries == chat["choices"][0]["logprobs"]["content"]
    assert same(added_up(found), plain)
    sent = [entry for event in found if "delta" in event for entry in event["logprobs"]]  # type: ignore[attr-defined]
    assert sent == entries[: len(sent)] and len(sent) == len("aé".encode())
    (done,) = [event for event in found if event["type"] == "response.output_text.done"]
    assert done["logprobs"] == entries


@pytest.mark.parametrize(
    "path, body",
    [
        (PATH, {"input": "hi"}),
        ("/v1/messages", {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 99}),
    ],
    ids=["responses", "messages"],
)
async def test_streams_can_be_resumed(path: str, body: dict[str, object]) -> None:
    about = {**body, "seed": 1, "stream": True}
    async with served(ScriptedEngine(says(SAID))) as s:
        plain = await s.http.post(path, json=about)
        kept = await s.http.post(path, json=about, headers={"X-Stream-Id": "a"})
        again = await s.http.get("/v1/streams/a", params={"from": 1})
        rest = await s.http.get("/v1/streams/a", headers={"Last-Event-ID": "6"})
    assert again.text == kept.text
    assert rest.text == kept.text[kept.text.index("id: 7\n") :]
    assert timeless(re.sub(r"id: \d+\n", "", kept.text)) == timeless(plain.text)


# ---- OpenAI's client


async def test_the_client() -> None:
    async with served(ScriptedEngine(says(SAID))) as s:
        responses = s.openai.responses
        answer = await responses.create(model="scripted", input="hi", metadata={"k": "v"}, user="u")
        assert isinstance(answer, Response)
        assert (answer.output_text, answer.status, answer.error) == (SAID, "completed", None)
        assert (answer.metadata, answer.user, answer.store) == ({"k": "v"}, "u", False)  # type: ignore[attr-defined]
        assert answer.usage is not None and answer.usage.input_tokens_details.cached_tokens == 0
        text = ""
        async for event in await responses.create(model="scripted", input="hi", stream=True):
            text += event.delta if event.type == "response.output_text.delta" else ""
        assert text == SAID
        async with responses.stream(model="scripted", input="hi") as opened:
            seen = [event.type async for event in opened]
            final = await opened.get_final_response()
        assert seen[0] == "response.created" and seen[-1] == "response.completed"
        assert final.output_text == SAID
        # What it got can be sent back as it is.
        turns = [{"role": "user", "content": "hi"}, *answer.output, {"role": "user", "content": "more"}]
        await responses.create(model="scripted", input=turns)  # type: ignore[arg-type]
        assert s.context.text.decode(s.engine.requests[-1].prompt).count(SAID) == 1
        with pytest.raises(openai.BadRequestError) as raised:
            await responses.create(model="scripted", input="hi", previous_response_id="resp_1")
        assert (raised.value.code, raised.value.param) == ("unsupported_parameter", "previous_response_id")


# ---- what is refused

BAD_SCHEMA = {"type": "json_schema", "name": "n", "schema": {"type": "x"}}
REFUSED: list[tuple[dict[str, object], str, str]] = [
    ({"input": None}, "missing_field", "input"),
    ({"input": []}, "invalid_value", "input"),
    ({"input": 5}, "invalid_type", "input"),
    ({"input": [{"role": "user"}]}, "missing_field", "input[0].content"),
    ({"input": [{"role": "tool", "content": "x"}]}, "invalid_value", "input[0].role"),
    (
        {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
        "unsupported_content_type",
        "input[0].content[0].type",
    ),
    ({"input": [{"type": "item_reference", "id": "x"}]}, "unsupported_parameter", "input[0].type"),
    (
        {"input": [{"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}]},
        "unsupported_parameter",
        "input[0].type",
    ),
    ({"conversation": "c"}, "unsupported_parameter", "conversation"),
    ({"background": True}, "unsupported_parameter", "background"),
    ({"truncation": "auto"}, "unsupported_parameter", "truncation"),
    ({"include": ["file_search_call.results"]}, "unsupported_parameter", "include[0]"),
    ({"top_logprobs": 2}, "invalid_value", "top_logprobs"),
    ({"max_tokens": 5}, "unsupported_parameter", "max_tokens"),
    ({"max_output_tokens": 0}, "out_of_range", "max_output_tokens"),
    ({"max_output_tokens": 10_000}, "context_length_exceeded", "max_output_tokens"),
    ({"n": 2}, "unsupported_parameter", "n"),
    ({"tools": [TOOLS[0]]}, "unsupported_parameter", "tools"),
    ({"tool_choice": "required"}, "unsupported_parameter", "tool_choice"),
    ({"text": {"format": {"type": "xml"}}}, "invalid_value", "text.format.type"),
    ({"text": {"format": BAD_SCHEMA}}, "invalid_schema", "text.format.schema"),
    ({"text": {"format": {"type": "json_object"}}, "ignore_eos": True}, "invalid_value", "ignore_eos"),
    ({"model": "nobody"}, "model_not_found", "model"),
    ({"stream_options": {}}, "invalid_value", "stream_options"),
    ({"input": "x" * 300}, "context_length_exceeded", "input"),
]  # fmt: skip


async def test_errors_name_their_field() -> None:
    async with served(ScriptedEngine(says("x"))) as s:
        for body, code, param in REFUSED:
            reply = await s.http.post(PATH, json={"input": "hi", **body})
            error = reply.json()["error"]
            assert (error["code"], error["param"]) == (code, param), body
            assert reply.status_code == (404 if code == "model_not_found" else 400)
        assert s.engine.requests == []
        harmless = {
            "background": False, "truncation": "disabled", "n": 1, "tools": [], "tool_choice": "auto",
            "reasoning": {"effort": "low"}, "include": ["reasoning.encrypted_content"], "store": True,
            "service_tier": "auto", "text": {"format": {"type": "text"}, "verbosity": "low"},
        }  # fmt: skip
        assert (await ask(s, **harmless))["text"] == harmless["text"]


# ---- failures


async def test_failures_in_a_stream_are_events() -> None:
    engine = ScriptedEngine()
    async with served(engine, HttpSettings(header_grace=0.0)) as s:
        for k, (code, fail) in enumerate(
            {
                "internal_error": lambda id: engine.emit(id, [], Finish(id, "error", message="broken")),
                "engine_unavailable": lambda id: engine.emit(
                    id, [], Finish(id, "error", message="gone", code="engine_unavailable")
                ),
                "server_shutdown": lambda id: s.context.lifecycle.expire(),
                "request_cancelled": lambda id: None,
            }.items()
        ):
            async with s.http.stream("POST", PATH, json={"input": "x", "stream": True}) as reply:
                await engine.until(lambda k=k: len(engine.requests) == k + 1)
                id = engine.requests[-1].id
                engine.emit(id, b"ab")
                body = ""
                async for part in reply.aiter_text():
                    body += part
                    if '"delta":"b"' in body and fail is not None:
                        fail(id)
                        fail = None
                        if code == "request_cancelled":
                            (name,) = set(re.findall(r"resp_\w+", body))
                            ended = await s.http.post(f"/v1/requests/{name}/cancel")
                            assert ended.status_code == 200
            found = named_events(body)
            assert [event["type"] for event in found[-5:]] == [*MESSAGE_END, "error", "response.failed"]
            assert [event["sequence_number"] for event in found] == list(range(len(found)))
            assert found[-2]["code"] == code and "error" not in found[-2]
            last = found[-1]["response"]
            assert isinstance(last, dict)
            assert (last["status"], last["error"]["code"]) == ("failed", code)
            (item,) = last["output"]
            assert (item["status"], item["content"][0]["text"]) == ("incomplete", "ab")
        assert engine.open_streams == 0


async def test_failures_before_the_first_token_have_a_status() -> None:
    engine = ScriptedEngine()
    async with served(engine, HttpSettings(request_timeout=0.05)) as s:
        for stream in (True, False):
            with pytest.raises(openai.APIStatusError) as late:
                await s.openai.responses.create(model="scripted", input="x", stream=stream)
            assert (late.value.status_code, late.value.code) == (504, "deadline_exceeded")
        engine.state = EngineState.DEAD
        with pytest.raises(openai.InternalServerError) as gone:
            await s.openai.responses.create(model="scripted", input="x")
        assert (gone.value.status_code, gone.value.code) == (503, "engine_unavailable")
        assert engine.open_streams == 0


# ---- tools and schemas


@pytest.mark.parametrize(
    ("text", "order"),
    [
        (block(), [*CALL, "response.function_call_arguments.delta", *CALL_END]),
        ("Hi. " + block(), [*MESSAGE, "response.output_text.delta", *MESSAGE_END, *CALL,
                            "response.function_call_arguments.delta", *CALL_END]),
        (block() + block("clock", "{}"), [*CALL, "response.function_call_arguments.delta", *CALL_END] * 2),
        ("No calls.", [*MESSAGE, "response.output_text.delta", *MESSAGE_END]),
    ],
)  # fmt: skip
async def test_calls(text: str, order: list[str]) -> None:
    async with calling(says(text)) as s:
        plain, found = await ask(s, tools=TOOLS), await stream(s, tools=TOOLS)
        chat = (await s.chat(tools=[WEATHER, CLOCK], seed=1)).json()["choices"][0]["message"]
        assert s.engine.requests[0].prompt == s.engine.requests[2].prompt
        async with s.openai.responses.stream(model="scripted", input="hi", tools=TOOLS) as opened:  # type: ignore[arg-type]
            final = await opened.get_final_response()
    assert types(found) == [*BEGIN, *order, "response.completed"]
    assert same(added_up(found), plain)
    items = [item for item in plain["output"] if item["type"] == "function_call"]  # type: ignore[attr-defined]
    assert [{"name": item["name"], "arguments": item["arguments"]} for item in items] == [
        call["function"] for call in chat.get("tool_calls", [])
    ]
    assert all(item["call_id"].startswith("call_") and item["status"] == "completed" for item in items)
    assert [item.type for item in final.output] == [item["type"] for item in plain["output"]]  # type: ignore[attr-defined]


async def test_a_call_that_breaks_off_is_text() -> None:
    broken = block(arguments='{"place": "x", oops}')
    async with calling(says(broken)) as s:
        plain, found = await ask(s, tools=TOOLS), await stream(s, tools=TOOLS)
    assert [item["type"] for item in plain["output"]] == ["message"]  # type: ignore[attr-defined]
    assert plain["output"][0]["content"][0]["text"] == broken  # type: ignore[index]
    last = found[-1]["response"]
    assert isinstance(last, dict) and same(last["output"], plain["output"])
    (ended,) = [
        event["item"]
        for event in found
        if event["type"] == "response.output_item.done" and event["item"]["type"] == "function_call"  # type: ignore[index]
    ]
    assert ended["status"] == "incomplete"  # type: ignore[index]


async def test_calls_and_their_results_go_back() -> None:
    call = {"type": "function_call", "call_id": "call_1", "name": "get_weather", "arguments": ARGUMENTS}
    result = {"type": "function_call_output", "call_id": "call_1", "output": "21"}
    function = {
        "id": "call_1",
        "type": "function",
        "function": {"name": "get_weather", "arguments": ARGUMENTS},
    }
    messages = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "Wait.", "tool_calls": [function]},
        {"role": "tool", "tool_call_id": "call_1", "content": "21"},
    ]
    items = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Wait."}, call, result]
    async with calling(says("ok")) as s:
        await ask(s, input=items, tools=TOOLS)
        await s.http.post("/v1/chat/completions", json={"messages": messages, "tools": [WEATHER, CLOCK]})
        one, other = s.engine.requests
        assert one.prompt == other.prompt
        for body, param in (
            ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
            ({"tools": [{"type": "function", "name": "a b"}]}, "tools[0].name"),
            ({"tools": [TOOLS[0], TOOLS[0]]}, "tools[1].name"),
            ({"tools": [{**TOOLS[0], "parameters": {"type": "list"}}]}, "tools[0].parameters"),
            ({"tools": TOOLS, "tool_choice": {"type": "function", "name": "x"}}, "tool_choice.name"),
            ({"input": [{**call, "arguments": "["}]}, "input[0].arguments"),
            ({"input": [{**result, "output": None}]}, "input[0].output"),
        ):
            reply = await s.http.post(PATH, json={"input": "hi", **body})
            assert (reply.status_code, reply.json()["error"]["param"]) == (400, param)


async def test_choices_and_schemas_reach_the_engine() -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"type": "integer"}},
        "required": ["a"],
        "additionalProperties": False,
    }
    format = {"type": "json_schema", "name": "n", "schema": schema}
    chat_format = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    named, both = {"type": "function", "function": {"name": "clock"}}, [WEATHER, CLOCK]
    async with calling(says('{"a": 1}')) as s:
        for mine, theirs in (
            ({"text": {"format": format}}, {"response_format": chat_format}),
            ({"text": {"format": {"type": "json_object"}}}, {"response_format": {"type": "json_object"}}),
            ({"tools": TOOLS, "tool_choice": "required"}, {"tools": both, "tool_choice": "required"}),
            (
                {"tools": TOOLS, "tool_choice": {"type": "function", "name": "clock"}},
                {"tools": both, "tool_choice": named},
            ),
        ):  # fmt: skip
            assert (await ask(s, **mine)).items() >= mine.items()
            await s.chat(seed=1, **theirs)
            one, other = s.engine.requests[-2:]
            assert one.params.grammar is not None
            assert (one.prompt, one.params.grammar) == (other.prompt, other.params.grammar)
