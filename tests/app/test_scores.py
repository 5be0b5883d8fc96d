"""echo with logprobs, prompt_logprobs and best_of, over an engine that says what the test tells it to."""

import asyncio
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.answers.scores import offsets
from app.requests.text import TextService
from engine.messages import Finish, PromptLogprobs, Request
from tests.app.scripted_engine import (
    BOS,
    PYTHON_START,
    VOCAB,
    ScriptedEngine,
    byte_template,
    byte_tokenizer,
    says,
)
from tests.app.serving import events, served

TEXT = TextService(byte_tokenizer(), byte_template())


def logprobs_of(reply_body: dict[str, object], index: int = 0) -> dict[str, list[object]]:
    choice = reply_body["choices"][index]  # type: ignore[index]
    assert isinstance(choice["logprobs"], dict)
    lists: dict[str, list[object]] = choice["logprobs"]
    assert len({len(values) for values in lists.values()}) == 1
    return lists


async def test_echo_with_logprobs() -> None:
    async with served(ScriptedEngine(says("yes"))) as s:
        body = (await s.complete(prompt="hé", echo=True, logprobs=1, max_tokens=2)).json()
        choice, lists = body["choices"][0], logprobs_of(body)
    assert choice["text"] == "héye" and choice["finish_reason"] == "length"
    spelled = ["<|bos|>", "h", "bytes:\\xc3", "bytes:\\xa9", "y", "e"]
    assert lists["tokens"] == spelled
    assert lists["token_logprobs"] == [None, -1 / 8, -2 / 8, -3 / 8, -0.5, -0.5]
    # A part of a character has the place of the text that comes next; BOS was put in front and is not shown.
    assert lists["text_offset"] == [0, 0, 1, 1, 2, 3]
    assert lists["top_logprobs"][:3] == [
        None,
        {"i": -1 / 16, "h": -1 / 8},
        {"bytes:\\xc4": -2 / 16, "bytes:\\xc3": -2 / 8},
    ]
    (request,) = s.engine.requests
    assert (request.params.prompt_logprobs, request.params.logprobs) == (1, 1)


async def test_every_form_of_prompt_streamed_and_not() -> None:
    ids = [BOS, *b"one"]
    async with served(ScriptedEngine(says("yes"))) as s:
        for prompt in ("one", ids, ["one", "three"], [ids, [*b"three"], [PYTHON_START]]):
            for n in (1, 2):
                for limit in (0, 1, 3):
                    ask = {"prompt": prompt, "echo": True, "logprobs": 2, "max_tokens": limit, "n": n}
                    body = (await s.complete(**ask)).json()
                    count = n * (len(prompt) if isinstance(prompt[0], list | str) and prompt != "one" else 1)
                    assert [choice["index"] for choice in body["choices"]] == list(range(count))
                    assert {choice["finish_reason"] for choice in body["choices"]} == {"length"}
                    assert body["usage"]["completion_tokens"] == limit * count
                    reply = await s.complete(**ask, stream=True, stream_options={"include_usage": True})
                    compare(body, events(reply.text), count)
        assert s.engine.open_streams == 0


def compare(body: dict[str, object], stream: list[object], count: int) -> None:
    """A stream joined is the whole body; each choice's first event is its prompt."""
    assert stream[-1] == "[DONE]"
    seen: dict[int, list[dict[str, object]]] = {index: [] for index in range(count)}
    for event in stream[:-1]:
        assert isinstance(event, dict)
        for choice in event["choices"]:
            seen[choice["index"]].append(choice)
        usage = event["usage"]
    assert usage == body["usage"]
    for index, parts in seen.items():
        whole = body["choices"][index]  # type: ignore[index]
        assert "".join(part["text"] for part in parts) == whole["text"]  # type: ignore[misc]
        first = parts[0]["logprobs"]
        assert isinstance(first, dict) and first["token_logprobs"][0] is None
        joined: dict[str, list[object]] = {name: [] for name in whole["logprobs"]}
        for part in parts:
            for name, values in (part["logprobs"] or {}).items():  # type: ignore[attr-defined]
                joined[name] += values
        assert joined == whole["logprobs"]
        assert [part["finish_reason"] for part in parts][-1] == "length"


async def test_scoring_alone_generates_nothing_that_is_seen() -> None:
    async with served(ScriptedEngine(says("yes"))) as s:
        body = (await s.complete(prompt=[*b"abc"], echo=True, logprobs=0, max_tokens=0)).json()
        lists = logprobs_of(body)
        assert lists["tokens"] == ["a", "b", "c"] and body["choices"][0]["text"] == "abc"
        assert lists["top_logprobs"] == [None, {"b": -1 / 8}, {"c": -2 / 8}]
        assert body["usage"] == {
            "prompt_tokens": 3,
            "completion_tokens": 0,
            "total_tokens": 3,
            "prompt_tokens_details": {"cached_tokens": 0},
        }
        assert s.engine.requests[0].params.max_tokens == 1
        # Without logprobs there is nothing to ask the engine for.
        await s.complete(prompt="abc", echo=True, max_tokens=0)
        assert len(s.engine.requests) == 1


async def test_vllms_prompt_logprobs() -> None:
    async with served(ScriptedEngine(says("yes"))) as s:
        body = (await s.complete(prompt=[*b"ab"], prompt_logprobs=1, max_tokens=1)).json()
        choice = body["choices"][0]
        wanted = [
            None,
            {
                "98": {"logprob": -1 / 8, "rank": 2, "decoded_token": "b"},
                "99": {"logprob": -1 / 16, "rank": 1, "decoded_token": "c"},
            },
        ]
        assert choice["prompt_logprobs"] == wanted and list(choice["prompt_logprobs"][1]) == ["98", "99"]
        assert choice["logprobs"] is None and choice["text"] == "y"
        # More alternatives than the echo wants: each gets its own number.
        both = (await s.complete(prompt=[*b"ab"], prompt_logprobs=1, echo=True, logprobs=0)).json()
        assert both["choices"][0]["prompt_logprobs"] == wanted
        assert logprobs_of(both)["top_logprobs"][1] == {"b": -1 / 8}
        chat = (await s.chat(prompt_logprobs=0)).json()
        prompt = s.engine.requests[-1].prompt
        assert chat["choices"][0]["message"]["content"] == "yes" and chat["choices"][0]["logprobs"] is None
        assert [None if e is None else list(e) for e in chat["prompt_logprobs"]] == [
            None,
            *([str(id)] for id in prompt[1:]),
        ]
        plain = (await s.complete(prompt=[*b"ab"])).json()
        assert "prompt_logprobs" not in plain["choices"][0]


async def test_numbers_that_json_does_not_have() -> None:
    async with served(ScriptedEngine()) as s:
        ask = s.complete(prompt=[*b"ab"], echo=True, logprobs=1, prompt_logprobs=1, max_tokens=0)
        task = asyncio.ensure_future(ask)
        await s.engine.until(lambda: bool(s.engine.requests))
        id, low = s.engine.requests[0].id, float("-inf")
        s.engine.emit(id, [1], Finish(id, "length"), prompt=PromptLogprobs(id, 1, [low], [9], [[5]], [[low]]))
        body = json.loads((await task).text)
        assert logprobs_of(body)["token_logprobs"] == [None, -9999.0]


async def test_no_memory_for_a_score_is_a_503() -> None:
    engine = ScriptedEngine()
    async with served(engine) as s:
        task = asyncio.create_task(s.complete(prompt="abc", max_tokens=0, echo=True, logprobs=1))
        await engine.until(lambda: len(engine.requests) == 1)
        id = engine.requests[0].id
        engine.emit(id, [], Finish(id, "error", message="there was no memory", code="out_of_memory"))
        reply = await task
        assert (reply.status_code, reply.json()["error"]["code"]) == (503, "out_of_memory")


async def test_an_engine_that_fails_while_it_scores() -> None:
    async with served(ScriptedEngine()) as s:
        task = asyncio.ensure_future(s.complete(prompt="ab", echo=True, logprobs=1, max_tokens=0))
        await s.engine.until(lambda: bool(s.engine.requests))
        id = s.engine.requests[0].id
        s.engine.emit(id, [], Finish(id, "error", message="not finite"))
        reply = await task
        assert reply.status_code == 500 and "not finite" in reply.json()["error"]["message"]
        assert s.engine.open_streams == 0


# -- best_of


@pytest.mark.parametrize("prompt", ["x", ["x", "y"]])
async def test_the_likeliest_are_returned(prompt: object) -> None:
    """Ranked by the mean over their tokens, not by the sum, which would prefer the shortest."""
    likes = {0: [-1.0], 1: [-0.5, -0.7], 2: [-0.2, -0.1, -0.9], 3: [-3.0] * 4}

    def script(request: Request, choice: int) -> list[int]:
        return [ord("abcd"[choice])] * len(likes[choice])

    engine = ScriptedEngine(lambda request, choice: [*script(request, choice), ord(".")])
    engine.likes = lambda choice, at: [*likes[choice], 0.0][at]
    prompts = 2 if isinstance(prompt, list) else 1
    async with served(engine) as s:
        body = (await s.complete(prompt=prompt, n=2, best_of=4, stop=["."], max_tokens=9)).json()
        assert [(c["index"], c["text"]) for c in body["choices"]] == list(enumerate(["ccc", "bb"] * prompts))
        assert all(c["logprobs"] is None and c["finish_reason"] == "stop" for c in body["choices"])
        assert body["usage"]["completion_tokens"] == prompts * (1 + 2 + 3 + 4 + 4)
        assert [(r.n, r.params.logprobs) for r in s.engine.requests] == [(4, 0)] * prompts
        shown = (await s.complete(prompt=prompt, best_of=4, stop=["."], max_tokens=9, logprobs=0)).json()
        assert [c["text"] for c in shown["choices"]] == ["ccc"] * prompts
        assert logprobs_of(shown)["token_logprobs"] == [-0.2, -0.1, -0.9, 0.0]
        # As many as are returned: nothing to choose, and nobody pays for logprobs.
        same = (await s.complete(prompt=prompt, n=2, best_of=2, stop=["."], max_tokens=9)).json()
        assert [c["text"] for c in same["choices"]] == ["a", "bb"] * prompts
        assert s.engine.requests[-1].params.logprobs is None


async def test_best_of_with_echo_and_alone_in_a_stream() -> None:
    engine = ScriptedEngine(lambda request, choice: [ord("ab"[choice])])
    engine.likes = lambda choice, at: -1.0 + choice / 2
    async with served(engine) as s:
        body = (await s.complete(prompt="x", best_of=2, echo=True, logprobs=0, max_tokens=1)).json()
        assert body["choices"][0]["text"] == "xb"
        assert logprobs_of(body)["token_logprobs"] == [None, -1 / 8, -0.5]
        assert (await s.complete(prompt="x", best_of=1, stream=True, max_tokens=1)).status_code == 200
        assert (await s.chat(best_of=1, max_tokens=1)).status_code == 200


# -- offsets


@settings(max_examples=60)
@given(st.lists(st.integers(0, VOCAB - 1), max_size=24))
def test_offsets_are_where_texts_begin(prompt: list[int]) -> None:
    """Of any ids, broken characters included: a token's text stands where its offset says."""
    shown = TEXT.decode(prompt)
    places = offsets(TEXT, prompt, shown)
    assert places == sorted(places) and all(0 <= place <= len(shown) for place in places)
    for k, place in enumerate(places):
        if place < len(shown) and shown[place].isascii():
            piece = TEXT.token_bytes(prompt[k]).decode("utf-8", "replace")
            assert shown.startswith(piece, place) or "\ufffd" in piece


@settings(max_examples=40)
@given(st.text(alphabet=st.characters(codec="utf-8"), max_size=12))
def test_offsets_behind_a_bos(text: str) -> None:
    ids = [BOS, *text.encode()]
    places = offsets(TEXT, ids, text)
    assert places[0] == 0
    assert [text[place] for place in dict.fromkeys(places[1:])] == list(text)
