"""All that can happen to a request, at the same time, in any order: in the end nothing is held or lost."""

import asyncio
import random

import httpx
import pytest

from app.admission import gate
from app.answers.generation import Generation
from app.settings.http import Access, HttpSettings, Key
from engine.messages import EngineState, Finish, Frame, Started
from tests.app.scripted_engine import END
from tests.app.server_process import DEADLINE
from tests.app.serving import Served, served
from tests.app.test_replay import MortalEngine

KEYS = ("one", "two")
SETTINGS = HttpSettings(
    access=Access(keys=tuple(Key.of(key) for key in KEYS)),
    header_grace=0.005,
    queue_timeout=0.15,
    request_timeout=0.3,
    resume_grace=0.02,
    max_queue=12,
    max_concurrent_per_key=8,
)
ROUTES = ("/v1/completions", "/v1/chat/completions", "/chat/completions", "/v1/responses", "/v1/messages")


class Life:
    """An engine that admits, speaks, fails, dies and comes back at random."""

    def __init__(self, engine: MortalEngine, draw: random.Random) -> None:
        self.engine = engine
        self.draw = draw
        self.task = asyncio.create_task(self._live())

    async def _live(self) -> None:
        engine, draw = self.engine, self.draw
        while True:
            await asyncio.sleep(0.001)
            if engine.state is EngineState.DEAD:
                if draw.random() < 0.1:
                    engine.revive()
                continue
            if draw.random() < 0.01:
                engine.die()
                continue
            for id, stream in list(engine.router._streams.items()):
                if not stream.admitted_at and draw.random() < 0.2:
                    started = [Started(id, 0.001, 0)]
                    engine.router.dispatch(Frame([], [], [], [], [], engine.stats(), started=started))
                elif stream.admitted_at and draw.random() < 0.5:
                    self._say(id)

    def _say(self, id: int) -> None:
        chance = self.draw.random()
        if chance < 0.02:
            self.engine.emit(id, [], Finish(id, "error", message="bad luck"))
        elif chance < 0.15:
            self.engine.emit(id, [END], Finish(id, "stop", stop_token=END))
        else:
            self.engine.emit(id, self.draw.choices(b"ab ", k=self.draw.randint(1, 3)))


async def one_request(s: Served, draw: random.Random, name: str) -> None:
    path = draw.choice(ROUTES)
    words = "x" * draw.randint(1, 20)
    body: dict[str, object] = {"messages": [{"role": "user", "content": words}], "max_tokens": 60}
    if path == "/v1/completions":
        body = {"prompt": [words] * draw.randint(1, 2), "n": draw.randint(1, 3), "max_tokens": 60}
    elif path == "/v1/responses":
        body = {"input": words}
    elif path == "/v1/messages":
        body["model"] = "scripted"
    headers = {"x-api-key": draw.choice(KEYS)}
    if path != "/chat/completions":
        body["stream"] = draw.random() < 0.6
        body["stream_interval"] = draw.choice((1, 1, 3))
        if path.startswith("/v1/c") and draw.random() < 0.3:
            body["stop"] = ["ab"]
        if body["stream"] and draw.random() < 0.4:
            headers["x-stream-id"] = name
    patience = draw.choice((0.01, 0.05, 5.0))
    try:
        async with (
            asyncio.timeout(patience),
            s.http.stream("POST", path, json=body, headers=headers) as reply,
        ):
            assert reply.status_code in (200, 429, 499, 500, 503, 504), await reply.aread()
            async for _ in reply.aiter_bytes():
                if draw.random() < 0.02:
                    break
        if "x-stream-id" in headers and draw.random() < 0.5:
            method = draw.choice(("GET", "DELETE"))
            await s.http.request(method, f"/v1/streams/{name}", headers={"x-api-key": headers["x-api-key"]})
    except (TimeoutError, httpx.RemoteProtocolError):
        pass  # it left


def watches_exit(task: "asyncio.Task[object]") -> bool:
    """sse-starlette has one such task for each event loop, for as long as that lives."""
    return "_shutdown_watcher" in repr(task.get_coro())


@pytest.mark.parametrize("seed", range(2))
async def test_nothing_is_held_and_every_choice_is_counted_once(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = random.Random(seed)
    engine = MortalEngine(max_rows=4)
    resubmit = Generation.resubmit
    again = 0

    def asked_for() -> int:
        return sum(request.n for request in engine.requests)

    def counted_resubmit(generation: Generation) -> None:
        nonlocal again
        before = asked_for()
        resubmit(generation)
        again += asked_for() - before

    monkeypatch.setattr(Generation, "resubmit", counted_resubmit)
    async with served(engine, SETTINGS) as s:
        context = s.context
        metrics, lifecycle = context.metrics, context.lifecycle
        before = asyncio.all_tasks()
        life = Life(engine, draw)
        tasks = []
        for k in range(120):
            tasks.append(asyncio.create_task(one_request(s, draw, f"s{k}")))
            await asyncio.sleep(draw.choice((0, 0, 0.01)))
        await asyncio.gather(*tasks)
        async with asyncio.timeout(DEADLINE):
            while lifecycle.open_answers or metrics.open_streams:
                await asyncio.sleep(0.01)
        life.task.cancel()
        async with asyncio.timeout(DEADLINE):  # no task of a request outlives it
            while {task for task in asyncio.all_tasks() - before if not watches_exit(task)}:
                await asyncio.sleep(0.01)
        columns = range(gate.columns(len(KEYS)) - 1)  # the last one only grows
        assert [context.gate.board.total(column) for column in columns] == [0] * len(columns)
        assert engine.open_streams == 0 and lifecycle.open_choices == 0
        assert context.streams.size <= len(context.streams) * 20_000, "no room is reserved any more"
        counted = sum(metrics.finishes.values())
        assert counted == asked_for() - again
        assert metrics.per_request["vllm:request_generation_tokens"].count == counted
