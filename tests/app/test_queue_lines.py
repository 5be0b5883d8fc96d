"""What a stream says while its request waits for a row."""

import asyncio
import json
from contextlib import ExitStack
from pathlib import Path

import httpx
import openai
import pytest

from app.admission.board import Board
from app.admission.gate import Gate, Place, columns
from app.settings.http import HttpSettings
from engine.messages import Finish
from engine.messages.wire import Frame, Started
from tests.app.scripted_engine import ScriptedEngine
from tests.app.server_process import DEADLINE
from tests.app.serving import Served, events, served

SOON = HttpSettings(queue_grace=0.02, header_grace=60.0)


def lines(text: str) -> list[dict[str, object]]:
    """The places that a stream told."""
    marks = [line.removeprefix(": ") for line in text.splitlines() if line.startswith(": {")]
    return [json.loads(mark)["queue"] for mark in marks]


class Told:
    """A stream that is read line by line, by a task of its own."""

    def __init__(self, s: Served, path: str = "/v1/completions", **body: object) -> None:
        self.headers: dict[str, str] = {}
        self.text = ""
        self._ask = ("POST", f"{s.url}{path}", {"prompt": "x", "stream": True, **body})
        self.task: asyncio.Task[None] | None = None

    async def _read(self, headers: dict[str, str]) -> None:
        method, url, body = self._ask
        async with httpx.AsyncClient() as http, http.stream(method, url, json=body, headers=headers) as reply:
            async for text in reply.aiter_text():
                self.text += text

    def start(self, **headers: str) -> "Told":
        self.task = asyncio.create_task(self._read(headers))
        return self

    async def until(self, words: str) -> None:
        async with asyncio.timeout(DEADLINE):
            while words not in self.text:
                await asyncio.sleep(0.005)


async def in_line(s: Served, count: int, **body: object) -> list[Told]:
    """Streams that came one after the other and wait."""
    told = []
    for k in range(count):
        told.append(Told(s, **body).start())
        await s.engine.until(lambda want=k + 1: len(s.engine.requests) == want)
    return told


def admit(s: Served, at: int) -> None:
    """The engine gives the request a row."""
    request = s.engine.requests[at]
    started = [Started(request.id + choice, 0.0, 0) for choice in range(request.n)]
    s.engine.router.dispatch(Frame([], [], [], [], [], s.engine.stats(), started=started))


@pytest.mark.parametrize("n", [1, 2])
async def test_a_stream_that_waits_tells_its_place(n: int) -> None:
    async with served(ScriptedEngine(max_rows=1), SOON) as s:
        told = await in_line(s, 3, n=n)
        for place, each in enumerate(told):
            await each.until(f'"position":{place},')
            assert lines(each.text) == [{"position": place, "eta_ms": None}]
        admit(s, 0)
        await told[1].until('"position":0,')
        await told[2].until('"position":1,')
        for request in s.engine.requests:
            for choice in range(n):
                id = request.id + choice
                s.engine.emit(id, b"a", Finish(id, "length"))
        for each in told:
            assert each.task is not None
            await each.task
            assert [item["choices"][0]["text"] for item in events(each.text)[:-1]] == ["a"] * n
        assert [line["position"] for line in lines(told[2].text)] == [2, 1]
        # A line and no blank one: it must not complete an event.
        assert told[2].text.startswith(': {"queue":{"position":2,"eta_ms":null}}\n: {')


async def test_who_does_not_wait_hears_nothing() -> None:
    async with served(ScriptedEngine(), SOON) as s:
        (told,) = await in_line(s, 1)
        admit(s, 0)
        await asyncio.sleep(0.1)
        assert told.text == ""  # the headers wait for the first token, as ever
        id = s.engine.requests[0].id
        s.engine.emit(id, b"a", Finish(id, "length"))
        await told.until("[DONE]")
        assert lines(told.text) == []


async def test_the_time_is_told_where_it_is_known() -> None:
    async with served(ScriptedEngine(max_rows=2), SOON) as s:
        s.context.gate.pace.learn(prompt=10, output=90, choices=1, seconds=2.0)
        first, second = await in_line(s, 2, max_tokens=50)
        for each, most in ((first, 2000), (second, 4000)):
            await each.until('"position"')
            (line,) = lines(each.text)
            assert isinstance(line["eta_ms"], int) and 0 < line["eta_ms"] < most
        assert lines(second.text)[0]["eta_ms"] > lines(first.text)[0]["eta_ms"]  # type: ignore[operator]


async def test_a_role_comes_after_the_wait_and_clients_see_no_line() -> None:
    async with served(ScriptedEngine(max_rows=1), SOON) as s:
        client = s.openai
        stream = asyncio.create_task(
            client.chat.completions.create(
                model="scripted", messages=[{"role": "user", "content": "x"}], stream=True
            )
        )
        await s.engine.until(lambda: len(s.engine.requests) == 1)
        chunks = await stream  # the headers are there: it waits
        id = s.engine.requests[0].id
        s.engine.emit(id, b"ab", Finish(id, "length"))
        got = [chunk.choices[0].delta async for chunk in chunks]
        assert got[0].role == "assistant" and "".join(delta.content or "" for delta in got) == "ab"
    assert isinstance(client, openai.AsyncOpenAI)


async def test_an_error_in_the_queue_is_an_event_behind_the_role() -> None:
    settings = HttpSettings(queue_grace=0.02, header_grace=60.0, queue_timeout=1.05)
    async with served(ScriptedEngine(max_rows=1), settings) as s:
        (told,) = await in_line(
            s, 1, path="/v1/chat/completions", messages=[{"role": "user", "content": "x"}]
        )
        await told.until("[DONE]")
        role, error, done = events(told.text)
        assert role["choices"][0]["delta"]["role"] == "assistant"
        assert (error["error"]["code"], done) == ("queue_timeout", "[DONE]")


async def test_a_refusal_that_comes_soon_keeps_its_status() -> None:
    settings = HttpSettings(queue_grace=0.02, header_grace=60.0, queue_timeout=0.1)
    async with served(ScriptedEngine(max_rows=1), settings) as s:
        (told,) = await in_line(s, 1)
        await told.until("queue_timeout")
        assert "data:" not in told.text and '"position"' not in told.text


async def test_resumable_streams_tell_every_reader() -> None:
    async with served(ScriptedEngine(max_rows=1), SOON) as s:
        ahead = (await in_line(s, 1))[0]
        told = Told(s).start(**{"X-Stream-Id": "mine"})
        await told.until('"position":1,')
        async with httpx.AsyncClient() as http, http.stream("GET", f"{s.url}/v1/streams/mine") as reply:
            async for line in reply.aiter_lines():
                assert lines(line) == [{"position": 1, "eta_ms": None}]
                break
        for request in s.engine.requests:
            s.engine.emit(request.id, b"a", Finish(request.id, "length"))
        for each in (ahead, told):
            await each.until("[DONE]")
        again = await s.http.get("/v1/streams/mine")
        assert lines(again.text) == [] and again.text.startswith("id: 1\n")
        assert told.text[told.text.index("id: 1") :] == again.text


def test_places_are_counted_over_all_front_ends(tmp_path: Path) -> None:
    path, engine = tmp_path / "board", ScriptedEngine(max_rows=1)
    assert engine.model is not None
    Board.create(path, columns(0), 2)
    one, two = (
        Gate(engine, HttpSettings(), Board(columns(0), rows=2, row=row, path=path)) for row in range(2)
    )

    places: list[Place] = []
    with ExitStack() as stack:
        for gate in (one, two, two, one, two):
            places.append(stack.enter_context(gate.entering("")))
            places[-1].queue([3], 1, 5, engine.model)
    assert [place.outlook()[0] for place in places] == [0, 1, 2, 3, 4]
    places[0].admit()
    assert [place.outlook()[0] for place in places[1:]] == [0, 1, 2, 3]
    places[1].leave()
    assert [place.outlook()[0] for place in places[2:]] == [0, 1, 2]
