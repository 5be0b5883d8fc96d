"""Tokens without answers, cancelling, the probe, and the fields that shape prompt and stream."""

import asyncio
import json
import random

import pytest

from app.routes import probe
from app.settings.http import HttpSettings
from engine.messages import EngineState, Finish
from tests.app.scripted_engine import BOS, END, VOCAB, ScriptedEngine, byte_tokenizer, says
from tests.app.serving import Served, events, served, stream_text

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
USER = [{"role": "user", "content": "hi"}]


async def refused(s: Served, path: str, body: dict[str, object], param: str, code: str) -> None:
    reply = await s.http.post(path, json=body)
    error = reply.json()["error"]
    assert (reply.status_code, error["param"], error["code"]) == (400, param, code)


async def test_tokenize_and_detokenize_are_inverse() -> None:
    async with served(ScriptedEngine(says("ok"))) as s:
        for text in ("", "hi", "grüße 🌤️\n\x00<|bos|>", "x" * 5000):
            for name in ("prompt", "content"):
                reply = (await s.http.post("/tokenize", json={name: text, "return_token_strs": True})).json()
                ids = reply["tokens"]
                assert ids[0] == BOS and reply["count"] == len(ids) == len(reply["token_strs"])
                assert reply["max_model_len"] == 256
                back = (await s.http.post("/detokenize", json={"tokens": ids[1:]})).json()
                assert back == {"prompt": text, "content": text}
        bare = await s.http.post("/tokenize", json={"prompt": "hi", "add_special_tokens": False})
        assert bare.json()["tokens"] == [104, 105]
        await refused(s, "/tokenize", {}, "prompt", "missing_field")
        await refused(s, "/tokenize", {"prompt": "x", "messages": USER}, "prompt", "invalid_value")
        await refused(s, "/detokenize", {"tokens": [1, VOCAB]}, "tokens[1]", "out_of_range")
        await refused(s, "/detokenize", {"tokens": [1] * 20_000 + [-1]}, "tokens[20000]", "out_of_range")
        assert s.engine.requests == []


async def test_a_rendered_prompt_is_the_one_that_is_answered() -> None:
    async with served(ScriptedEngine(says("ok"))) as s:
        talk = [*USER, {"role": "assistant", "content": "so"}]
        for extra in ({}, {"continue_final_message": True}, {"truncate_prompt_tokens": 3}):
            body = {"messages": talk, **extra}
            rendered = (await s.http.post(f"{CHAT}/render", json=body)).json()
            assert (await s.http.post(CHAT, json=body)).status_code == 200
            assert rendered["tokens"] == s.engine.requests[-1].prompt
            assert rendered["prompt"] == byte_tokenizer().decode(rendered["tokens"])
            if "truncate_prompt_tokens" not in extra:
                body = {"messages": talk, **extra}
                assert (await s.http.post("/tokenize", json=body)).json()["tokens"] == rendered["tokens"]
        await refused(
            s, f"{CHAT}/render", {"messages": USER, "temperature": 9}, "temperature", "out_of_range"
        )


async def test_a_prompt_is_cut_from_its_beginning() -> None:
    async with served(ScriptedEngine(says("ok"))) as s:
        long = list(range(200)) * 2
        for keep, extra, kept in (
            (5, {}, 5),
            (-1, {}, 255),
            (-1, {"max_tokens": 10}, 246),
            (256, {"prompt": [1, 2, 3]}, 3),
        ):
            body = {"prompt": long, "truncate_prompt_tokens": keep, **extra}
            reply = await s.http.post(TEXT, json=body)
            assert reply.status_code == 200, reply.text
            assert s.engine.requests[-1].prompt == body["prompt"][-kept:]  # type: ignore[index]
            assert reply.json()["usage"]["prompt_tokens"] == kept
        echoed = await s.complete(prompt="hello", truncate_prompt_tokens=2, echo=True)
        assert echoed.json()["choices"][0]["text"] == "look"
        for keep in (0, -2, 257):
            body = {"prompt": "x", "truncate_prompt_tokens": keep}
            await refused(s, TEXT, body, "truncate_prompt_tokens", "out_of_range")
        await refused(s, TEXT, {"prompt": long}, "prompt", "context_length_exceeded")
        wrong = {"prompt": [*long, VOCAB, 1], "truncate_prompt_tokens": 1}
        await refused(s, TEXT, wrong, "prompt[400]", "out_of_range")


async def test_bad_words_weigh_more_than_any_bias() -> None:
    async with served(ScriptedEngine(says("ok"))) as s:
        bias = {"120": 100, "121": 5}
        assert (await s.complete(prompt="a", bad_words=["x", "z"], logit_bias=bias)).status_code == 200
        found = s.engine.requests[-1].params.logit_bias
        assert found[121] == 5 and set(found) == {120, 121, 122}
        assert found[120] == found[122] < -1e20
        await refused(
            s, TEXT, {"prompt": "a", "bad_words": ["x", "no"]}, "bad_words[1]", "unsupported_parameter"
        )
        await refused(s, TEXT, {"prompt": "a", "bad_words": [""]}, "bad_words[0]", "out_of_range")
        await refused(s, TEXT, {"prompt": "a", "bad_words": [1]}, "bad_words[0]", "invalid_type")
        await refused(s, TEXT, {"prompt": "a", "bad_words": ["x"] * 129}, "bad_words", "out_of_range")


async def test_a_priority_needs_the_servers_leave() -> None:
    for allowed in (True, False):
        async with served(ScriptedEngine(says("ok")), HttpSettings(allow_priority=allowed)) as s:
            assert (await s.chat(priority=0)).status_code == 200
            if allowed:
                assert (await s.chat(priority=-7)).status_code == 200
                assert s.engine.requests[-1].priority == -7
                await refused(s, CHAT, {"messages": USER, "priority": 101}, "priority", "out_of_range")
            else:
                await refused(s, CHAT, {"messages": USER, "priority": 1}, "priority", "unsupported_parameter")


async def test_tokens_by_their_ids() -> None:
    async with served(ScriptedEngine(says("a\u00fc"))) as s:
        fields = {"return_tokens_as_token_ids": True, "return_token_ids": True}
        chat = (await s.chat(logprobs=True, top_logprobs=2, **fields)).json()["choices"][0]
        text = (await s.complete(prompt="x", logprobs=2, **fields)).json()["choices"][0]
        names = [f"token_id:{id}" for id in chat["token_ids"]]
        assert [item["token"] for item in chat["logprobs"]["content"]] == names
        assert text["logprobs"]["tokens"] == names
        assert all(name in top for name, top in zip(names, text["logprobs"]["top_logprobs"], strict=True))


async def test_an_interval_changes_the_cuts_only() -> None:
    draw = random.Random(1)
    engine = ScriptedEngine()
    async with served(engine) as s:
        for _ in range(60):
            said = "".join(draw.choices("abbü🌤 ", k=draw.randrange(40)))
            engine.script = says(said)
            more = draw.choice(({}, {"logprobs": 1}, {"return_token_ids": True}, {"n": 2}))
            stop = draw.choice((None, "ab", "bb"))
            interval = draw.randint(1, 12)
            body = {"prompt": "x", "stream": True, "seed": 1, "stop": stop, **more}
            fine = (await s.http.post(TEXT, json=body)).text
            coarse = (await s.http.post(TEXT, json={**body, "stream_interval": interval})).text
            assert events(coarse)[-1] == "[DONE]"
            for index in range(2 if "n" in more else 1):
                assert stream_text(coarse, index) == stream_text(fine, index)
                few, many = choices(coarse, index), choices(fine, index)
                for name in ("finish_reason", "stop_reason"):
                    assert few[-1][name] == many[-1][name]
                for name in ("token_ids", "logprobs"):
                    joined = [[x for choice in side for x in parts(choice.get(name))] for side in (few, many)]
                    assert joined[0] == joined[1]
                if stop is None:  # opening, first token, and what is left; a character's tokens stay together
                    assert len(few) <= 3 + len(said.encode()) // interval


async def test_the_servers_interval_is_that_of_streams_that_say_none() -> None:
    body = {"prompt": "x", "stream": True, "seed": 1}
    async with served(ScriptedEngine(says("twelve bytes")), HttpSettings(stream_interval=5)) as s:
        plain, said, fine = [
            stream_choices((await s.http.post(TEXT, json={**body, **more})).text)
            for more in ({}, {"stream_interval": 5}, {"stream_interval": 1})
        ]
        assert plain == said and len(plain) < len(fine) - 5


def stream_choices(body: str) -> list[object]:
    return [choice["text"] for choice in choices(body, 0)]


def choices(body: str, index: int) -> list[dict[str, object]]:
    return [
        choice
        for event in events(body)
        if isinstance(event, dict)
        for choice in event["choices"]
        if choice["index"] == index
    ]


def parts(value: object) -> list[object]:
    if isinstance(value, dict):
        return list(zip(value["tokens"], value["token_logprobs"], value["text_offset"], strict=True))
    return value if isinstance(value, list) else []


async def test_an_interval_loses_nothing_when_the_engine_fails() -> None:
    engine = ScriptedEngine()
    async with served(engine) as s:
        body = {"prompt": "x", "stream": True, "stream_interval": 100}
        asked = asyncio.create_task(s.http.post(TEXT, json=body))
        await engine.until(lambda: bool(engine.requests))
        stream = engine.requests[0].id
        for token in b"hello":
            engine.emit(stream, [token])
            await asyncio.sleep(0)
        engine.emit(stream, [], Finish(stream, "error", message="bad luck"))
        reply = await asked
        assert stream_text(reply.text) == "hello"
        assert "bad luck" in reply.text and reply.text.endswith("data: [DONE]\n\n")


async def test_only_its_owner_cancels_an_answer() -> None:
    engine = ScriptedEngine()
    async with served(engine, HttpSettings(header_grace=0.0)) as s:
        async with s.http.stream("POST", CHAT, json={"messages": USER, "stream": True}) as reply:
            lines = reply.aiter_lines()
            first = json.loads((await anext(lines)).removeprefix("data: "))
            id = first["id"]
            assert not s.context.lifecycle.cancel(id, "somebody")
            assert (await s.http.post("/v1/requests/chatcmpl-1/cancel")).status_code == 404
            cancelled = await s.http.post(f"/v1/requests/{id}/cancel")
            assert cancelled.json() == {"id": id, "cancelled": True}
            rest = [line async for line in lines]
        assert json.loads(rest[-4].removeprefix("data: "))["error"]["code"] == "request_cancelled"
        assert rest[-2] == "data: [DONE]"
        assert engine.open_streams == 0 and engine.aborted == [engine.requests[0].id]
        again = await s.http.post(f"/v1/requests/{id}/cancel")
        assert (again.status_code, again.json()["error"]["code"]) == (404, "request_not_found")


async def test_the_probe_makes_one_token_for_all_who_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = ScriptedEngine()
    async with served(engine) as s:
        asked = [asyncio.create_task(s.http.get("/health_generate")) for _ in range(5)]
        await engine.until(lambda: bool(engine.requests))
        request = engine.requests[0]
        engine.emit(request.id, [END], Finish(request.id, "length"))
        replies = [await reply for reply in asked]
        assert [reply.status_code for reply in replies] == [200] * 5
        assert (await s.http.get("/health_generate")).json()["status"] == "ok"
        assert len(engine.requests) == 1 and request.priority < -100
        assert engine.open_streams == 0

        monkeypatch.setattr(probe, "FRESH_SECONDS", 0.0)
        monkeypatch.setattr(probe, "PATIENCE_SECONDS", 0.01)
        silent = await s.http.get("/health_generate")
        assert (silent.status_code, silent.json()["error"]["code"]) == (503, "engine_unavailable")
        assert silent.headers["retry-after"] and engine.open_streams == 0
        engine.state = EngineState.DEAD
        assert (await s.http.get("/health_generate")).status_code == 503
        assert len(engine.requests) == 2


async def test_what_runs_here() -> None:
    engine = ScriptedEngine()
    async with served(engine) as s:
        facts = (await s.http.get("/version")).json()
        assert (facts["model"], facts["device"], facts["dtype"]) == ("scripted", "cpu", "float32")
        assert facts["version"] and facts["torch"]
        assert (await s.http.get("/ping")).json() == (await s.http.get("/health")).json()
        reply = await s.http.post("/v1/embeddings", json={"input": "x", "model": "m"})
        assert (reply.status_code, reply.json()["error"]["code"]) == (501, "not_implemented")
        assert reply.headers["x-should-retry"] == "false"
        engine.model, engine.state = None, EngineState.LOADING
        assert (await s.http.get("/version")).json()["model"] is None
        for path in ("/tokenize", "/detokenize", f"{CHAT}/render"):
            assert (await s.http.post(path, json={})).status_code == 503
