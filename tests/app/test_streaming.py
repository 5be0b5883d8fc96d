"""The order and the bytes of a stream, over a real server."""

import asyncio
import gc
import json
import tracemalloc
from time import perf_counter

import httpx
import openai
import pytest

from app.settings.http import HttpSettings
from engine.messages import EngineState, Finish
from tests.app.scripted_engine import BOS, END, PYTHON_START, ScriptedEngine, says
from tests.app.serving import Served, events, served, stream_text


async def test_chat_stream_order() -> None:
    async with served(ScriptedEngine(says("Hi ✓"))) as s:
        reply = await s.chat(stream=True, stream_options={"include_usage": True}, seed=7)
        assert reply.status_code == 200
        assert reply.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert reply.headers["cache-control"] == "no-store"
        assert reply.headers["x-request-id"].startswith("req_")
        *chunks, usage, done = events(reply.text)
        assert done == "[DONE]"
        assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
        assert [c["choices"][0]["delta"].get("content") for c in chunks[1:]] == ["H", "i", " ", "✓", ""]
        assert [c["choices"][0]["finish_reason"] for c in chunks] == [None] * 5 + ["stop"]
        assert all(c["usage"] is None for c in chunks)
        assert usage["choices"] == []
        prompt = len(s.engine.requests[0].prompt)
        assert usage["usage"]["prompt_tokens"] == prompt
        assert usage["usage"]["completion_tokens"] == 7  # H, i, space, three bytes, the end
        assert usage["usage"]["total_tokens"] == prompt + 7
        assert usage["seed"] == 7 and s.engine.requests[0].params.seed == 7
        assert len({(c["id"], c["created"], c["model"]) for c in [*chunks, usage]}) == 1
        assert s.engine.aborted == []


async def test_completion_stream_has_one_event_per_token() -> None:
    async with served(ScriptedEngine(says("abcdef"))) as s:
        reply = await s.complete(prompt=[1, 2, 3], max_tokens=4, stream=True)
        chunks = events(reply.text)
        assert [c["choices"][0]["text"] for c in chunks[:-1]] == ["a", "b", "c", "d"]
        assert chunks[-2]["choices"][0]["finish_reason"] == "length"
        assert chunks[0]["object"] == "text_completion"


async def test_plain_answer_equals_the_stream() -> None:
    async with served(ScriptedEngine(says("naïve 🎉 text"))) as s:
        for stops in ([], ["te"], ["🎉"], ["zzz", " t"]):
            plain = (await s.chat(stop=stops)).json()["choices"][0]
            streamed = await s.chat(stop=stops, stream=True)
            assert stream_text(streamed.text) == plain["message"]["content"]
            last = [c for c in events(streamed.text) if isinstance(c, dict)][-1]["choices"][0]
            assert last["finish_reason"] == plain["finish_reason"] == "stop"
            assert last["stop_reason"] == plain["stop_reason"]


@pytest.mark.parametrize(
    ("stop", "include", "text", "reason", "tokens"),
    [
        (["lo w"], False, "hel", "lo w", 7),
        (["lo w"], True, "hello w", "lo w", 7),
        (["hello"], False, "", "hello", 5),
        (["wx", "world"], False, "hello ", "world", 11),
        (["worlds"], False, "hello world", None, 12),
        (["é"], False, "hello world", None, 12),
    ],
)
async def test_stop_strings(
    stop: list[str], include: bool, text: str, reason: str | None, tokens: int
) -> None:
    async with served(ScriptedEngine(says("hello world"))) as s:
        for stream in (False, True):
            reply = await s.complete(
                prompt="x",
                stop=stop,
                include_stop_str_in_output=include,
                stream=stream,
                return_token_ids=True,
                **({"stream_options": {"include_usage": True}} if stream else {}),
            )
            if stream:
                *chunks, usage, _ = events(reply.text)
                assert stream_text(reply.text) == text
                assert [t for c in chunks for t in c["choices"][0]["token_ids"]] == [*b"hello world", END][
                    :tokens
                ]
                assert chunks[-1]["choices"][0]["stop_reason"] == reason
                assert usage["usage"]["completion_tokens"] == tokens
            else:
                body = reply.json()
                choice = body["choices"][0]
                assert (choice["text"], choice["stop_reason"], choice["finish_reason"]) == (
                    text,
                    reason,
                    "stop",
                )
                assert choice["token_ids"] == [*b"hello world", END][:tokens]
                assert body["usage"]["completion_tokens"] == tokens
            assert s.engine.open_streams == 0
        assert len(s.engine.aborted) == (2 if reason else 0)  # the engine is told at once


async def test_min_tokens_mutes_stop_strings() -> None:
    async with served(ScriptedEngine(says("abab"))) as s:
        reply = await s.complete(prompt="x", stop="b", min_tokens=2)
        assert reply.json()["choices"][0]["text"] == "aba"


async def test_stop_token_ids() -> None:
    async with served(ScriptedEngine(says("one.two"))) as s:
        body = (await s.complete(prompt="x", stop_token_ids=[ord(".")])).json()
        assert body["choices"][0]["text"] == "one"
        assert body["choices"][0]["stop_reason"] == ord(".")
        assert body["usage"]["completion_tokens"] == 4
        shown = await s.complete(prompt="x", stop_token_ids=[ord(".")], include_stop_str_in_output=True)
        assert shown.json()["choices"][0]["text"] == "one."


async def test_a_dangling_character_becomes_a_replacement_and_loses_no_token() -> None:
    async with served(ScriptedEngine(lambda r, k: [*b"ok", *"✓".encode()[:2]])) as s:
        reply = await s.complete(prompt="x", max_tokens=4, stream=True, return_token_ids=True)
        assert stream_text(reply.text) == "ok\ufffd"
        chunks = [c["choices"][0] for c in events(reply.text) if isinstance(c, dict)]
        assert [t for c in chunks for t in c["token_ids"]] == [*b"ok\xe2\x9c"]
        assert chunks[-1]["finish_reason"] == "length"


async def test_many_tokens_at_once_are_one_write_and_still_one_event_each() -> None:
    engine = ScriptedEngine()
    async with served(engine) as s, asyncio.TaskGroup() as group:
        task = group.create_task(s.complete(prompt="x", stream=True))
        await engine.until(lambda: bool(engine.requests))
        id = engine.requests[0].id
        engine.emit(id, b"0123456789", Finish(id, "length"))
        reply = await task
        assert len(events(reply.text)) == 11
        assert s.context.metrics.events == 10 and s.context.metrics.writes == 1


async def test_a_reader_far_behind_gets_merged_events() -> None:
    engine = ScriptedEngine()
    async with served(engine) as s, asyncio.TaskGroup() as group:
        task = group.create_task(s.complete(prompt="x", stream=True))
        await engine.until(lambda: bool(engine.requests))
        id = engine.requests[0].id
        engine.emit(id, b"z" * 200, Finish(id, "length"))
        reply = await task
        assert stream_text(reply.text) == "z" * 200
        assert len(events(reply.text)) == 2


async def test_pings_only_when_silent_and_never_a_blank_line() -> None:
    engine = ScriptedEngine()
    settings = HttpSettings(header_grace=0.01, ping_interval=0.05)
    async with served(engine, settings) as s:
        request = s.http.build_request("POST", "/v1/completions", json={"prompt": "x", "stream": True})
        reply = await s.http.send(request, stream=True)
        lines = reply.aiter_lines()
        assert await anext(lines) == ": ping"
        assert await anext(lines) == ": ping"
        id = engine.requests[0].id
        engine.emit(id, b"a", Finish(id, "length"))
        rest = [line async for line in lines]
        data = [line for line in rest if not line.startswith(":")]
        assert data[0].startswith("data: {") and data[1:] == ["", "data: [DONE]", ""]
        await reply.aclose()


async def lines_while_tokens_come(
    s: Served, reply: httpx.Response, id: int, token: bytes, lines: int, seconds: float
) -> tuple[list[str], float]:
    """The next so many lines that are not empty, while a token comes every few milliseconds, for so many
    seconds at most; and the longest time between two tokens.
    """
    found: list[str] = []

    async def read() -> None:
        async for line in reply.aiter_lines():
            if line:
                found.append(line)
            if len(found) == lines:
                return

    reading = asyncio.ensure_future(read())
    began = last = perf_counter()
    longest = 0.0
    while not reading.done() and last - began < seconds:
        s.engine.emit(id, token)
        await asyncio.sleep(0.005)
        longest, last = max(longest, perf_counter() - last), perf_counter()
    reading.cancel()
    await asyncio.wait({reading})
    return found, longest


@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize("n", [1, 2])
async def test_a_stream_is_silent_while_its_tokens_have_no_text(direct: bool, n: int) -> None:
    """A calculation that goes on and on is not sent, so that something else must keep the connection."""
    engine = ScriptedEngine()
    async with served(engine, HttpSettings(ping_interval=0.03), direct=direct) as s:
        body = {"prompt": "x", "stream": True, "n": n}
        sending = asyncio.ensure_future(
            s.http.send(s.http.build_request("POST", "/v1/completions", json=body), stream=True)
        )
        await engine.until(lambda: bool(engine.requests))
        id = engine.requests[0].id
        engine.emit(id, b"a")
        engine.emit(id, [PYTHON_START])
        reply = await sending
        lines, _ = await lines_while_tokens_come(s, reply, id, b"1", 3, 5)
        assert lines[0].startswith("data: ") and lines[1:] == [": ping"] * 2
        await reply.aclose()
        await engine.until(lambda: engine.aborted == [id + k for k in range(n)])  # within the block


async def test_no_pings_while_text_comes() -> None:
    """Also when lanes write it, of which the stream's task knows nothing."""
    engine = ScriptedEngine()
    async with served(engine, HttpSettings(ping_interval=0.2)) as s:
        body = {"prompt": "x", "stream": True}
        sending = asyncio.ensure_future(
            s.http.send(s.http.build_request("POST", "/v1/completions", json=body), stream=True)
        )
        await engine.until(lambda: bool(engine.requests))
        id = engine.requests[0].id
        engine.emit(id, b"a")
        reply = await sending
        lines, longest = await lines_while_tokens_come(s, reply, id, b"b", 10**6, 0.5)
        assert len(lines) > 2
        assert longest > 0.1 or not any(line.startswith(":") for line in lines)
        await reply.aclose()


async def test_errors_before_the_first_token_have_a_status() -> None:
    engine = ScriptedEngine()
    async with served(engine) as s:
        for dead, status, code in ((False, 500, "internal_error"), (True, 503, "engine_unavailable")):
            for stream in (True, False):
                engine.state = EngineState.READY
                count = len(engine.requests)
                task = asyncio.ensure_future(s.chat(stream=stream))
                await engine.until(lambda count=count: len(engine.requests) > count)
                engine.state = EngineState.DEAD if dead else EngineState.READY
                id = engine.requests[-1].id
                engine.emit(id, [], Finish(id, "error", message="it broke"))
                reply = await task
                assert reply.status_code == status
                error = reply.json()["error"]
                assert (error["code"], error["message"]) == (code, "it broke")
                assert ("retry-after" in reply.headers) == dead
                assert (reply.headers.get("x-should-retry") == "false") != dead


async def test_an_error_after_the_headers_is_an_event_and_done() -> None:
    engine = ScriptedEngine()
    async with served(engine) as s:
        body = {"messages": [{"role": "user", "content": "hi"}], "stream": True}
        for path, done in (("/v1/chat/completions", ["[DONE]"]), ("/chat/completions", [])):
            engine.state = EngineState.READY
            count = len(engine.requests)
            request = s.http.build_request("POST", path, json=body)
            sending = asyncio.ensure_future(s.http.send(request, stream=True))
            await engine.until(lambda count=count: len(engine.requests) > count)
            id = engine.requests[-1].id
            engine.emit(id, b"a")
            reply = await sending
            assert reply.status_code == 200
            engine.state = EngineState.DEAD
            engine.emit(id, [], Finish(id, "error", message='a "quoted" reason'))
            received = events((await reply.aread()).decode())
            error = received[-1 - len(done)]
            assert received[len(received) - len(done) :] == done
            assert error["error"]["code"] == "engine_unavailable"
            assert error["error"]["message"] == 'a "quoted" reason'


@pytest.mark.parametrize("n", [1, 2])
async def test_text_that_arrives_with_an_error_is_sent_before_it(n: int) -> None:
    engine = ScriptedEngine()
    async with served(engine) as s:
        task = asyncio.ensure_future(s.complete(prompt="x", stream=True, n=n))
        await engine.until(lambda: bool(engine.requests))
        id = engine.requests[0].id
        engine.emit(id, b"ab", Finish(id, "error", message="it broke"))
        reply = await task
        *_, error, done = events(reply.text)
        assert stream_text(reply.text) == "ab"
        assert (error["error"]["message"], done) == ("it broke", "[DONE]")
        assert engine.open_streams == 0
        assert dict(s.context.metrics.finishes) == {"stop": 0, "length": 0, "abort": n - 1, "error": 1}


async def test_n_choices_stream_in_ascending_order() -> None:
    async with served(ScriptedEngine(lambda r, k: [*f"choice {k}".encode(), END])) as s:
        reply = await s.chat(n=3, stream=True)
        chunks = [c for c in events(reply.text) if isinstance(c, dict)]
        assert [c["choices"][0]["index"] for c in chunks[:3]] == [0, 1, 2]
        assert all("role" in c["choices"][0]["delta"] for c in chunks[:3])
        assert all("role" not in c["choices"][0]["delta"] for c in chunks[3:])
        for k in range(3):
            assert stream_text(reply.text, k) == f"choice {k}"
        plain = (await s.chat(n=3)).json()
        assert [c["message"]["content"] for c in plain["choices"]] == ["choice 0", "choice 1", "choice 2"]
        assert plain["usage"]["prompt_tokens"] == len(s.engine.requests[0].prompt)


async def test_choice_index_is_prompt_times_n_plus_choice() -> None:
    async with served(ScriptedEngine(lambda r, k: [r.prompt[-1], 48 + k, END])) as s:
        body = (await s.complete(prompt=[[65], [66]], n=2)).json()
        assert [(c["index"], c["text"]) for c in body["choices"]] == [
            (0, "A0"),
            (1, "A1"),
            (2, "B0"),
            (3, "B1"),
        ]
        assert body["usage"]["prompt_tokens"] == 2
        reply = await s.complete(prompt=["A", "B"], n=2, stream=True, echo=True)
        assert [stream_text(reply.text, k) for k in range(4)] == ["AA0", "AA1", "BB0", "BB1"]
        assert s.engine.requests[-1].prompt == [BOS, 66]


async def test_continuous_usage() -> None:
    async with served(ScriptedEngine(says("abc"))) as s:
        reply = await s.complete(
            prompt=[1], stream=True, stream_options={"include_usage": True, "continuous_usage_stats": True}
        )
        chunks = [c for c in events(reply.text) if isinstance(c, dict)]
        assert [c["usage"]["completion_tokens"] for c in chunks] == [1, 2, 3, 4, 4]


@pytest.mark.parametrize("stop", [None, "b"])
async def test_cached_tokens_are_those_of_the_first_choice_and_untold_where_unknown(stop: str | None) -> None:
    engine = ScriptedEngine()
    async with served(engine) as s:
        task = asyncio.ensure_future(s.complete(prompt=[list(range(40))], n=2, stop=stop))
        await engine.until(lambda: bool(engine.requests))
        first = engine.requests[0].id
        for id in (first, first + 1):
            engine.emit(id, b"a")
            engine.emit(id, b"b")
            if stop:
                await engine.until(lambda id=id: id in engine.aborted)
            # The second choice finds in the cache what the first one left there.
            engine.emit(id, b"c", Finish(id, "length", cached_tokens=16 if id == first else 32))
        usage = (await task).json()["usage"]
        assert usage["prompt_tokens"] == 40
        assert usage["prompt_tokens_details"] == ({} if stop else {"cached_tokens": 16})


async def test_nanochat_route() -> None:
    async with served(ScriptedEngine(lambda r, k: [PYTHON_START, *"né".encode(), END])) as s:
        body = {"messages": [{"role": "user", "content": "hi"}]}
        reply = await s.http.post("/chat/completions", json=body)
        assert reply.headers["content-type"].startswith("text/event-stream")
        assert reply.text == (
            'data: {"token": "<|python_start|>", "gpu": 0}\n\n'
            'data: {"token": "n", "gpu": 0}\n\ndata: {"token": "é", "gpu": 0}\n\ndata: {"done": true}\n\n'
        )
        params = s.engine.requests[0].params
        room = 256 - len(s.engine.requests[0].prompt)
        assert (params.temperature, params.top_k, params.max_tokens) == (0.8, 50, room)
        assert s.engine.requests[0].tools


async def test_openai_client() -> None:
    async with served(ScriptedEngine(says("Hello there"))) as s:
        client = s.openai
        messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}]
        answer = await client.chat.completions.create(model="scripted", messages=messages)
        assert answer.choices[0].message.content == "Hello there"
        assert answer.usage is not None and answer.usage.completion_tokens == 12
        parts = []
        async for chunk in await client.chat.completions.create(
            model="scripted", messages=messages, stream=True, n=2, stream_options={"include_usage": True}
        ):
            parts += [c.delta.content or "" for c in chunk.choices if c.index == 1]
        assert "".join(parts) == "Hello there"
        async with client.chat.completions.stream(
            model="scripted", messages=messages, n=2, logprobs=True, top_logprobs=2
        ) as stream:
            async for _ in stream:
                pass
            final = await stream.get_final_completion()
        assert [c.message.content for c in final.choices] == ["Hello there"] * 2
        assert final.choices[0].logprobs is not None
        content = final.choices[0].logprobs.content
        assert content is not None
        assert b"".join(bytes(item.bytes or []) for item in content).startswith(b"Hello there")
        text = await client.completions.create(model="scripted", prompt="x", logprobs=1)
        assert text.choices[0].text == "Hello there"
        with pytest.raises(openai.BadRequestError) as bad:
            await client.chat.completions.create(model="scripted", messages=messages, temperature=3)
        assert (bad.value.param, bad.value.code) == ("temperature", "out_of_range")
        with pytest.raises(openai.NotFoundError):
            await client.chat.completions.create(model="other", messages=messages)
        assert [m.id async for m in client.models.list()] == ["scripted"]
        s.engine.state = EngineState.DEAD
        with pytest.raises(openai.InternalServerError):
            await client.chat.completions.create(model="scripted", messages=messages)


async def test_an_open_stream_does_not_keep_what_was_sent() -> None:
    """A prompt that was cut to a few tokens can be megabytes of text, and its stream can be open for long."""
    size, count = 400_000, 4
    connections: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
    engine = ScriptedEngine()
    async with served(engine) as s:
        tracemalloc.start()
        try:
            for k in range(count + 1):
                if k == 1:  # the first one warms up whatever is made once
                    before, _ = tracemalloc.get_traced_memory()
                body = {"prompt": "x" * size, "truncate_prompt_tokens": 4, "stream": True, "max_tokens": 2}
                data = json.dumps(body).encode()
                head = (
                    "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                )
                reader, writer = await asyncio.open_connection("127.0.0.1", s.port)
                writer.write(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
                del body, data
                connections.append((reader, writer))
                await engine.until(lambda k=k: len(engine.requests) == k + 1)
                engine.emit(engine.requests[-1].id, b"a")
                await asyncio.sleep(0)
            gc.collect()
            after, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert engine.open_streams == count + 1
        for _, writer in connections:
            writer.close()
    assert after - before < size
