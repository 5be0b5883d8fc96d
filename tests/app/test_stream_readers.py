"""One stream, read by everybody's reader: the same text in the same order, however the network cuts it."""

import itertools
import json
import random
from collections.abc import Iterator

import aiohttp
import httpx_sse
import pytest
from openai._streaming import SSEDecoder
from openai.types import Completion
from openai.types.chat import ChatCompletionChunk

from app.settings.http import HttpSettings
from tests.app.scripted_engine import END, ScriptedEngine, byte_tokenizer, says
from tests.app.serving import Served, events, served

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
AWKWARD = 'grüße 🌤️ "quotes" \\ \u2028 \u0085 \n\n data: [DONE]\n\n: ping\n'
USAGE = {"stream": True, "stream_options": {"include_usage": True}}


def bodies(draw: random.Random) -> dict[str, object]:
    """Fields that change what events hold."""
    body: dict[str, object] = dict(USAGE) if draw.random() < 0.5 else {"stream": True}
    if draw.random() < 0.5:
        body["n"] = draw.randint(1, 3)
    if draw.random() < 0.3:
        body["return_token_ids"] = True
    if draw.random() < 0.3:
        body["stream_interval"] = draw.randint(1, 9)
    return body


def check_order(frames: list[object], chat: bool, n: int, usage: bool) -> None:
    """The order that strict clients rely on."""
    assert frames.pop() == "[DONE]" and "[DONE]" not in frames
    chunks = [frame for frame in frames if isinstance(frame, dict)]
    assert len({(c["id"], c["created"], c["model"], c["object"]) for c in chunks}) == 1
    if usage:
        last = chunks.pop()
        assert last["choices"] == [] and last["usage"]["completion_tokens"] > 0 and last["system_fingerprint"]
        assert all(chunk["usage"] is None for chunk in chunks)
    assert all(len(chunk["choices"]) == 1 for chunk in chunks)
    choices = [chunk["choices"][0] for chunk in chunks]
    if chat:
        opening, choices = choices[:n], choices[n:]
        assert [choice["index"] for choice in opening] == list(range(n))
        assert all(choice["delta"] == {"role": "assistant", "content": ""} for choice in opening)
        assert not any("role" in choice["delta"] for choice in choices)
    for index in range(n):
        reasons = [choice["finish_reason"] for choice in choices if choice["index"] == index]
        assert reasons[-1] == "stop" and set(reasons[:-1]) <= {None}


@pytest.mark.parametrize("direct", [True, False], ids=["lanes", "send"])
async def test_order_and_framing(direct: bool) -> None:
    draw = random.Random(5)
    engine = ScriptedEngine(says(AWKWARD))
    async with served(engine, direct=direct) as s:
        for path, prompt in (
            (CHAT, {"messages": [{"role": "user", "content": "x"}]}),
            (TEXT, {"prompt": "x"}),
        ):
            for _ in range(12):
                body = {**prompt, **bodies(draw)}
                reply = await s.http.post(path, json=body)
                assert reply.headers["content-type"] == "text/event-stream; charset=utf-8"
                assert reply.headers["cache-control"] == "no-store"
                assert "content-length" not in reply.headers and "content-encoding" not in reply.headers
                n = body.get("n", 1)
                assert isinstance(n, int)
                check_order(events(reply.text), path == CHAT, n, "stream_options" in body)


async def raw_aiohttp(s: Served, body: dict[str, object]) -> bytes:
    """Chunk by chunk as it came."""
    async with aiohttp.ClientSession() as session, session.post(s.url + CHAT, json=body) as reply:
        return b"".join([data async for data, _ in reply.content.iter_chunks()])


def texts(data: Iterator[str]) -> str:
    chunks = [json.loads(item) for item in itertools.takewhile(lambda item: item != "[DONE]", data)]
    return "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks)


async def test_readers_agree_however_the_stream_is_cut() -> None:
    draw = random.Random(9)
    async with served(ScriptedEngine(says(AWKWARD)), HttpSettings(ping_interval=0.001)) as s:
        body: dict[str, object] = {"messages": [{"role": "user", "content": "x"}], "stream": True}
        raw = await raw_aiohttp(s, body)

        def pieces() -> Iterator[list[bytes]]:
            yield [raw[k : k + 1] for k in range(len(raw))]
            for _ in range(10):
                cuts = sorted(draw.sample(range(1, len(raw)), draw.randint(1, 60)))
                yield [raw[a:b] for a, b in itertools.pairwise([0, *cuts, len(raw)])]

        for cut in pieces():
            decoded = [event.data for event in SSEDecoder().iter_bytes(iter(cut))]
            assert texts(iter(decoded)) == AWKWARD and decoded[-1] == "[DONE]"
            for item in decoded[:-1]:
                ChatCompletionChunk.model_validate_json(item, strict=True)
        async with httpx_sse.aconnect_sse(s.http, "POST", CHAT, json=body) as source:
            seen = [event.data async for event in source.aiter_sse()]
        assert texts(iter(seen)) == AWKWARD and seen[-1] == "[DONE]"
        for line in raw.decode().split("\n"):
            assert not line or line.startswith(("data: {", "data: [DONE]", ":"))
        stream = await s.openai.completions.create(model="scripted", prompt="x", stream=True)
        parts = [chunk async for chunk in stream]
        assert "".join(part.choices[0].text for part in parts) == AWKWARD
        assert all(isinstance(part, Completion) for part in parts)


async def test_openais_helper_takes_every_choice_in_order() -> None:
    async with served(ScriptedEngine(says(AWKWARD))) as s:
        helper = s.openai.chat.completions.stream(
            model="scripted",
            messages=[{"role": "user", "content": "x"}],
            n=4,
            logprobs=True,
            top_logprobs=2,
            stream_options={"include_usage": True},
        )
        async with helper as stream:
            async for _ in stream:
                pass
            final = await stream.get_final_completion()
        assert [choice.message.content for choice in final.choices] == [AWKWARD] * 4
        assert {choice.message.role for choice in final.choices} == {"assistant"}
        assert final.usage is not None and final.system_fingerprint
        for choice in final.choices:
            assert choice.logprobs is not None and choice.logprobs.content is not None
            spelled = b"".join(bytes(item.bytes or ()) for item in choice.logprobs.content[:-1])
            assert spelled.decode() == AWKWARD


def random_text(draw: random.Random) -> str:
    alphabet = 'ab \n"\\é空漢字مرحبا🌤️👩‍👩‍👧\u2028\ufffd\u0000'
    return "".join(draw.choices(alphabet, k=draw.randint(0, 24)))


async def test_streams_say_what_bodies_say_and_both_what_the_tokens_are() -> None:
    """Echoes of random texts, whole or cut inside a character, with and without stops."""
    draw = random.Random(17)
    tokenizer = byte_tokenizer()
    engine = ScriptedEngine(lambda request, choice: [*request.prompt[1:], END])
    async with served(engine) as s:
        for _ in range(250):
            text = random_text(draw)
            stops = [
                text[k : k + 2] for k in draw.sample(range(len(text)), min(len(text), draw.randint(0, 2)))
            ]
            limit = draw.choice((None, draw.randint(1, 40)))
            body = {"prompt": text, "stop": stops, "max_tokens": limit, "seed": 3, "logprobs": 1}
            plain = (await s.complete(**body)).json()
            streamed = events((await s.complete(**body, **USAGE)).text)
            chunks = [chunk for chunk in streamed[:-2] if isinstance(chunk, dict)]
            (choice,) = plain["choices"]
            assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == choice["text"]
            last = streamed[-2]
            assert isinstance(last, dict) and last["usage"] == plain["usage"]
            for name in ("finish_reason", "stop_reason"):
                assert chunks[-1]["choices"][0][name] == choice[name]
            for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
                parts = [chunk["choices"][0]["logprobs"] for chunk in chunks]
                assert [item for part in parts if part for item in part[name]] == choice["logprobs"][name]
            whole = tokenizer.decode(list(text.encode()[: limit or None]))
            ends = [(whole.find(stop) + len(stop), whole.find(stop)) for stop in stops if stop in whole]
            assert choice["text"] == (whole[: min(ends)[1]] if ends else whole)


async def test_every_refusal_has_the_one_shape() -> None:
    engine = ScriptedEngine(says("x"))
    async with served(engine, HttpSettings(max_body_bytes=500)) as s:
        refusals = [
            (400, await s.complete(prompt="x", n=0)),
            (404, await s.http.get("/nothing")),
            (404, await s.http.get("/v1/models/no/body")),
            (405, await s.http.get(CHAT)),
            (413, await s.complete(prompt="x" * 600)),
            (415, await s.http.post(TEXT, content=b"{}", headers={"content-type": "text/plain"})),
            (501, await s.http.post("/v1/embeddings", json={})),
        ]
        s.context.lifecycle.start_draining()
        refusals.append((503, await s.complete(prompt="x")))
        for status, reply in refusals:
            assert reply.status_code == status
            assert reply.headers["content-type"] == "application/json" and reply.headers["x-request-id"]
            error = reply.json()["error"]
            assert set(error) == {"message", "type", "param", "code"}
            assert all(isinstance(error[name], str) and error[name] for name in ("message", "type", "code"))
        assert refusals[-1][1].headers["retry-after"]
