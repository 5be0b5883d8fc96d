"""Who is let in: the counting itself, and what clients are told."""

import asyncio
import tempfile
import time
from pathlib import Path

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.admission.board import Board
from app.admission.gate import SHARE, Gate, Pace, Place, columns
from app.http.errors import ApiError
from app.settings.http import Access, HttpSettings, Key
from engine.messages import EngineUnavailable, Finish, Frame, Request, Started, TokenStream
from tests.app.raw_http import is_empty, is_well
from tests.app.scripted_engine import ScriptedEngine, says
from tests.app.serving import Served, events, served

KEYS = ("one", "two")
IDS = [Key.of(key).id for key in KEYS]
WITH_KEYS = Access(keys=tuple(Key.of(key) for key in KEYS))

Ops = list[tuple[int, int, int, int]]


@settings(max_examples=60)
@given(
    ops=st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 1), st.integers(0, 1), st.integers(1, 40)), max_size=60
    ),
    max_queue=st.integers(0, 6),
    max_tokens=st.integers(0, 60),
    per_key=st.none() | st.integers(1, 3),
    rows=st.integers(1, 3),
)
def test_two_processes_count_as_one(
    ops: Ops, max_queue: int, max_tokens: int, per_key: int | None, rows: int
) -> None:
    """Requests come, queue, are admitted and leave through two gates on one board. Nobody is let in beyond a
    limit, a refusal changes nothing, and in the end nothing is left.
    """
    engine = ScriptedEngine(max_rows=rows)
    limits = HttpSettings(
        max_queue=max_queue, max_queued_tokens=max_tokens, max_concurrent_per_key=per_key, access=WITH_KEYS
    )
    with tempfile.TemporaryDirectory() as folder:
        path, width = Path(folder) / "board", columns(len(KEYS))
        Board.create(path, width, 2)
        boards = [Board(width, rows=2, row=row, path=path) for row in range(2)]
        gates = [Gate(engine, limits, board) for board in boards]
        entered: list[tuple[Place, object]] = []
        waiting: list[tuple[Place, object, int]] = []
        running: list[tuple[Place, object]] = []

        def totals() -> list[int]:
            return [boards[0].total(column) for column in range(width)]

        def place_count() -> int:
            return sum(place._choices for place, *_ in (*waiting, *running))

        for action, gate, key, size in ops:
            before = totals()
            if action == 0:
                block = gates[gate].entering(IDS[key])
                try:
                    entered.append((block.__enter__(), block))
                except ApiError as error:
                    assert error.status in (429, 503) and 1 <= int(error.headers["retry-after"]) <= 60
                    assert totals() == before
            elif action == 1 and entered:
                place, block = entered.pop()
                open_before, tokens_before = place_count(), sum(tokens for *_, tokens in waiting)
                try:
                    place.queue([size], 1 + size % 2, 5, engine.info)
                except ApiError as error:
                    assert error.status in (429, 503)
                    assert totals() == before
                    entered.append((place, block))
                else:
                    queued = open_before - rows
                    assert queued <= 0 or queued + place._choices <= max_queue
                    assert queued <= 0 or tokens_before == 0 or tokens_before + size <= max_tokens
                    block.__exit__(None, None, None)
                    waiting.append((place, block, size))
            elif action == 2 and waiting:
                place, block, _ = waiting.pop(0)
                place.admit()
                place.admit()
                running.append((place, block))
            elif action == 3 and running:
                place, _ = running.pop(0)
                place.leave(3)
                place.leave(3)
            requests = [place for place, *_ in (*entered, *waiting, *running)]
            for k, id in enumerate(IDS):
                mine = sum(place.key == id for place in requests)
                assert boards[1].total(4 + 2 * k) == mine
                assert per_key is None or mine <= per_key
            assert totals()[:3] == [
                place_count(),
                sum(place._choices for place, *_ in waiting),
                sum(tokens for *_, tokens in waiting),
            ]
        for _, block in entered:
            block.__exit__(None, None, None)
        for place, *_ in (*waiting, *running):
            place.leave()
        assert totals()[:-1] == [0] * (width - 1)  # the last column only grows


def test_a_row_can_be_cleared_and_is_nobody_elses(tmp_path: Path) -> None:
    path = tmp_path / "board"
    Board.create(path, 3, 2)
    assert path.stat().st_mode & 0o777 == 0o600
    one, two = (Board(3, rows=2, row=row, path=path) for row in range(2))
    assert [one.add(1, 5), two.add(1, 2), one.add(2, -4)] == [5, 7, -4]
    two.clear(0)
    assert [two.total(column) for column in range(3)] == [0, 2, 0]


def test_what_waits_is_measured_by_what_has_ended() -> None:
    pace = Pace()
    assert pace.seconds(100, 8) is None
    for _ in range(10):
        pace.learn(prompt=60, output=40, choices=1, seconds=2.0)
    assert pace.seconds(400, 4) == pytest.approx(2.0)  # 50 tokens per second and row
    assert pace.output(1000) == 40 and pace.output(7) == 7
    assert pace.service() == pytest.approx(2.0)


def test_retry_after_grows_with_the_queue_and_is_spread() -> None:
    engine = ScriptedEngine(max_rows=1)
    gate = Gate(engine, HttpSettings(queue_timeout=0.0))
    assert gate.retry()[0] in (1, 2)
    gate.pace.learn(prompt=10, output=10, choices=1, seconds=2.0)  # ten tokens per second
    seconds = []
    for _ in range(20):
        with gate.entering("") as place:
            place.queue([90], 1, 10, engine.info)
        seconds.append(gate.retry()[0])
    assert seconds[1] >= 20 and seconds[-1] <= 60 and seconds[-1] >= 59
    spread = {gate.retry()[1] for _ in range(50)}
    assert len(spread) == 1  # at the limit of what clients obey
    gate.pace.learn(prompt=10_000, output=10_000, choices=1, seconds=2.0)
    assert len({gate.retry()[1] for _ in range(50)}) > 10


async def refused(s: Served, **more: object) -> httpx.Response:
    started = time.monotonic()
    reply = await s.complete(prompt="x", **more)
    assert reply.status_code in (429, 503), reply.text
    assert time.monotonic() - started < 5.0  # the machine may be busy; the engine does nothing meanwhile
    assert 1 <= int(reply.headers["retry-after"]) <= 60
    assert 1000 <= int(reply.headers["retry-after-ms"]) <= 60_000
    assert reply.headers["x-should-retry"] == "true"
    return reply


async def test_ten_times_too_many_requests() -> None:
    """Every one beyond the queue is refused at once, while those inside go on, and are all answered."""
    engine = ScriptedEngine(max_rows=2)
    async with served(engine, HttpSettings(max_queue=8)) as s:
        limits = httpx.Limits(max_connections=200)
        async with httpx.AsyncClient(base_url=s.url, timeout=30, limits=limits) as crowd:

            async def one(stream: bool) -> httpx.Response:
                return await crowd.post("/v1/completions", json={"prompt": "x", "stream": stream})

            tasks = [asyncio.ensure_future(one(bool(k % 2))) for k in range(100)]
            # Nothing is answered by the engine, so who has an answer was refused.
            while len(done := [task for task in tasks if task.done()]) < 90:
                await asyncio.wait([t for t in tasks if not t.done()], return_when=asyncio.FIRST_COMPLETED)
            assert len(engine.requests) == 10
            for task in done:
                reply = task.result()
                assert (reply.status_code, reply.json()["error"]["code"]) == (503, "overloaded")
                assert 1 <= int(reply.headers["retry-after"]) <= 60 and reply.headers["retry-after-ms"]
            assert all(not task.done() for task in tasks if task not in done)
            for request in list(engine.requests):
                engine.emit(request.id, b"a", Finish(request.id, "length"))
            replies = await asyncio.gather(*(task for task in tasks if task not in done))
            assert [reply.status_code for reply in replies] == [200] * 10
        engine.script = says("ok")
        await is_well(s)
        text = (await s.http.get("/metrics")).text
        assert 'reason="overloaded"} 90' in text


async def test_who_is_refused_is_refused_before_the_prompt_is_looked_at() -> None:
    engine = ScriptedEngine(max_rows=1)
    async with served(engine, HttpSettings(max_queue=0, max_concurrent_per_key=None)) as s:
        tasks = [asyncio.ensure_future(s.complete(prompt="x")) for _ in range(2)]
        await engine.until(lambda: len(engine.requests) == 2)
        reply = await s.http.post("/v1/completions", content=b"no JSON at all")
        assert reply.status_code == 503
        nano = await s.http.post("/chat/completions", content=b"no JSON at all")
        assert nano.status_code == 503 and nano.json()["detail"] and nano.headers["retry-after"]
        for task in tasks:
            task.cancel()
        await engine.until(lambda: engine.open_streams == 0)


async def test_prompt_tokens_that_wait_are_bounded() -> None:
    engine = ScriptedEngine(max_rows=1)
    async with served(engine, HttpSettings(max_queued_tokens=100)) as s:
        tasks = [asyncio.ensure_future(s.complete(prompt="x" * 80)) for _ in range(2)]
        # Two rows' worth before anybody waits: the first one is admitted, the second one waits.
        await engine.until(lambda: len(engine.requests) == 2)
        assert "prompt tokens" in (await refused(s)).json()["error"]["message"]
        first = engine.requests[0].id
        engine.router.dispatch(Frame([], [], [], [], [], engine.stats(), started=[Started(first, 0.0, 0)]))
        # Only the second one waits now, and a short one finds room behind it.
        task = asyncio.ensure_future(s.complete(prompt="x"))
        await engine.until(lambda: len(engine.requests) == 3)
        for request in list(engine.requests):
            engine.emit(request.id, b"a", Finish(request.id, "length"))
        assert [reply.status_code for reply in await asyncio.gather(*tasks, task)] == [200] * 3
        assert is_empty(s)


def as_key(s: Served, key: str, **more: object) -> "asyncio.Future[httpx.Response]":
    headers = {"x-api-key": key}
    return asyncio.ensure_future(
        s.http.post("/v1/completions", json={"prompt": "x", **more}, headers=headers)
    )


async def test_requests_of_one_key_at_a_time() -> None:
    engine = ScriptedEngine()
    async with served(engine, HttpSettings(access=WITH_KEYS, max_concurrent_per_key=2)) as s:
        tasks = [as_key(s, "one", stream=True), as_key(s, "one")]
        await engine.until(lambda: len(engine.requests) == 2)
        reply = await as_key(s, "one")
        assert (reply.status_code, reply.json()["error"]["code"]) == (429, "queue_full")
        assert reply.json()["error"]["type"] == "rate_limit_error"
        assert reply.headers["retry-after"] and reply.headers["x-should-retry"] == "true"
        tasks.append(as_key(s, "two"))
        await engine.until(lambda: len(engine.requests) == 3)
        for request in list(engine.requests):
            engine.emit(request.id, b"a", Finish(request.id, "length"))
        assert [reply.status_code for reply in await asyncio.gather(*tasks)] == [200] * 3
        engine.script = says("ok")
        for body in ({}, {"stream": True}, {"max_tokens": 0, "echo": True}, {"max_tokens": -1}, {"n": 3}):
            await as_key(s, "one", **body)  # whatever its end is, it does not keep its place
        assert is_empty(s)


async def test_a_busy_key_leaves_room_for_the_others() -> None:
    engine = ScriptedEngine(max_rows=1)
    async with served(engine, HttpSettings(access=WITH_KEYS, max_queue=9)) as s:
        crowd = [as_key(s, "one") for _ in range(20)]
        pending = set(crowd)
        while len(pending) > 7:
            _, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        turned_away = [task.result() for task in crowd if task.done()]
        assert {reply.status_code for reply in turned_away} == {429}
        assert all(reply.headers["retry-after"] for reply in turned_away)
        let_in = len(engine.requests)
        assert let_in <= 1 + SHARE * 9 // (SHARE + 1) + 1
        other = as_key(s, "two")
        await engine.until(lambda: len(engine.requests) == let_in + 1)
        for request in list(engine.requests):
            engine.emit(request.id, b"a", Finish(request.id, "length"))
        assert (await other).status_code == 200
        await asyncio.gather(*pending)
        assert is_empty(s)


@pytest.mark.parametrize("path", ["/v1/completions", "/chat/completions"])
async def test_a_turn_that_does_not_come(path: str) -> None:
    """Who was not admitted in time is told so; who was admitted and is still being read may take longer."""
    engine = ScriptedEngine()
    body = {"prompt": "x", "messages": [{"role": "user", "content": "x"}]}
    async with served(engine, HttpSettings(queue_timeout=0.1, header_grace=0.01)) as s:
        first = asyncio.ensure_future(s.http.post(path, json=body | {"stream": True}))
        await engine.until(lambda: len(engine.requests) == 1)
        id = engine.requests[0].id
        engine.router.dispatch(Frame([], [], [], [], [], engine.stats(), started=[Started(id, 0.0, 0)]))
        for stream in (False, True):
            late = await s.http.post(path, json=body | {"stream": stream})
            if late.status_code == 200:
                error = next(e["error"] for e in events(late.text) if isinstance(e, dict) and "error" in e)
            else:
                assert late.status_code == 503 and late.headers["retry-after"]
                error = late.json()["error"]
            assert error["code"] == "queue_timeout"
        assert not first.done() and engine.open_streams == 1
        engine.emit(id, b"a", Finish(id, "length"))
        assert "a" in (await first).text
        assert is_empty(s)


async def test_a_wait_that_would_be_too_long_is_refused_at_once() -> None:
    engine = ScriptedEngine(max_rows=1)
    async with served(engine, HttpSettings(queue_timeout=30.0)) as s:
        pace = s.context.gate.pace
        for _ in range(50):
            pace.learn(prompt=1, output=9, choices=1, seconds=20.0)  # half a token per second
        tasks = []
        for k in range(2):
            tasks.append(asyncio.ensure_future(s.complete(prompt="x")))
            await engine.until(lambda k=k: len(engine.requests) == k + 1)
        reply = await refused(s)
        assert "seconds long" in reply.json()["error"]["message"] and int(reply.headers["retry-after"]) >= 30
        for request in list(engine.requests):
            engine.emit(request.id, b"a", Finish(request.id, "length"))
        await asyncio.gather(*tasks)
        assert is_empty(s)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": ["a", "b"]}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]}),
        ("/chat/completions", {"messages": [{"role": "user", "content": "x"}]}),
    ],
)
async def test_a_place_is_given_back_where_the_engine_dies_at_the_last_moment(
    path: str, body: dict[str, object]
) -> None:
    class Dying(ScriptedEngine):
        """Is there when it is asked, and gone when it is needed, with the second prompt at the latest."""

        def submit(self, request: Request) -> list[TokenStream]:
            if self.requests or "prompt" not in body:
                raise EngineUnavailable("gone")
            return super().submit(request)

    engine = Dying()
    async with served(engine) as s:
        reply = await s.http.post(path, json=body)
        assert (reply.status_code, reply.json()["error"]["code"]) == (503, "engine_unavailable")
        board = s.context.gate.board
        assert not any(board.total(column) for column in range(columns(0) - 1))
        assert engine.open_streams == 0
