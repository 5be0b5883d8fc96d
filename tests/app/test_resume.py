"""Resumable streams: what a reader gets does not depend on how often, where and through how many connections
it reads.
"""

import asyncio
import gc
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.types import Message, Scope

import app.answers.resume
from app.answers.generation import Generation
from app.answers.resume import Reader, Record, Streams
from app.answers.stream import EventStream
from app.http.middleware import key_id
from app.settings.config import Config
from app.settings.http import Access, HttpSettings, Key
from app.settings.sections import Server
from engine.messages import Finish
from tests.app.scripted_engine import END, ScriptedEngine
from tests.app.server_process import DEADLINE
from tests.app.serving import Served, events, served, stream_text

TEXT = "one ✓ two 🎉 three"
BODY = [*TEXT.encode(), END]
ROUTES: dict[str, dict[str, object]] = {
    "/v1/completions": {"prompt": "x"},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hi"}]},
}


def numbered(body: str) -> Iterator[tuple[int, str]]:
    """(id, data) of each event; every event has both, in this order, and nothing else."""
    for block in body.split("\n\n"):
        lines = [line for line in block.split("\n") if line and not line.startswith(":")]
        if lines:
            number, data = lines
            assert number.startswith("id: ") and data.startswith("data: "), block
            yield int(number.removeprefix("id: ")), data.removeprefix("data: ")


def without_ids(body: str) -> str:
    return "".join(f"data: {data}\n\n" for _, data in numbered(body))


@asynccontextmanager
async def begun(
    s: Served, name: str = "s1", path: str = "/v1/completions", **extra: object
) -> AsyncIterator[httpx.Response]:
    """An open stream; leaving closes its connection."""
    body = {**ROUTES[path], "stream": True, **extra}
    async with s.http.stream("POST", path, json=body, headers={"X-Stream-Id": name}) as reply:
        yield reply


async def read_until(reply: httpx.Response, text: str) -> str:
    seen = ""
    async for chunk in reply.aiter_text():
        seen += chunk
        if text in stream_text(without_ids(seen)):
            return seen
    raise AssertionError(f"the stream ended without {text!r}: {seen}")


def say(engine: ScriptedEngine, tokens: list[int]) -> None:
    id = engine.requests[-1].id
    for token in tokens:
        engine.emit(id, [token], Finish(id, "stop", stop_token=END) if token == END else None)


@pytest.mark.parametrize("path", ROUTES)
async def test_a_second_connection_gets_the_rest(path: str) -> None:
    engine = ScriptedEngine()
    async with served(engine, HttpSettings(header_grace=0.0)) as s:
        async with begun(s, path=path) as reply:
            assert reply.headers["x-stream-id"] == "s1"
            await engine.until(lambda: bool(engine.requests))
            say(engine, BODY[:5])
            seen = await read_until(reply, "one ")
        say(engine, BODY[5:9])  # while nobody reads
        last = [number for number, _ in numbered(seen)][-1]
        rest = asyncio.create_task(s.http.get("/v1/streams/s1", headers={"Last-Event-ID": str(last)}))
        say(engine, BODY[9:])
        got = await rest
        assert got.headers["x-stream-id"] == "s1"
        assert got.headers["content-type"].startswith("text/event-stream")
        both = list(numbered(seen + got.text))
        assert [number for number, _ in both] == list(range(1, len(both) + 1))
        assert stream_text(without_ids(seen + got.text)) == TEXT and both[-1][1] == "[DONE]"
        # It has ended, and can still be had from anywhere on.
        whole = (await s.http.get("/v1/streams/s1")).text
        assert list(numbered(whole)) == both
        for at in (0, 1, 2, len(both), len(both) + 1):
            part = await s.http.get("/v1/streams/s1", params={"from": at})
            assert list(numbered(part.text)) == both[max(at, 1) - 1 :]
        assert engine.aborted == [] and engine.open_streams == 0


@settings(max_examples=8)
@given(st.data())
def test_cut_anywhere_and_any_number_of_times(data: st.DataObject) -> None:
    """Readers that come and go at any event: each one's parts join to the same bytes."""
    cuts = data.draw(st.lists(st.integers(0, len(BODY)), max_size=5), "cuts")
    extra = data.draw(st.sampled_from([{}, {"logprobs": 1}, {"stream_options": {"include_usage": True}}]))

    async def run() -> None:
        engine = ScriptedEngine()
        async with (
            asyncio.timeout(DEADLINE),
            served(engine, HttpSettings(header_grace=0.0)) as s,
            begun(s, **extra) as reply,
        ):
            whole = asyncio.create_task(reply.aread())
            await engine.until(lambda: bool(engine.requests))
            joined, said = "", 0
            for cut in sorted(cuts):
                say(engine, BODY[said:cut])
                said = cut
                last = max((number for number, _ in numbered(joined)), default=0)
                headers = {"Last-Event-ID": str(last)}
                wanted = TEXT.encode()[:cut].decode(errors="ignore")
                if stream_text(without_ids(joined)) == wanted:
                    continue  # nothing has become certain since
                async with s.http.stream("GET", "/v1/streams/s1", headers=headers) as part:
                    async for chunk in part.aiter_text():
                        joined += chunk
                        if stream_text(without_ids(joined)) == wanted:
                            break
                    else:
                        assert said == len(BODY)
                joined = joined[: joined.rfind("\n\n") + 2] if "\n\n" in joined else ""
            say(engine, BODY[said:])
            last = max((number for number, _ in numbered(joined)), default=0)
            joined += (await s.http.get("/v1/streams/s1", headers={"Last-Event-ID": str(last)})).text
            assert joined == (await whole).decode()
            assert stream_text(without_ids(joined)) == TEXT

    asyncio.run(run())


async def test_the_bytes_are_those_of_a_plain_stream_but_for_the_ids() -> None:
    engine = ScriptedEngine(lambda request, choice: BODY)
    async with served(engine) as s:
        body = {"prompt": "x", "stream": True, "seed": 1, "n": 2}
        plain = await s.http.post("/v1/completions", json=body)
        resumable = await s.http.post("/v1/completions", json=body, headers={"X-Stream-Id": "a"})
        assert "id: " not in plain.text and "x-stream-id" not in plain.headers

        def bare(text: str) -> list[object]:
            return [{**e, "id": 0, "created": 0} if isinstance(e, dict) else e for e in events(text)]

        one, two = bare(plain.text), bare(without_ids(resumable.text))
        for index in (0, 1):
            pick = [
                [e for e in es if isinstance(e, dict) and e["choices"][0]["index"] == index]
                for es in (one, two)
            ]
            assert pick[0] == pick[1]


async def test_auto_names_the_stream_like_the_answer() -> None:
    engine = ScriptedEngine(lambda request, choice: BODY)
    async with served(engine) as s:
        reply = await s.http.post(
            "/v1/completions", json={"prompt": "x", "stream": True}, headers={"X-Stream-Id": "auto"}
        )
        name = reply.headers["x-stream-id"]
        assert json.loads(next(numbered(reply.text))[1])["id"] == name
        assert (await s.http.get(f"/v1/streams/{name}")).text == reply.text


async def test_without_a_reader_it_goes_on_for_a_while_only() -> None:
    engine = ScriptedEngine()
    async with served(engine, HttpSettings(header_grace=0.0, resume_grace=0.1)) as s:
        async with begun(s):
            await engine.until(lambda: bool(engine.requests))
        await engine.until(lambda: bool(engine.aborted))
        assert engine.open_streams == 0
        assert await s.context.lifecycle.wait_idle(5)
        assert (s.context.metrics.disconnects, s.context.metrics.finishes["abort"]) == (1, 1)
        assert (await s.http.get("/v1/streams/s1")).status_code == 404
        assert len(s.context.streams) == 0


async def test_a_reader_that_returns_stops_the_clock() -> None:
    engine = ScriptedEngine()
    async with served(engine, HttpSettings(header_grace=0.0, resume_grace=0.5)) as s:
        async with begun(s):
            await engine.until(lambda: bool(engine.requests))
        async with s.http.stream("GET", "/v1/streams/s1") as reply:
            await asyncio.sleep(0.6)  # longer than it may go unread
            assert engine.aborted == []
            say(engine, BODY)
            assert stream_text(without_ids((await reply.aread()).decode())) == TEXT
        assert s.context.metrics.disconnects == 0


async def test_delete_frees_everything_and_tells_readers() -> None:
    engine = ScriptedEngine()
    async with served(engine, HttpSettings(header_grace=0.0)) as s, begun(s, n=2) as reply:
        await engine.until(lambda: bool(engine.requests))
        gone = await s.http.delete("/v1/streams/s1")
        assert (gone.status_code, gone.json()["deleted"]) == (200, True)
        assert sorted(engine.aborted) == [engine.requests[0].id, engine.requests[0].id + 1]
        assert engine.open_streams == 0
        *_, error, done = [data for _, data in numbered((await reply.aread()).decode())]
        assert json.loads(error)["error"]["code"] == "stream_cancelled" and done == "[DONE]"
        for again in (await s.http.delete("/v1/streams/s1"), await s.http.get("/v1/streams/s1")):
            assert (again.status_code, again.json()["error"]["code"]) == (404, "stream_not_found")
        assert await s.context.lifecycle.wait_idle(5)


async def test_a_name_is_taken_while_its_stream_lives() -> None:
    engine = ScriptedEngine()
    async with served(engine, HttpSettings(header_grace=0.0)) as s:
        async with begun(s) as reply:
            await engine.until(lambda: bool(engine.requests))
            async with begun(s) as second:
                assert second.status_code == 409
                assert (await second.aread()) and second.json()["error"]["code"] == "stream_exists"
                assert second.headers["x-should-retry"] == "false"
            assert len(engine.requests) == 1
            say(engine, BODY)
            await reply.aread()
        async with begun(s) as third:
            assert third.status_code == 200
            await engine.until(lambda: len(engine.requests) == 2)
            say(engine, [ord("z"), END])
            assert stream_text(without_ids((await third.aread()).decode())) == "z"


@pytest.mark.parametrize(
    ("name", "extra", "status"),
    [
        ("", {}, 400),
        ("a b", {}, 400),
        ("x" * 129, {}, 400),
        ("x/../y", {}, 400),
        ("fine", {"stream": False}, 400),
        ("fine", {"temperature": 9}, 400),
    ],
)
async def test_what_cannot_be_had_is_refused(name: str, extra: dict[str, object], status: int) -> None:
    engine = ScriptedEngine()
    async with served(engine) as s:
        body = {"prompt": "x", "stream": True, **extra}
        reply = await s.http.post("/v1/completions", json=body, headers={"X-Stream-Id": name})
        assert reply.status_code == status
        assert reply.json()["error"]["param"] == ("temperature" if "temperature" in extra else "X-Stream-Id")
        assert len(s.context.streams) == 0 and s.context.streams.size == 0 and engine.requests == []


async def test_a_failure_before_the_first_byte_keeps_its_status() -> None:
    engine = ScriptedEngine()
    async with served(engine, HttpSettings(request_timeout=0.05)) as s:
        async with begun(s) as reply:
            assert reply.status_code == 504
        assert len(s.context.streams) == 0
        assert engine.open_streams == 0


async def test_bad_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app.answers.resume, "RING_BYTES", 2000)
    engine = ScriptedEngine(lambda request, choice: [*b"abcdefghijklmnop", END])
    async with served(engine) as s:
        async with begun(s) as reply:
            last = [number for number, _ in numbered((await reply.aread()).decode())][-1]
        for headers, query, status, code in [
            ({"Last-Event-ID": "x"}, "", 400, "invalid_value"),
            ({"Last-Event-ID": "-1"}, "", 400, "invalid_value"),
            ({}, "?from=1e3", 400, "invalid_value"),
            ({"Last-Event-ID": str(last + 1)}, "", 400, "out_of_range"),
            ({"Last-Event-ID": "1"}, "", 410, "stream_gap"),
            ({}, "", 410, "stream_gap"),
        ]:
            bad = await s.http.get(f"/v1/streams/s1{query}", headers=headers)
            assert (bad.status_code, bad.json()["error"]["code"]) == (status, code), (headers, query)
        assert (await s.http.post("/v1/streams/s1")).status_code == 405
        assert (await s.http.head("/v1/streams/s1", params={"from": last})).status_code == 200
        kept = await s.http.get("/v1/streams/s1", params={"from": last})
        assert [data for _, data in numbered(kept.text)] == ["[DONE]"]
        assert s.context.streams.size <= 2000


async def test_memory_of_all_streams_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app.answers.resume, "TOTAL_BYTES", 2 * app.answers.resume.RING_BYTES + 5000)
    engine = ScriptedEngine()
    async with served(engine, HttpSettings(header_grace=0.0)) as s:
        async with begun(s, "old") as reply:
            await engine.until(lambda: bool(engine.requests))
            say(engine, [*b"a" * 40, END])
            await reply.aread()
        assert s.context.streams.size > 0
        async with begun(s, "one"), begun(s, "two"):
            assert s.context.streams.size <= app.answers.resume.TOTAL_BYTES
            assert (await s.http.get("/v1/streams/old")).status_code == 404, "the oldest had to go"
            async with begun(s, "three") as third:
                assert third.status_code == 503 and third.headers["retry-after"]
            assert len(engine.requests) == 3


async def test_one_key_leaves_room_for_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app.answers.resume, "TOTAL_BYTES", 2 * app.answers.resume.RING_BYTES)
    settings = HttpSettings(access=Access(keys=(Key.of("one"), Key.of("two"))), header_grace=0.0)
    async with served(ScriptedEngine(), settings) as s:
        s.http.headers["authorization"] = "Bearer one"
        async with begun(s, "a"):
            async with begun(s, "b") as second:
                error = json.loads(await second.aread())["error"]
                assert (second.status_code, error["code"]) == (429, "queue_full")
                assert second.headers["retry-after"] and "share" in error["message"]
            s.http.headers["authorization"] = "Bearer two"
            async with begun(s, "b") as other:
                assert other.status_code == 200
        s.http.headers["authorization"] = "Bearer one"
        assert (await s.http.delete("/v1/streams/a")).status_code == 200
        async with begun(s, "b") as again:
            assert again.status_code == 200, "one that has ended is no part of the share"


async def test_what_is_kept_of_an_ended_stream_is_what_it_said() -> None:
    """Its prompt can be far larger, and many ended streams are kept."""
    engine = ScriptedEngine()
    async with served(engine) as s:
        for name in ("one", "two"):
            task = asyncio.create_task(_read(s, name))
            await engine.until(lambda name=name: bool(engine.requests) and engine.open_streams == 1)
            say(engine, [*b"a" * 40, END])
            await task
        assert len(s.context.streams) == 2
        await s.http.get("/health")  # a connection remembers its last request
        gc.collect()
        assert [each for each in gc.get_objects() if type(each) in (Generation, EventStream)] == []


async def _read(s: Served, name: str) -> None:
    async with begun(s, name) as reply:
        await reply.aread()


async def test_a_delete_before_the_first_step_frees_everything() -> None:
    """The stream's task is cancelled in the same turn of the loop that made it."""
    engine = ScriptedEngine()
    async with served(engine) as s:
        begin = Record.start
        ending: list[asyncio.Task[None]] = []

        def cancelled_at_once(self: Record, scope: Scope) -> None:
            ending.append(asyncio.create_task(self.cancel()))  # its first step comes before the stream's
            begin(self, scope)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Record, "start", cancelled_at_once)
            async with asyncio.timeout(DEADLINE), begun(s, "one") as reply:
                assert reply.status_code == 410
                assert json.loads(await reply.aread())["error"]["code"] == "stream_cancelled"
        await asyncio.gather(*ending)
        assert engine.open_streams == 0 and s.context.lifecycle.open_answers == 0
        assert s.context.gate.board.total(0) == 0


async def test_a_stream_belongs_to_its_key() -> None:
    """`scope["key_id"]` is set by whoever checks keys."""
    streams = Streams(HttpSettings(), *_parts())
    mine, theirs = key_id({"key_id": "aaaaaaaa"}), key_id({"key_id": "bbbbbbbb"})
    body: dict[str, object] = {"stream": True}
    with streams.reserve(b"s", mine, body), streams.reserve(b"s", theirs, body):
        pass  # no oracle: another's name is no conflict
    engine = ScriptedEngine(lambda request, choice: BODY)
    async with served(engine) as s:
        async with begun(s, "s") as reply:
            await reply.aread()
        assert s.context.streams.find("s", "").key == ("", "s")
        with pytest.raises(app.answers.resume.ApiError) as caught:
            s.context.streams.find("s", mine)
        with pytest.raises(app.answers.resume.ApiError) as unknown:
            s.context.streams.find("t", mine)
        assert caught.value.payload() == unknown.value.payload() and caught.value.status == 404


def _parts() -> tuple[object, object]:
    from app.http.lifecycle import Lifecycle
    from app.telemetry.metrics import Metrics

    return Lifecycle(), Metrics()


async def test_several_processes_say_that_they_cannot() -> None:
    settings = Config(server=Server(api_workers=2)).http_settings()
    assert Config().http_settings().resumable
    async with served(ScriptedEngine(), settings) as s:
        async with begun(s) as reply:
            assert reply.status_code == 400
            await reply.aread()
            assert "--api-workers" in reply.json()["error"]["message"]
        assert (await s.http.get("/v1/streams/s1")).status_code == 400


async def test_pings_are_comments_of_one_line() -> None:
    engine = ScriptedEngine()
    settings = HttpSettings(header_grace=0.0, ping_interval=0.02)
    async with served(engine, settings) as s, begun(s) as reply:
        await engine.until(lambda: bool(engine.requests))
        say(engine, [ord("a")])
        seen = ""
        async for chunk in reply.aiter_text():
            seen += chunk
            if seen.count(": ping\n") == 2:
                say(engine, [ord("b"), END])
        assert ": ping\n\n" not in seen and ": ping\n" not in (await s.http.get("/v1/streams/s1")).text
        assert stream_text(without_ids(seen)) == "ab"


async def test_shutdown_ends_a_stream_that_nobody_reads() -> None:
    engine = ScriptedEngine()
    async with served(engine, HttpSettings(header_grace=0.0)) as s:
        async with begun(s):
            await engine.until(lambda: bool(engine.requests))
        lifecycle = s.context.lifecycle
        drain = asyncio.create_task(lifecycle.drain(0.2))
        await asyncio.sleep(0)
        async with s.http.stream("GET", "/v1/streams/s1") as reply:
            assert reply.status_code == 200, "an old stream may be read to its end"
            *_, error, done = [data for _, data in numbered((await reply.aread()).decode())]
        assert json.loads(error)["error"]["code"] == "server_shutdown" and done == "[DONE]"
        assert not await drain
        assert engine.open_streams == 0


async def test_a_reader_that_falls_behind_the_ring_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not over a socket: the kernel would take many events before a write blocks."""
    monkeypatch.setattr(app.answers.resume, "RING_BYTES", 3000)
    engine = ScriptedEngine()
    async with served(engine, HttpSettings(header_grace=0.0)) as s, begun(s) as reply:
        await engine.until(lambda: bool(engine.requests))
        go, blocked = asyncio.Event(), asyncio.Event()
        got = bytearray()

        async def receive() -> Message:
            await asyncio.Event().wait()
            raise AssertionError

        async def send(message: Message) -> None:
            if message["type"] == "http.response.body":
                got.extend(message["body"])
                blocked.set()
                await go.wait()

        streams = s.context.streams
        reader = Reader(streams.find("s1", ""), 1, streams.settings, streams)
        reading = asyncio.create_task(reader({"type": "http", "headers": []}, receive, send))
        say(engine, [ord("a")])
        await blocked.wait()
        say(engine, [*b"b" * 40, END])
        await reply.aread()  # another reader has had everything
        go.set()
        await reading
        first, *_, gap, done, _ = got.decode().split("\n\n")
        assert first.startswith("id: 1\n") and done == "data: [DONE]"
        assert json.loads(gap.removeprefix("data: "))["error"]["code"] == "stream_gap"


async def test_a_reader_that_takes_nothing_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = ScriptedEngine()
    async with served(engine, HttpSettings(header_grace=0.0, send_timeout=0.05)) as s, begun(s) as reply:
        await engine.until(lambda: bool(engine.requests))
        seen = asyncio.create_task(reply.aread())

        async def never(*message: object) -> Message:
            await asyncio.Event().wait()
            raise AssertionError

        async def send(message: Message) -> None:
            if message["type"] == "http.response.body":
                await never()

        streams = s.context.streams
        reader = Reader(streams.find("s1", ""), 1, streams.settings, streams)
        say(engine, [ord("a")])
        await reader({"type": "http", "headers": []}, never, send)
        assert s.context.metrics.slow_readers == 1
        assert engine.aborted == [], "the stream has another reader"
        say(engine, [ord("b"), END])
        assert stream_text(without_ids((await seen).decode())) == "ab"
