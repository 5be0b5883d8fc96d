"""The short way of plain tokens: the same bytes as the long one, at once, and never out of order."""

import asyncio
import random
import re
from collections.abc import Sequence

import pytest

from app.answers.choices import MERGE_ABOVE
from app.http.direct import EXTENSION
from app.requests.text import Spellings
from app.routes.openai import Completions
from app.settings.http import HttpSettings
from engine.messages import (
    EngineStats,
    Fanout,
    Finish,
    Frame,
    Request,
    SamplingParams,
    StreamRouter,
    TokenLogprobs,
    TokenStream,
)
from engine.messages.streams import ROWS_PER_TURN
from engine.text import BytePairTokenizer
from tests.app.scripted_engine import BOS, END, PYTHON_START, SPECIALS, Script, ScriptedEngine, byte_tokenizer
from tests.app.serving import events, served, stream_text

TEXT = 'naïve "quotes"\n\\ and 🎉 done'
SCRIPTS: dict[str, Script] = {
    "text": lambda r, k: [*TEXT.encode(), END],
    "cut": lambda r, k: [*b"ab", *"✓".encode()[:2], END],
    "special": lambda r, k: [*b"ab", SPECIALS["<|python_end|>"], *b"cd", 0xFF, *b"ef", END],
    "block": lambda r, k: [
        *b"ab",
        PYTHON_START,
        *b"cd",
        SPECIALS["<|python_end|>"],
        *b"ef",
        PYTHON_START,
        *b"g",
        END,
    ],
}
OPTIONS: list[dict[str, object]] = [
    {},
    {"n": 2},
    {"stop": ["do"]},
    {"logprobs": 2},
    {"return_token_ids": True},
    {"stream_options": {"include_usage": True}},
    {"stream_options": {"include_usage": True, "continuous_usage_stats": True}},
    {"skip_special_tokens": False},
    {"max_tokens": 5},
]


def timeless(body: str) -> str:
    return re.sub(r'"(id|created|system_fingerprint)":("[^"]*"|\d+)', r'"\1":0', body)


@pytest.mark.parametrize("script", SCRIPTS)
async def test_both_ways_give_the_same_answers(script: str) -> None:
    """One loop over the options, to start two servers only."""
    answers: dict[bool, list[str]] = {}
    for direct in (True, False):
        async with served(ScriptedEngine(SCRIPTS[script]), direct=direct) as s:
            answers[direct] = []
            for options in OPTIONS:
                for stream in (True, False):
                    more = {k: v for k, v in options.items() if stream or k != "stream_options"}
                    reply = await s.complete(prompt="x", seed=1, stream=stream, **more)
                    assert reply.status_code == 200
                    body = timeless(reply.text)
                    # How choices take turns is nobody's promise.
                    answers[direct].append("\n".join(sorted(body.split("\n\n"))))
    assert answers[True] == answers[False]


@pytest.mark.parametrize("direct", [True, False])
async def test_text_is_that_of_the_tokens_wherever_they_cut_characters(direct: bool) -> None:
    ranks = {bytes([byte]): byte for byte in range(256)}
    ranks |= {b"x\xe2": 300, b"\x9c\x93y": 301, b"ab": 302, "né".encode(): 303}
    tokenizer = BytePairTokenizer(ranks, SPECIALS)
    said = {
        seed: random.Random(seed).choices([97, 0xE2, 0x9C, 0x93, 300, 301, 302, 303, BOS], k=40)
        for seed in range(25)
    }
    engine = ScriptedEngine(lambda request, choice: [*said[request.params.seed], END])
    async with served(engine, direct=direct, tokenizer=tokenizer) as s:
        for seed, tokens in said.items():
            text = tokenizer.decode(token for token in tokens if token != BOS)
            plain = (await s.complete(prompt="x", seed=seed)).json()["choices"][0]
            assert plain["text"] == text
            streamed = await s.complete(prompt="x", seed=seed, stream=True)
            assert stream_text(streamed.text) == text


@pytest.mark.parametrize("n", [1, 2])
async def test_plain_tokens_wake_nobody(n: int) -> None:
    engine = ScriptedEngine()
    async with served(engine) as s:
        task = asyncio.ensure_future(s.complete(prompt="x", n=n, stream=True))
        await engine.until(lambda: bool(engine.requests))
        id = engine.requests[0].id
        metrics = s.context.metrics
        for k in range(n):
            engine.emit(id + k, b"0")
        while metrics.events < n:
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        for at, token in enumerate(b"123", 1):
            for k in range(n):
                engine.emit(id + k, [token])
                assert metrics.events == at * n + k + 1, "it was not written at once"
        for k in range(n):
            engine.emit(id + k, b"4", Finish(id + k, "length"))
        chunks = [c["choices"][0] for c in events((await task).text) if isinstance(c, dict)]
        for k in range(n):
            own = [c for c in chunks if c["index"] == k]
            assert [c["text"] for c in own] == ["0", "1", "2", "3", "4"]
            assert [c["finish_reason"] for c in own] == [None] * 4 + ["length"]
        assert metrics.inter_token_latency.count == 4 * n
        assert metrics.time_to_first_token.count == n


@pytest.mark.parametrize("count", [3, MERGE_ABOVE, MERGE_ABOVE + 1])
async def test_what_piled_up_goes_out_as_one_write(count: int) -> None:
    engine = ScriptedEngine()
    fanout = Fanout(engine.router)
    async with served(engine) as s:
        task = asyncio.ensure_future(s.complete(prompt="x", stream=True, max_tokens=200))
        await engine.until(lambda: bool(engine.requests))
        id = engine.requests[0].id
        engine.emit(id, b"a")
        while s.context.metrics.events < 1:
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        before = s.context.metrics.writes
        fanout.push([Frame([id], [98], [], [], [], EngineStats(steps=k)) for k in range(count)])
        while s.context.metrics.events == 1:
            await asyncio.sleep(0)
        assert s.context.metrics.writes == before + 1
        engine.emit(id, [], Finish(id, "length"))
        reply = await task
        sent = 2 + (count if count <= MERGE_ABOVE else 1)  # one more for the end
        assert len(events(reply.text)) == sent + 1
        assert "".join(c["choices"][0]["text"] for c in events(reply.text)[:-1]) == "a" + "b" * count
        assert s.context.metrics.inter_token_latency.count == count


async def test_a_full_connection_sends_tokens_the_long_way_in_order() -> None:
    """And a reader that takes nothing at all is aborted."""
    engine = ScriptedEngine()
    async with served(engine, HttpSettings(send_timeout=0.2)) as s:
        written: list[bytes] = []
        full = False
        waiting, drained = asyncio.Event(), asyncio.Event()

        async def receive() -> dict[str, object]:
            if not engine.requests:
                body = b'{"prompt": "x", "stream": true}'
                return {"type": "http.request", "body": body, "more_body": False}
            await asyncio.Event().wait()
            raise AssertionError

        async def send(message: dict[str, object]) -> None:
            if message["type"] == "http.response.body":
                waiting.set()
                await drained.wait()
                written.append(message["body"])

        def write(body: bytes) -> bool:
            if not full:
                written.append(body)
            return not full

        scope = {"type": "http", "headers": [(b"content-type", b"application/json")]}
        scope["extensions"] = {EXTENSION: write}
        answering = asyncio.ensure_future(Completions(s.context)(scope, receive, send))
        await engine.until(lambda: bool(engine.requests))
        id = engine.requests[0].id
        for token in b"ab":
            engine.emit(id, [token])
            while s.context.metrics.events < token - 96:
                await asyncio.sleep(0)
            await asyncio.sleep(0)
        full = True
        engine.emit(id, b"c")
        await waiting.wait()
        full = False  # there is room again, but "c" is still being written
        for token in b"def":
            engine.emit(id, [token])
        drained.set()
        while s.context.metrics.events < 6:
            await asyncio.sleep(0)
        text = b"".join(written).decode()
        assert re.findall(r'"text":"(\w)"', text) == list("abcdef")
        full = True
        drained.clear()
        engine.emit(id, b"g")
        await engine.until(lambda: engine.aborted == [id])
        await answering
        assert s.context.metrics.slow_readers == 1


def test_spellings_are_those_of_tokens_that_stand_alone() -> None:
    spellings = Spellings(byte_tokenizer())
    assert spellings[ord("a")] == b'"a"' and spellings[ord('"')] == rb'"\""'
    assert spellings[0xE2] == spellings[END] == spellings[10**6] == b""


class Tape:
    """A lane that writes down what it is given; it takes nothing while `full`."""

    def __init__(self) -> None:
        self.taken: list[list[int]] = []
        self.full = False
        self.broken = False

    def push(self, token: int, now: float) -> bool:
        return self.push_all([token], now)

    def push_all(self, tokens: Sequence[int], now: float) -> bool:
        if self.broken:
            raise RuntimeError("broken")
        if not self.full:
            self.taken.append(list(tokens))
        return not self.full


def opened(router: StreamRouter, id: int, lane: bool = True) -> tuple[TokenStream, Tape]:
    params = SamplingParams(max_tokens=9, logprobs=None if lane else 1)
    (stream,) = router.open(Request(id=id, prompt=[1], params=params))
    tape = Tape()
    if lane:
        stream.lane = tape
    return stream, tape


def frame(ids: list[int], tokens: list[int], *finished: Finish) -> Frame:
    return Frame(list(ids), tokens, [], [], list(finished), EngineStats())


def test_a_token_with_an_end_comes_with_it_and_nothing_overtakes_what_waits() -> None:
    router = StreamRouter()
    stream, tape = opened(router, 1)
    router.dispatch(frame([1], [10]))
    tape.full = True
    router.dispatch(frame([1], [11]))
    tape.full = False
    router.dispatch(frame([1], [12]))
    assert tape.taken == [[10]]
    delta = stream.take()
    assert delta is not None and delta.tokens == [11, 12]
    router.dispatch(frame([1, 1], [13, 14]))
    router.dispatch(frame([1, 2], [15, 9], Finish(1, "length")))
    assert tape.taken == [[10], [13, 14]]
    delta = stream.take()
    assert delta is not None and delta.tokens == [15] and delta.finish is not None
    assert router.orphan_tokens == 1


@pytest.mark.parametrize("steps", [1, 2])
def test_a_lane_that_raises_hurts_only_itself_and_loses_nothing(steps: int) -> None:
    router = StreamRouter()
    streams = [opened(router, id) for id in (1, 2, 3)]
    streams[1][1].broken = True
    router.dispatch(frame([1, 2, 3] * steps, [10, 20, 30] * steps))
    assert [tape.taken for _, tape in streams] == [[[10] * steps], [], [[30] * steps]]
    delta = streams[1][0].take()
    assert delta is not None and delta.tokens == [20] * steps
    assert streams[1][0].lane is None


def test_streams_with_and_without_a_lane_share_frames() -> None:
    router = StreamRouter()
    plain, tape = opened(router, 1)
    marked, _ = opened(router, 2, lane=False)
    told = [TokenLogprobs(1, -0.5, [], []), TokenLogprobs(2, -0.7, [], [])]
    router.dispatch(Frame([1, 2, 2], [10, 20, 21], [2], told, [], EngineStats()))
    assert tape.taken == [[10]] and plain.take() is None
    delta = marked.take()
    assert delta is not None
    assert (delta.tokens, delta.forced, [item.logprob for item in delta.logprobs if item]) == (
        [20, 21],
        [1],
        [-0.5, -0.7],
    )


@pytest.mark.parametrize("lane", [True, False])
async def test_the_loop_gets_its_turn_within_a_large_frame(lane: bool) -> None:
    router = StreamRouter()
    fanout = Fanout(router)
    rows = 2 * ROWS_PER_TURN + 1
    streams = [opened(router, id, lane) for id in range(rows)]

    def seen() -> list[int]:
        return [len(tape.taken) if lane else len(stream.pending().tokens) for stream, tape in streams]

    ids = list(range(rows))
    fanout.push([frame(ids, [1] * rows)])
    assert sum(seen()) == ROWS_PER_TURN
    fanout.push([frame(ids, [2] * rows)])  # while the first one is under way
    fanout.push([frame(ids, [3] * rows, *(Finish(id, "length") for id in ids[:2]))])
    assert sum(seen()) == ROWS_PER_TURN
    await asyncio.sleep(0)
    assert sum(seen()) == 2 * ROWS_PER_TURN
    for _ in range(5):
        await asyncio.sleep(0)
    if lane:
        assert streams[5][1].taken == [[1], [2, 3]], "what came together is handed over together"
        first = streams[0][0].take()
        assert first is not None and first.tokens == [2, 3] and first.finish is not None
    else:
        assert streams[5][0].pending().tokens == [1, 2, 3]
    fanout.push([frame(ids, [4] * rows)])
    fanout.flush()
    last = streams[-1]
    assert (last[1].taken[-1] if lane else last[0].pending().tokens[-1:]) == [4]
