"""/v1/messages: the chat route's answers, in the events and the body that Anthropic's client reads."""

import asyncio
import json
import re

import anthropic
import pytest

from app.settings.http import Access, HttpSettings, Key
from engine.messages import EngineState, Finish
from tests.app.named_events import named_events, timeless
from tests.app.scripted_engine import END, Script, ScriptedEngine, says
from tests.app.serving import Served, served
from tests.app.test_responses import SAID, drawn, same
from tests.app.test_tools import ARGUMENTS, block, calling
from tests.engine.tool_templates import CLOCK, WEATHER

PATH = "/v1/messages"
HI = [{"role": "user", "content": "hi"}]


def theirs(tool: dict[str, object]) -> dict[str, object]:
    function = tool["function"]
    assert isinstance(function, dict)
    about = {name: function[name] for name in ("name", "description") if name in function}
    return about | {"input_schema": function["parameters"]}


TOOLS = [theirs(WEATHER), theirs(CLOCK)]


def client(s: Served) -> anthropic.AsyncAnthropic:
    return anthropic.AsyncAnthropic(base_url=s.url, api_key="none", max_retries=0)


async def ask(s: Served, **body: object) -> dict[str, object]:
    reply = await s.http.post(PATH, json={"messages": HI, "max_tokens": 100, "seed": 1} | body)
    assert reply.status_code == 200, reply.text
    return reply.json()


async def stream(s: Served, **body: object) -> list[dict[str, object]]:
    about = {"messages": HI, "max_tokens": 100, "seed": 1, "stream": True}
    reply = await s.http.post(PATH, json=about | body)
    assert reply.status_code == 200, reply.text
    assert "[DONE]" not in reply.text
    return named_events(reply.text)


def added_up(found: list[dict[str, object]]) -> dict[str, object]:
    """The message that a stream's events make, by hand; checks their order."""
    first, *middle, delta, last = found
    assert (first["type"], delta["type"], last["type"]) == ("message_start", "message_delta", "message_stop")
    message = first["message"]
    assert isinstance(message, dict) and message["content"] == [] and message["stop_reason"] is None
    blocks: list[dict[str, object]] = []
    texts: list[str] = []
    is_open = False
    for event in middle:
        if event["type"] == "content_block_start":
            assert not is_open and event["index"] == len(blocks)
            blocks.append(dict(event["content_block"]))  # type: ignore[call-overload]
            texts.append("")
            is_open = True
        elif event["type"] == "content_block_delta":
            assert is_open and event["index"] == len(blocks) - 1
            kind, text = {"text": ("text_delta", "text"), "tool_use": ("input_json_delta", "partial_json")}[
                str(blocks[-1]["type"])
            ]
            assert event["delta"]["type"] == kind  # type: ignore[index]
            texts[-1] += event["delta"][text]  # type: ignore[index]
        elif event["type"] == "content_block_stop":
            assert is_open and event["index"] == len(blocks) - 1
            is_open = False
        else:
            assert event == {"type": "ping"}
    assert not is_open
    for made, text in zip(blocks, texts, strict=True):
        made.update({"text": text} if made["type"] == "text" else {"input": json.loads(text)})
    assert isinstance(delta["delta"], dict)
    return {**message, "content": blocks, **delta["delta"], "usage": delta["usage"]}


# ---- text


async def test_events_come_in_order_and_add_up_to_the_message() -> None:
    async with served(ScriptedEngine(says(SAID))) as s:
        found, plain = await stream(s), await ask(s)
    names = [str(event["type"]) for event in found]
    assert names[:3] == ["message_start", "content_block_start", "ping"]
    assert names[3:-3] == ["content_block_delta"] * len(SAID)
    assert names[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert same(added_up(found), plain)
    assert plain["content"] == [{"type": "text", "text": SAID}]
    assert (plain["stop_reason"], plain["stop_sequence"], plain["seed"]) == ("end_turn", None, 1)


@pytest.mark.parametrize(
    ("body", "chat"),
    [
        ({"max_tokens": 100}, {"max_tokens": 100}),
        (
            {"max_tokens": 7, "temperature": 0.3, "top_k": 4},
            {"max_tokens": 7, "temperature": 0.3, "top_k": 4},
        ),
        ({"max_tokens": 99, "stop_sequences": ["a"]}, {"max_tokens": 99, "stop": ["a"]}),
    ],
)
async def test_answers_are_those_of_the_chat_route(body: dict[str, object], chat: dict[str, object]) -> None:
    system = [{"type": "text", "text": "Be "}, {"type": "text", "text": "brief.", "cache_control": {}}]
    turns = [
        {"role": "user", "content": [{"type": "text", "text": "é"}, {"type": "text", "text": "x"}]},
        {"role": "assistant", "content": "ok"},
        {"role": "user", "content": "go"},
        {"role": "user", "content": "on"},
    ]
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "éx"},
        {"role": "assistant", "content": "ok"},
        {"role": "user", "content": "go\n\non"},
    ]
    async with served(ScriptedEngine(drawn)) as s:
        answer = await ask(s, messages=turns, system=system, **body)
        streamed = added_up(await stream(s, messages=turns, system=system, **body))
        reply = await s.http.post("/v1/chat/completions", json={"messages": messages, "seed": 1, **chat})
        counted = await s.http.post(PATH + "/count_tokens", json={"messages": turns, "system": system})
        first, *others = s.engine.requests
        assert all((r.prompt, r.params) == (first.prompt, first.params) for r in others)
    assert same(answer, streamed)
    choice = reply.json()["choices"][0]
    assert "".join(part["text"] for part in answer["content"]) == choice["message"]["content"]  # type: ignore[attr-defined]
    assert counted.json() == {"input_tokens": len(first.prompt)}
    assert answer["usage"]["output_tokens"] == reply.json()["usage"]["completion_tokens"]  # type: ignore[index]


async def test_an_assistants_last_turn_is_gone_on_with() -> None:
    turns = [*HI, {"role": "assistant", "content": "The answer is"}]
    async with served(ScriptedEngine(says(" 5"))) as s:
        await ask(s, messages=turns)
        await s.http.post(
            "/v1/chat/completions",
            json={"messages": turns, "continue_final_message": True, "add_generation_prompt": False},
        )
        one, other = s.engine.requests
        assert one.prompt == other.prompt
        counted = await s.http.post(PATH + "/count_tokens", json={"messages": turns})
        assert counted.json()["input_tokens"] == len(one.prompt)


@pytest.mark.parametrize(
    ("script", "body", "text", "stop"),
    [
        (says(SAID), {"max_tokens": 5}, 'né "', ("max_tokens", None)),
        (says(SAID), {"stop_sequences": ["x", "and"]}, 'né "quotes"\n\\ ', ("stop_sequence", "and")),
        (says(SAID), {"stop_token_ids": [ord("q")]}, 'né "', ("end_turn", None)),
        (says(""), {}, "", ("end_turn", None)),
    ],
)
async def test_endings(script: Script, body: dict[str, object], text: str, stop: object) -> None:
    async with served(ScriptedEngine(script)) as s:
        plain, found = await ask(s, **body), await stream(s, **body)
    assert same(added_up(found), plain)
    assert plain["content"] == ([{"type": "text", "text": text}] if text else [])
    assert (plain["stop_reason"], plain["stop_sequence"]) == stop


async def test_both_ways_of_a_token_give_the_same_bytes() -> None:
    bodies: list[dict[str, object]] = [{}, {"stop_sequences": ["do"]}, {"stream_interval": 4}]
    answers: dict[bool, list[str]] = {}
    for direct in (True, False):
        async with served(ScriptedEngine(says(SAID)), direct=direct) as s:
            about = {"messages": HI, "max_tokens": 99, "seed": 1, "stream": True}
            replies = [await s.http.post(PATH, json=about | body) for body in bodies]
            answers[direct] = [timeless(reply.text) for reply in replies]
    assert answers[True] == answers[False]


async def test_plain_tokens_wake_nobody() -> None:
    engine = ScriptedEngine()
    async with served(engine) as s:
        about = {"messages": HI, "max_tokens": 99, "stream": True}
        task = asyncio.ensure_future(s.http.post(PATH, json=about))
        await engine.until(lambda: bool(engine.requests))
        id, metrics = engine.requests[0].id, s.context.metrics
        engine.emit(id, b"0")
        while metrics.events < 1:
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        for at, token in enumerate(b'1"3', 1):
            engine.emit(id, [token])
            assert metrics.events == at + 1, "it was not written at once"
        engine.emit(id, b"4", Finish(id, "length"))
        message = added_up(named_events((await task).text))
    assert message["content"] == [{"type": "text", "text": '01"34'}]


async def test_usage_says_what_the_cache_had() -> None:
    engine = ScriptedEngine()
    async with served(engine) as s:
        task = asyncio.ensure_future(ask(s))
        await engine.until(lambda: bool(engine.requests))
        id, prompt = engine.requests[0].id, len(engine.requests[0].prompt)
        engine.emit(id, b"x", Finish(id, "stop", cached_tokens=4))
        usage = (await task)["usage"]
    assert isinstance(usage, dict)
    assert (usage["input_tokens"], usage["cache_read_input_tokens"]) == (prompt - 4, 4)


# ---- Anthropic's client


async def test_the_client() -> None:
    async with served(ScriptedEngine(says(SAID))) as s, client(s) as c:
        about = {"model": "scripted", "max_tokens": 99, "messages": HI}
        message = await c.messages.create(**about, metadata={"user_id": "u"})  # type: ignore[call-overload]
        assert (message.content[0].text, message.stop_reason) == (SAID, "end_turn")
        assert message.id.startswith("msg_") and message._request_id.startswith("req_")
        text = ""
        async for event in await c.messages.create(**about, stream=True):  # type: ignore[call-overload]
            if event.type == "content_block_delta":
                text += event.delta.text
        assert text == SAID
        async with c.messages.stream(**about) as opened:  # type: ignore[arg-type]
            assert "".join([part async for part in opened.text_stream]) == SAID
            final = await opened.get_final_message()
        assert (final.stop_reason, final.usage) == (message.stop_reason, message.usage)
        # What it got can be sent back as it is.
        turns = [*HI, {"role": "assistant", "content": message.content}, {"role": "user", "content": "x"}]
        await c.messages.create(**about | {"messages": turns})  # type: ignore[call-overload]
        prompt = s.engine.requests[-1].prompt
        assert s.context.text.decode(prompt).count(SAID) == 1
        counted = await c.messages.count_tokens(model="scripted", messages=turns)  # type: ignore[arg-type]
        assert counted.input_tokens == len(prompt)


async def test_the_clients_errors() -> None:
    engine = ScriptedEngine()
    async with served(engine, HttpSettings(request_timeout=0.05, max_body_bytes=2000)) as s, client(s) as c:
        about = {"model": "scripted", "max_tokens": 9, "messages": HI}
        faults = [
            ({"model": "nobody"}, anthropic.NotFoundError, "not_found_error"),
            ({"extra_body": {"temperature": 1.5}}, anthropic.BadRequestError, "invalid_request_error"),
            ({"extra_body": {"messages": [{"role": "user", "content": "x" * 5000}]}},
             anthropic.RequestTooLargeError, "request_too_large"),
            ({}, anthropic.DeadlineExceededError, "timeout_error"),
        ]  # fmt: skip
        for more, kind, type in faults:
            with pytest.raises(kind) as raised:
                await c.messages.create(**about | more)  # type: ignore[call-overload]
            body = raised.value.body
            assert body["type"] == "error" and body["error"]["type"] == type, more
            assert body["request_id"] == raised.value.request_id
        engine.state = EngineState.DEAD
        with pytest.raises(anthropic.ServiceUnavailableError) as gone:
            await c.messages.create(**about)  # type: ignore[call-overload]
        assert gone.value.body["error"]["type"] == "overloaded_error"
        wrong = await s.http.get(PATH)
        assert wrong.status_code == 405 and wrong.json()["type"] == "error"


async def test_the_clients_key() -> None:
    locked = HttpSettings(access=Access(keys=(Key.of("sesame"),)))
    async with served(ScriptedEngine(says("ok")), locked) as s:
        about = {"model": "scripted", "max_tokens": 9, "messages": HI}
        async with anthropic.AsyncAnthropic(base_url=s.url, api_key="sesame", max_retries=0) as good:
            assert (await good.messages.create(**about)).stop_reason == "end_turn"  # type: ignore[call-overload]
        async with client(s) as c:
            for asked in (c.messages.create(**about), c.messages.count_tokens(model="scripted", messages=HI)):  # type: ignore[call-overload, arg-type]
                with pytest.raises(anthropic.AuthenticationError) as raised:
                    await asked
                assert raised.value.body["error"]["type"] == "authentication_error"


# ---- what is refused

BAD_SCHEMA = {"type": "json_schema", "schema": {"type": "x"}}
REFUSED: list[tuple[dict[str, object], str]] = [
    ({"messages": None}, "'messages' is required"),
    ({"messages": []}, "'messages'"),
    ({"messages": [{"role": "system", "content": "x"}]}, "'messages[0].role'"),
    ({"messages": [{"role": "user"}]}, "'messages[0].content' is required"),
    ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "'messages[0].content[0].type'"),
    (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}, {"type": "document"}]}]},
        "'messages[0].content[1].type'",
    ),
    ({"messages": [{"role": "assistant", "content": [{"type": "tool_use", "id": "a", "name": "f"}]}]},
     "'messages[0].content[0].type' is not supported"),
    ({"system": 5}, "'system'"),
    ({"max_tokens": None}, "'max_tokens' is required"),
    ({"max_tokens": 0}, "'max_tokens'"),
    ({"max_tokens": 10_000}, "'max_tokens'"),
    ({"temperature": 1.1}, "'temperature'"),
    ({"stop_sequences": "x"}, "'stop_sequences'"),
    ({"stop_sequences": [""]}, "'stop_sequences'"),
    ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "'thinking' is not supported"),
    ({"tools": [TOOLS[0]]}, "'tools' is not supported"),
    ({"tool_choice": {"type": "any"}}, "'tool_choice'"),
    ({"mcp_servers": [{}]}, "'mcp_servers'"),
    ({"output_config": {"format": BAD_SCHEMA}}, "'output_config.format.schema'"),
]  # fmt: skip


async def test_errors_name_their_field() -> None:
    async with served(ScriptedEngine(says("x"))) as s:
        for body, named in REFUSED:
            for stream in (False, True):
                about = {"messages": HI, "max_tokens": 9, "stream": stream}
                reply = await s.http.post(PATH, json=about | body)
                answer = reply.json()
                assert reply.status_code == 400 and set(answer) == {"type", "error", "request_id"}
                assert answer["error"]["type"] == "invalid_request_error"
                assert named in answer["error"]["message"], body
                assert reply.headers["request-id"] == reply.headers["x-request-id"] == answer["request_id"]
        assert s.engine.requests == []
        await ask(s, thinking={"type": "disabled"}, tools=[], tool_choice={"type": "auto"}, mcp_servers=[])


# ---- failures


async def test_failures_in_a_stream_are_events() -> None:
    engine = ScriptedEngine()
    async with served(engine) as s, client(s) as c:
        ways = {
            "The engine broke": lambda id: engine.emit(
                id, [], Finish(id, "error", message="The engine broke")
            ),
            "shut down": lambda id: s.context.lifecycle.expire(),
        }
        for k, (says_why, fail) in enumerate(ways.items()):
            about = {"model": "scripted", "max_tokens": 9, "messages": HI, "stream": True}
            asked = asyncio.ensure_future(c.messages.create(**about))  # type: ignore[call-overload]
            await engine.until(lambda k=k: len(engine.requests) == k + 1)
            id = engine.requests[-1].id
            engine.emit(id, b"a")
            text = ""
            with pytest.raises(anthropic.APIStatusError) as raised:
                async for event in await asked:
                    if event.type == "content_block_delta":
                        text += event.delta.text
                        fail(id)
            assert text == "a"
            body = raised.value.body
            assert set(body) == {"type", "error", "request_id"} and body["type"] == "error"
            assert says_why in body["error"]["message"]
            assert body["error"]["type"] == ("api_error" if k == 0 else "overloaded_error")
            assert re.fullmatch(r"req_[0-9a-f]{24}", body["request_id"])
        assert engine.open_streams == 0


# ---- tools


@pytest.mark.parametrize(
    ("text", "kinds", "stop"),
    [
        (block(), ["tool_use"], "tool_use"),
        ("Hi. " + block() + block("clock", "{}"), ["text", "tool_use", "tool_use"], "tool_use"),
        ("No calls.", ["text"], "end_turn"),
    ],
)
async def test_calls(text: str, kinds: list[str], stop: str) -> None:
    async with calling(says(text)) as s, client(s) as c:
        plain = await ask(s, tools=TOOLS, max_tokens=1000)
        found = await stream(s, tools=TOOLS, max_tokens=1000)
        chat = (await s.chat(tools=[WEATHER, CLOCK], seed=1)).json()["choices"][0]["message"]
        assert s.engine.requests[0].prompt == s.engine.requests[2].prompt
        about = {"model": "scripted", "max_tokens": 1000, "messages": HI, "tools": TOOLS}
        async with c.messages.stream(**about) as opened:  # type: ignore[arg-type]
            final = await opened.get_final_message()
        counted = await c.messages.count_tokens(model="scripted", messages=HI, tools=TOOLS)  # type: ignore[arg-type]
        assert counted.input_tokens == len(s.engine.requests[0].prompt)
    assert same(added_up(found), plain)
    content = plain["content"]
    assert isinstance(content, list)
    assert [part["type"] for part in content] == kinds and plain["stop_reason"] == stop
    calls = [part for part in content if part["type"] == "tool_use"]
    assert [(call["name"], call["input"]) for call in calls] == [
        (call["function"]["name"], json.loads(call["function"]["arguments"]))
        for call in chat.get("tool_calls", [])
    ]
    assert [part.type for part in final.content] == kinds and final.stop_reason == stop
    assert [part.input for part in final.content if part.type == "tool_use"] == [c["input"] for c in calls]


async def test_calls_that_are_none_or_were_cut() -> None:
    broken = block(arguments='{"place": "x", oops}')
    async with calling(says(broken)) as s:
        plain = await ask(s, tools=TOOLS, max_tokens=1000)
        found = await stream(s, tools=TOOLS, max_tokens=1000)
        assert plain["content"] == [{"type": "text", "text": broken}] and plain["stop_reason"] == "end_turn"
        assert found[-2]["delta"]["stop_reason"] == "end_turn"  # type: ignore[index]
        starts = [event["content_block"]["type"] for event in found if event["type"] == "content_block_start"]  # type: ignore[index]
        assert starts == ["tool_use", "text"]
    async with calling(says("Hi." + block())) as s:
        cut = await ask(s, tools=TOOLS, max_tokens=60)
        assert (cut["content"], cut["stop_reason"]) == ([{"type": "text", "text": "Hi."}], "max_tokens")


async def test_calls_and_their_results_go_back() -> None:
    arguments = json.loads(ARGUMENTS)
    function = {
        "id": "call_1",
        "type": "function",
        "function": {"name": "get_weather", "arguments": ARGUMENTS},
    }
    messages = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "Wait.", "tool_calls": [function]},
        {"role": "tool", "tool_call_id": "call_1", "content": "21"},
        {"role": "user", "content": "And?"},
    ]
    use = {"type": "tool_use", "id": "call_1", "name": "get_weather", "input": arguments}
    result = {"type": "tool_result", "tool_use_id": "call_1", "content": [{"type": "text", "text": "21"}]}
    turns = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": [{"type": "text", "text": "Wait."}, use]},
        {"role": "user", "content": [result, {"type": "text", "text": "And?"}]},
    ]
    named = {"type": "function", "function": {"name": "clock"}}
    async with calling(says("ok")) as s:
        for mine, chat in (
            ({}, {}),
            ({"tool_choice": {"type": "any"}}, {"tool_choice": "required"}),
            ({"tool_choice": {"type": "tool", "name": "clock"}}, {"tool_choice": named}),
            ({"tool_choice": {"type": "none"}}, {"tool_choice": "none"}),
        ):
            await ask(s, messages=turns, tools=TOOLS, **mine)
            body = {"messages": messages, "tools": [WEATHER, CLOCK], "seed": 1, "max_tokens": 100, **chat}
            await s.http.post("/v1/chat/completions", json=body)
            one, other = s.engine.requests[-2:]
            assert one.prompt == other.prompt
            assert (one.params.grammar is None) == (other.params.grammar is None)
        for body, named_field in (
            ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "'tools[0].type'"),
            ({"tools": [{"name": "f"}]}, "'tools[0].input_schema' is required"),
            ({"tools": TOOLS, "tool_choice": {"type": "tool", "name": "x"}}, "'tool_choice.name'"),
            ({"messages": [{"role": "user", "content": [use]}]}, "'messages[0].content[0].type'"),
            ({"messages": [{"role": "user", "content": [{**result, "tool_use_id": None}]}]}, "tool_use_id"),
        ):
            reply = await s.http.post(PATH, json={"messages": HI, "max_tokens": 9} | body)
            assert reply.status_code == 400 and named_field in reply.json()["error"]["message"]


async def test_only_one_call_and_schemas() -> None:
    schema = {"type": "object", "properties": {}, "additionalProperties": False}
    async with calling(lambda r, k: [*(block() + block("clock", "{}")).encode(), END]) as s:
        choice = {"type": "auto", "disable_parallel_tool_use": True}
        plain = await ask(s, tools=TOOLS, tool_choice=choice)
        assert [part["type"] for part in plain["content"]] == ["tool_use"]  # type: ignore[attr-defined]
        await ask(s, output_config={"format": {"type": "json_schema", "schema": schema}, "effort": "low"})
        format = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
        await s.chat(response_format=format, seed=1)
        one, other = s.engine.requests[-2:]
        assert one.params.grammar == other.params.grammar is not None
