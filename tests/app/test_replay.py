"""What clients see when the engine dies: nothing, if they had been told nothing; else an error, and no third
try. In one process over a scripted engine.
"""

import asyncio
import copy

import httpx
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.admission.replay import POISON_SECONDS, Suspects, fingerprint
from app.settings.http import HttpSettings
from engine.messages import EngineState, Finish, Request, SamplingParams
from tests.app.scripted_engine import END, ScriptedEngine, byte_tokenizer
from tests.app.server_process import DEADLINE
from tests.app.serving import Served, events, served, stream_text

TEXT = "naïve ✓ done"
BODY = [*TEXT.encode(), END]
QUICK = HttpSettings(header_grace=0.0)


class MortalEngine(ScriptedEngine):
    """Dies and comes back when the test says so."""

    def die(self) -> None:
        self.state = EngineState.DEAD
        self.router.fail_all("the engine process was ended by signal 9")

    def revive(self) -> None:
        self.model = copy.copy(self.model)  # each engine describes itself anew
        self.state = EngineState.READY

    async def next_request(self) -> Request:
        """The last one, once there is one more than there was."""
        seen = len(self.requests)
        await self.until(lambda: len(self.requests) > seen)
        return self.requests[-1]

    def say(self, request: Request, tokens: list[int], choice: int = 0) -> None:
        for token in tokens:
            finish = Finish(request.id + choice, "stop", stop_token=END) if token == END else None
            self.emit(request.id + choice, [token], finish)


def code(reply: httpx.Response) -> tuple[int, str]:
    return reply.status_code, reply.json()["error"]["code"]


async def asked(s: Served, **body: object) -> "tuple[asyncio.Task[httpx.Response], Request]":
    seen = len(s.engine.requests)
    task = asyncio.create_task(s.complete(**body))
    await s.engine.until(lambda: len(s.engine.requests) > seen)
    return task, s.engine.requests[-1]


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "plain"])
@pytest.mark.parametrize("headers", ["waiting", "sent"])
async def test_who_was_told_nothing_never_knows(stream: bool, headers: str) -> None:
    engine = MortalEngine()
    settings = QUICK if headers == "sent" else HttpSettings(header_grace=60.0)
    async with served(engine, settings) as s:
        task, first = await asked(s, prompt="x", stream=stream, seed=7)
        engine.die()
        assert (await s.complete(prompt="y")).headers["retry-after"], "who comes meanwhile is told to wait"
        engine.revive()
        second = await engine.next_request()
        assert second.id != first.id
        assert msgspec.structs.replace(second, id=first.id) == first
        engine.say(second, BODY)
        reply = await task
        assert reply.status_code == 200
        text = stream_text(reply.text) if stream else reply.json()["choices"][0]["text"]
        assert text == TEXT
        assert s.context.metrics.replays == 1
        assert s.context.metrics.finishes["error"] == 0 and s.context.metrics.finishes["stop"] == 1
        assert engine.open_streams == 0


@settings(max_examples=6)
@given(st.data())
def test_a_plain_answer_is_the_same_wherever_the_engine_died(data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 3), "n")
    before = data.draw(st.lists(st.integers(0, len(BODY)), min_size=n, max_size=n), "tokens of each choice")
    if min(before) == len(BODY):
        before[0] -= 1  # else it would have been answered
    extra = data.draw(st.sampled_from([{}, {"logprobs": 2}, {"stop": ["do"]}, {"echo": True}]), "request")

    async def body(crash: bool) -> dict[str, object]:
        engine = MortalEngine()
        async with served(engine) as s:
            task, request = await asked(s, prompt="x", n=n, seed=7, **extra)
            if crash:
                for choice, tokens in enumerate(before):
                    for token in BODY[:tokens]:
                        engine.say(request, [token], choice)
                        await asyncio.sleep(0)
                await asyncio.sleep(0)
                engine.die()
                await asyncio.sleep(0)
                engine.revive()
                request = await engine.next_request()
            for choice in range(n):
                for token in BODY:
                    engine.say(request, [token], choice)
                    await asyncio.sleep(0)
            reply = await task
            assert reply.status_code == 200, reply.text
            answer: dict[str, object] = reply.json()
            return {key: answer[key] for key in ("choices", "usage", "seed")}

    assert asyncio.run(body(True)) == asyncio.run(body(False))


async def test_a_choice_that_began_again_is_counted_once() -> None:
    engine = MortalEngine()
    async with served(engine) as s:
        task, first = await asked(s, prompt="x", n=2)
        engine.say(first, BODY)
        engine.say(first, BODY[:3], 1)
        metrics = s.context.metrics
        while not metrics.finishes["stop"]:
            await asyncio.sleep(0)
        engine.die()
        await asyncio.sleep(0)
        engine.revive()
        second = await engine.next_request()
        engine.say(second, BODY)
        engine.say(second, BODY, 1)
        assert (await task).status_code == 200
        assert {reason: count for reason, count in metrics.finishes.items() if count} == {"stop": 2}


async def test_a_stream_that_has_said_something_ends_with_an_error() -> None:
    engine = MortalEngine()
    async with served(engine, QUICK) as s:
        async with s.http.stream("POST", "/v1/completions", json={"prompt": "x", "stream": True}) as reply:
            await engine.until(lambda: bool(engine.requests))
            engine.say(engine.requests[0], list(b"ab"))
            seen = ""
            async for chunk in reply.aiter_text():
                seen += chunk
                if stream_text(seen) == "ab" and engine.state is EngineState.READY:
                    engine.die()
        *_, error, done = events(seen)
        assert isinstance(error, dict) and error["error"]["code"] == "engine_unavailable"
        assert done == "[DONE]"
        engine.revive()
        assert len(engine.requests) == 1
        # Its client tries again: that is no crime until a second engine dies of it.
        task, request = await asked(s, prompt="x", stream=True)
        engine.say(request, BODY)
        assert stream_text((await task).text) == TEXT


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "plain"])
async def test_two_engines_are_enough(stream: bool) -> None:
    engine = MortalEngine()
    async with served(engine) as s:
        task, _first = await asked(s, prompt="bad", stream=stream, n=2)
        engine.die()
        engine.revive()
        await engine.next_request()
        engine.die()
        reply = await task
        assert code(reply) == (500, "poison_request")
        assert reply.headers["x-should-retry"] == "false"
        engine.revive()
        tries = len(engine.requests)
        for body in ({"stream": not stream}, {"seed": 123}):
            again = await s.complete(prompt="bad", n=2, **body)
            assert code(again) == (500, "poison_request") and again.headers["x-should-retry"] == "false"
        assert len(engine.requests) == tries, "nothing of it may reach the engine"
        task, request = await asked(s, prompt="bad", temperature=0.5)
        engine.say(request, BODY)
        assert (await task).status_code == 200, "another request is none of its business"
        assert engine.open_streams == 0


async def test_twins_in_one_crash_are_no_poison() -> None:
    engine = MortalEngine()
    async with served(engine) as s:
        tasks = [(await asked(s, prompt="x", seed=k))[0] for k in range(3)]
        engine.die()
        engine.revive()
        await engine.until(lambda: len(engine.requests) == 6)
        for request in engine.requests[3:]:
            engine.say(request, BODY)
        assert [(await task).json()["choices"][0]["text"] for task in tasks] == [TEXT] * 3


async def test_a_batch_of_prompts_begins_again_as_a_whole() -> None:
    engine = MortalEngine()
    async with served(engine) as s:
        task, _ = await asked(s, prompt=["a", "b"], n=2)
        await engine.until(lambda: len(engine.requests) == 2)
        engine.say(engine.requests[0], BODY)
        engine.die()
        engine.revive()
        await engine.until(lambda: len(engine.requests) == 4)
        for request in engine.requests[2:]:
            for choice in range(2):
                engine.say(request, [ord("x"), *request.prompt[-1:], ord("0") + choice, END], choice)
        texts = [choice["text"] for choice in (await task).json()["choices"]]
        assert texts == ["xa0", "xa1", "xb0", "xb1"]


async def test_waiting_for_an_engine_ends_at_the_deadline() -> None:
    engine = MortalEngine()
    async with served(engine, HttpSettings(request_timeout=0.2)) as s:
        task, _ = await asked(s, prompt="x")
        engine.die()
        assert code(await task) == (504, "deadline_exceeded")
        engine.revive()
        assert await s.context.lifecycle.wait_idle(5)
        task, request = await asked(s, prompt="y")
        assert len(engine.requests) == 2, "nobody is submitted who has been answered"
        engine.say(request, BODY)
        assert (await task).status_code == 200


async def test_who_leaves_while_waiting_is_not_submitted() -> None:
    engine = MortalEngine()
    async with served(engine) as s:
        leaving, _ = await asked(s, prompt="x")
        staying, _ = await asked(s, prompt="y")
        engine.die()
        leaving.cancel()
        await asyncio.wait({leaving})
        await engine.until(lambda: True)
        async with asyncio.timeout(DEADLINE):
            while s.context.lifecycle.open_answers > 1:
                await asyncio.sleep(0.001)
        engine.revive()
        request = await engine.next_request()
        engine.say(request, BODY)
        assert (await staying).status_code == 200
        assert [bytes(r.prompt[1:]) for r in engine.requests] == [b"x", b"y", b"y"]


async def test_a_server_on_its_way_out_waits_for_no_engine() -> None:
    engine = MortalEngine()
    async with served(engine) as s:
        task, _ = await asked(s, prompt="x")
        engine.die()
        s.context.lifecycle.start_draining()
        assert code(await task) == (503, "engine_unavailable")
    async with served(engine := MortalEngine()) as s:
        task, _ = await asked(s, prompt="x")
        s.context.lifecycle.start_draining()
        engine.die()
        assert code(await task) == (503, "engine_unavailable")


async def test_no_memory_for_a_request_is_a_503() -> None:
    engine = ScriptedEngine()
    async with served(engine) as s:
        for stream in (True, False):
            task, request = await asked(s, prompt="x", stream=stream)
            finish = Finish(request.id, "error", message="there was no memory", code="out_of_memory")
            engine.emit(request.id, [], finish)
            reply = await task
            assert code(reply) == (503, "out_of_memory") and reply.headers["retry-after"]
        assert s.context.metrics.finishes["error"] == 2


async def test_a_grammar_that_fails_on_the_way_is_its_senders_fault() -> None:
    engine = ScriptedEngine()
    async with served(engine) as s:
        finish = Finish(1, "error", message="the grammar failed: too much", code="grammar_failed")
        for begun in (False, True):
            for stream in (False, True):
                task, request = await asked(s, prompt="x", stream=stream, structured_outputs={"regex": "a+"})
                engine.emit(request.id, b"a" if begun else [])
                await asyncio.sleep(0)
                engine.emit(request.id, [], msgspec.structs.replace(finish, stream=request.id))
                reply = await task
                if begun and stream:
                    assert reply.status_code == 200 and events(reply.text)[-1] == "[DONE]"
                    error = events(reply.text)[-2]["error"]
                else:
                    assert reply.status_code == 400
                    error = reply.json()["error"]
                assert (error["code"], error["param"]) == ("grammar_failed", "structured_outputs.regex")
                assert "too much" in error["message"]


async def test_ready_says_when_a_step_does_not_end() -> None:
    engine = ScriptedEngine()
    async with served(engine, HttpSettings(stuck_seconds=5.0)) as s:
        stats = engine.stats()
        engine.stats = lambda: msgspec.structs.replace(stats, step_age_seconds=5.5)  # type: ignore[method-assign]
        reply = await s.http.get("/ready")
        assert (reply.status_code, reply.json()["state"]) == (503, "stuck")
        assert (await s.http.get("/stats")).json()["step_age_seconds"] == 5.5
        assert (await s.http.get("/health")).json()["ready"] is False
        engine.stats = lambda: stats  # type: ignore[method-assign]
        assert (await s.http.get("/ready")).status_code == 200


def test_suspects_are_forgotten() -> None:
    now = 0.0
    suspects = Suspects(lambda: now)
    engine = MortalEngine()
    request = Request(id=1, prompt=byte_tokenizer().encode("x"), params=SamplingParams(max_tokens=5, seed=1))
    print = fingerprint(request)
    assert not suspects.is_poison(request)
    assert not suspects.crashed(print, engine.model)
    now = POISON_SECONDS - 1
    engine.revive()
    assert suspects.crashed(print, engine.model)
    assert suspects.is_poison(msgspec.structs.replace(request, id=99))
    now = 2 * POISON_SECONDS
    assert not suspects.is_poison(request)
    engine.revive()
    assert not suspects.crashed(print, engine.model), "its first crashes are too long ago"
    suspects.convict(print)
    assert suspects.is_poison(request)


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "plain"])
async def test_a_fault_in_one_row_is_that_requests_alone(stream: bool) -> None:
    """What the engine says when sampling fails for one row (tests/engine/test_containment.py)."""
    engine = MortalEngine()
    async with served(engine, QUICK) as s:
        mate, first = await asked(s, prompt="a", stream=stream)
        task, second = await asked(s, prompt="b", stream=stream)
        for token in BODY[:3]:
            engine.say(first, [token])
            engine.say(second, [token])
            await asyncio.sleep(0)
        engine.emit(second.id, [], Finish(second.id, "error", message="the token could not be used"))
        engine.say(first, BODY[3:])
        reply, good = await task, await mate
        if stream:
            *_, error, done = events(reply.text)
            assert isinstance(error, dict) and error["error"]["code"] == "internal_error" and done == "[DONE]"
            assert stream_text(good.text) == TEXT
        else:
            assert code(reply) == (500, "internal_error") and reply.headers["x-should-retry"] == "false"
            assert good.json()["choices"][0]["text"] == TEXT
        assert s.context.metrics.replays == 0
        assert not s.context.replays.suspects.is_poison(second)
