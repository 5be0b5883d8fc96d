"""What stands in a calculation stays out of an answer's text, whichever way its tokens go."""

import asyncio
import random
from collections.abc import Sequence

import httpx
import pytest

from engine.messages import Finish
from engine.text import BytePairTokenizer
from tests.app.scripted_engine import BOS, END, PYTHON_START, SPECIALS, ScriptedEngine, byte_tokenizer
from tests.app.serving import Served, events, served, stream_text
from tests.engine.blocks import outside_blocks

PYTHON_END, OUTPUT_START, OUTPUT_END = (
    SPECIALS[f"<|{mark}|>"] for mark in ("python_end", "output_start", "output_end")
)
SUM = [PYTHON_START, *b"12+34", PYTHON_END, OUTPUT_START, *b"46", OUTPUT_END]
SAYS = [*b"So: ", *SUM, *"12 ✓".encode(), *SUM, *b"46.", END]
TEXT = "So: 12 ✓46."


def choice(reply: httpx.Response) -> dict[str, object]:
    assert reply.status_code == 200
    return reply.json()["choices"][0]  # type: ignore[no-any-return]


def chunks(reply: httpx.Response) -> list[dict[str, object]]:
    """The first choice's part of each event that has one."""
    assert reply.status_code == 200
    return [c["choices"][0] for c in events(reply.text) if isinstance(c, dict) and c["choices"]]


async def emitted(s: Served, parts: Sequence[Sequence[int]], turns: Sequence[int], **body: object) -> str:
    """The text of an answer that arrives in `parts`, with so many turns of the loop after each."""
    engine, known = s.engine, len(s.engine.requests)
    task = asyncio.ensure_future(s.complete(prompt="x", **body))
    await engine.until(lambda: len(engine.requests) > known)
    id = engine.requests[-1].id
    for part, count in zip(parts, turns, strict=True):
        engine.emit(id, part)
        for _ in range(count):
            await asyncio.sleep(0)
    engine.emit(id, [], Finish(id, "length"))
    reply = await task
    usage = (
        [c["usage"] for c in events(reply.text) if isinstance(c, dict)][-1] if body.get("stream") else None
    )
    counted = usage or reply.json()["usage"]
    assert counted["completion_tokens"] == sum(map(len, parts))
    return stream_text(reply.text) if body.get("stream") else str(choice(reply)["text"])


@pytest.mark.parametrize("direct", [True, False])
async def test_any_tokens_in_any_pieces_at_any_time(direct: bool) -> None:
    """With the lanes and without, streamed and whole, plain and with what takes tokens the long way."""
    ranks = {bytes([byte]): byte for byte in range(256)} | {b"x\xe2": 300, b"\x9c\x93y": 301, b"ab": 302}
    tokenizer = BytePairTokenizer(ranks, SPECIALS)
    pool = [97, 0xE2, 0x9C, 0x93, 300, 301, 302, BOS, PYTHON_START, PYTHON_END, OUTPUT_START, OUTPUT_END]
    async with served(ScriptedEngine(), direct=direct, tokenizer=tokenizer) as s:
        for seed in range(15):
            rng = random.Random(seed)
            ids: list[int] = []
            for _ in range(rng.randrange(1, 8)):
                ids += rng.choice([rng.choices(pool, k=5), rng.choices([98, 302], k=6), SUM])
            cuts = sorted(rng.sample(range(1, len(ids)), k=rng.randrange(len(ids))))
            parts = [ids[a:b] for a, b in zip([0, *cuts], [*cuts, len(ids)], strict=True)]
            turns = rng.choices([0, 1, 2, 6], k=len(parts))
            text = tokenizer.decode(outside_blocks(tokenizer, ids))
            usage = {"include_usage": True}
            assert await emitted(s, parts, turns) == text
            assert await emitted(s, parts, turns, stream=True, stream_options=usage) == text
            assert await emitted(s, parts, turns, stop=["never"]) == text
            whole = await emitted(s, parts, turns, skip_special_tokens=False)
            assert whole == tokenizer.decode(ids)


async def test_nothing_is_sent_for_a_hidden_token() -> None:
    async with served(ScriptedEngine(lambda request, k: SAYS)) as s:
        for ask in (s.complete, s.chat):
            body: dict[str, object] = {"prompt": "x"} if ask == s.complete else {}
            reply = await ask(stream=True, stream_options={"include_usage": True}, **body)
            assert stream_text(reply.text) == TEXT
            texts = [c["text"] if "text" in c else c["delta"].get("content") for c in chunks(reply)]
            opening = [] if ask == s.complete else [""]  # the role
            assert texts == [*opening, *TEXT, ""]
            usage = [c["usage"] for c in events(reply.text) if isinstance(c, dict)][-1]
            plain = (await ask(**body)).json()
            assert usage["completion_tokens"] == plain["usage"]["completion_tokens"] == len(SAYS)
        with_ids = await s.complete(prompt="x", stream=True, return_token_ids=True)
        assert [id for c in chunks(with_ids) for id in c["token_ids"]] == SAYS


@pytest.mark.parametrize("limit", range(1, len(SAYS)))
async def test_an_answer_that_is_cut_anywhere(limit: int) -> None:
    """Within a block it is the text before it, and it has an end like any other."""
    tokenizer = byte_tokenizer()
    text = tokenizer.decode(outside_blocks(tokenizer, SAYS[:limit]))
    async with served(ScriptedEngine(lambda request, k: SAYS)) as s:
        plain = await s.complete(prompt="x", max_tokens=limit)
        assert (choice(plain)["text"], choice(plain)["finish_reason"]) == (text, "length")
        assert plain.json()["usage"]["completion_tokens"] == limit
        reply = await s.complete(prompt="x", max_tokens=limit, stream=True)
        assert stream_text(reply.text) == text
        assert [c["finish_reason"] for c in chunks(reply)][-1] == "length"


@pytest.mark.parametrize(
    ("stop", "text"),
    [
        ("+", TEXT),  # in blocks alone
        ("34", TEXT),
        ("46", "So: 12 ✓"),  # in a block first
        (": 1", "So"),  # a block stands within it
        ("✓4", "So: 12 "),
    ],
)
async def test_stop_strings_do_not_see_blocks(stop: str, text: str) -> None:
    async with served(ScriptedEngine(lambda request, k: SAYS)) as s:
        plain = choice(await s.complete(prompt="x", stop=stop))
        assert (plain["text"], plain["finish_reason"]) == (text, "stop")
        assert plain["stop_reason"] == (None if text == TEXT else stop)
        assert stream_text((await s.complete(prompt="x", stop=stop, stream=True)).text) == text
        shown = choice(await s.complete(prompt="x", stop=stop, skip_special_tokens=False))
        before = byte_tokenizer().decode(SAYS[:-1]).split(stop)[0]
        assert str(shown["text"]).removesuffix("<|assistant_end|>") == before


@pytest.mark.parametrize("stop", [PYTHON_START, ord("2"), PYTHON_END, OUTPUT_START, OUTPUT_END])
async def test_a_stop_id_ends_an_answer_within_a_block(stop: int) -> None:
    """It is the engine's, which sees every token."""
    async with served(ScriptedEngine(lambda request, k: SAYS)) as s:
        for include in (False, True):
            body = {"prompt": "x", "stop_token_ids": [stop], "include_stop_str_in_output": include}
            plain = await s.complete(**body)
            found = choice(plain)
            assert (found["text"], found["finish_reason"], found["stop_reason"]) == ("So: ", "stop", stop)
            assert plain.json()["usage"]["completion_tokens"] == SAYS.index(stop) + 1
            assert stream_text((await s.complete(**body, stream=True)).text) == "So: "


@pytest.mark.parametrize("direct", [True, False])
async def test_choices_have_their_own_blocks(direct: bool) -> None:
    """One is within a block while the others are not, and one never leaves its own."""
    said = [SAYS, [*b"None here, only text.", END], [*b"No", PYTHON_START, *b"1+1+1+1+1+1", END]]
    texts = [TEXT, "None here, only text.", "No"]
    async with served(ScriptedEngine(lambda request, k: said[k]), direct=direct) as s:
        for more in ({}, {"stop": ["never"]}, {"logprobs": 1}):
            plain = (await s.complete(prompt="x", n=3, **more)).json()
            assert [c["text"] for c in plain["choices"]] == texts
            usage = {"include_usage": True}
            reply = await s.complete(prompt="x", n=3, stream=True, stream_options=usage, **more)
            assert [stream_text(reply.text, k) for k in range(3)] == texts
            *_, last, done = events(reply.text)
            assert done == "[DONE]" and last["usage"] == plain["usage"]  # type: ignore[index]
            assert plain["usage"]["completion_tokens"] == sum(map(len, said))


async def test_logprobs_name_hidden_tokens_and_stay_aligned() -> None:
    """One item for each token; the bytes of the ordinary ones are the text, as without blocks."""
    async with served(ScriptedEngine(lambda request, k: SAYS)) as s:
        plain = choice(await s.chat(logprobs=True, top_logprobs=1))
        items = plain["logprobs"]["content"]  # type: ignore[index]
        streamed = chunks(await s.chat(logprobs=True, top_logprobs=1, stream=True))
        assert [item for c in streamed if c["logprobs"] for item in c["logprobs"]["content"]] == items
        assert bytes(b for item in items[:-1] for b in item["bytes"]).decode() == TEXT
        names = "".join(item["token"] for item in items[4:15])
        assert names == "<|python_start|>12+34<|python_end|><|output_start|>46<|output_end|>"
        shown = choice(await s.chat(logprobs=True, skip_special_tokens=False))
        everything = bytes(b for item in shown["logprobs"]["content"][:-1] for b in item["bytes"])  # type: ignore[index]
        assert everything == byte_tokenizer().decode(SAYS[:-1]).encode()
        # A stream's event has the block's items with the text that comes after it.
        assert [len(c["logprobs"]["content"]) for c in streamed if c["logprobs"]][:6] == [1, 1, 1, 1, 12, 1]

        text = choice(await s.complete(prompt="x", logprobs=1))
        lists: dict[str, list[object]] = text["logprobs"]  # type: ignore[assignment]
        assert {len(column) for column in lists.values()} == {len(SAYS)}
        offsets = lists["text_offset"]
        assert offsets[:18] == [0, 1, 2, 3, *[4] * 11, 4, 5, 6]
        for token, offset in zip(lists["tokens"][:4], offsets[:4], strict=True):
            assert str(text["text"])[offset] == token  # type: ignore[index]


async def test_an_echoed_prompt_is_shown_as_it_was_given() -> None:
    prompt = [BOS, *b"x", *SUM, *b"y"]
    async with served(ScriptedEngine(lambda request, k: SAYS)) as s:
        reply = await s.complete(prompt=prompt, echo=True)
        assert choice(reply)["text"] == byte_tokenizer().decode(prompt) + TEXT
