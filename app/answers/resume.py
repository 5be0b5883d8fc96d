"""Streams that outlive their connection, for clients that ask for it with `X-Stream-Id`.

    POST /v1/chat/completions  X-Stream-Id: ID    every event gets `id: N`; what it says is kept for a while
    GET /v1/streams/ID         Last-Event-ID: N   the events after N, then those to come (also ?from=N)
    DELETE /v1/streams/ID                         ends it

Such a stream runs into a ring in memory; its first reader and all later ones follow the ring. Without a
reader it goes on for `HttpSettings.resume_grace` seconds.
"""

import asyncio
import logging
import re
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import msgspec
from starlette.datastructures import Headers, QueryParams
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from app.answers.stream import EVENT_HEADERS, PING, Answer, EventStream, departure
from app.http.direct import cut, direct_write
from app.http.errors import (
    ApiError,
    InternalError,
    QueueFull,
    RequestError,
    StreamCancelled,
    StreamGap,
    Unavailable,
    Unsupported,
)
from app.http.lifecycle import Lifecycle
from app.settings.http import HttpSettings
from app.telemetry.metrics import Metrics

log = logging.getLogger("fastpath.http")

HEADER = "X-Stream-Id"
AUTO = "auto"  # the stream is called as the answer is
RING_BYTES = 1 << 20  # of one stream; older events are forgotten
TOTAL_BYTES = 64 << 20  # of all streams
EVENT_BYTES = 64  # what keeping an event costs beside its text
KEEP_SECONDS = 120.0  # after a stream's end
BUSY_SECONDS = 2  # to wait for one of others' streams to end

_HEADER = HEADER.lower().encode()
_SANE = re.compile(rb"[A-Za-z0-9._:\-]{1,128}")

Key = tuple[str, str]  # whose it is (see app.http.middleware.key_id), and its name


def stream_name(scope: Scope) -> bytes | None:
    """What the client wants to call its stream; None where it wants none that can be resumed."""
    for name, value in scope["headers"]:
        if name == _HEADER:
            return bytes(value)
    return None


class Record:
    """One stream: what it said last, and who reads it.

    Events are numbered from 1; `first` is the oldest that is kept, `next` the one that will come. `comment`
    is the last line that is no event, while no event has come after it.
    """

    def __init__(
        self, key: Key, answer: EventStream, grace: float, ended: Callable[["Record"], None]
    ) -> None:
        self.key = key
        self.first = self.next = 1
        self.size = 0
        self.comment = b""
        self.started = asyncio.Event()  # its headers are decided: it has begun or failed
        self.ended = False
        self.failure: Exception | None = None  # before its headers
        self._events: deque[bytes] = deque()
        self._answer: EventStream | None = answer  # until its end
        self._grace = grace
        self._on_end = ended
        self._readers: dict[object, asyncio.Event] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._unread = asyncio.Event()  # for too long
        self._task: asyncio.Task[None] | None = None

    # -- the stream
    # --------------------------------------------------------------------------------------------------

    def start(self, scope: Scope) -> None:
        self._task = asyncio.create_task(self._run(scope), name="resumable stream")

    async def cancel(self) -> None:
        """Ends it; what it held in the engine has been given up when this returns."""
        if self._answer is not None and self._task is not None:
            self._answer.interrupt(StreamCancelled())
            await asyncio.wait({self._task})

    async def _run(self, scope: Scope) -> None:
        answer = self._answer
        assert answer is not None
        try:
            await answer({**scope, "extensions": {}}, self._receive, self._send)
        except Exception as error:
            if self.started.is_set():
                log.exception("a resumable stream failed")
                self._add(answer.format.failure(InternalError()))
            else:
                self.failure = error
        finally:
            self.ended = True
            self._answer = None  # what it said is all that is kept
            self.started.set()
            self._wake()
            if self._timer is not None:
                self._timer.cancel()
            self._on_end(self)

    async def _receive(self) -> Message:
        """To its answer, the client leaves when nobody has read for too long."""
        await self._unread.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        body = message.get("body", b"")
        if message["type"] == "http.response.start":
            self.started.set()
        elif body.startswith(b":"):
            self.comment = body
            self._wake()
        else:
            self._add(body)

    def _add(self, data: bytes) -> None:
        """Whole events."""
        self.comment = b""
        for event in data.split(b"\n\n")[:-1]:
            numbered = b"id: %d\n%b\n\n" % (self.next, event)
            self._events.append(numbered)
            self.size += len(numbered) + EVENT_BYTES
            self.next += 1
        while self.size > RING_BYTES and len(self._events) > 1:
            self.size -= len(self._events.popleft()) + EVENT_BYTES
            self.first += 1
        self._wake()

    def _wake(self) -> None:
        for news in self._readers.values():
            news.set()

    # -- its readers
    # -------------------------------------------------------------------------------------------------

    @contextmanager
    def reading(self, reader: object) -> Iterator[asyncio.Event]:
        """The event is set whenever there may be something to read."""
        if self._timer is not None:
            self._timer.cancel()
        news = self._readers[reader] = asyncio.Event()
        try:
            yield news
        finally:
            del self._readers[reader]
            if not self._readers and not self.ended:
                loop = asyncio.get_running_loop()
                self._timer = loop.call_later(self._grace, self._unread.set)

    @property
    def given_up(self) -> bool:
        """Nobody has read it for too long."""
        return self._unread.is_set()

    def since(self, number: int) -> bytes:
        """Event `number`, which must not be older than `first`, and all later ones."""
        return b"".join([self._events[k] for k in range(number - self.next, 0)])


class Reader:
    """An ASGI application that sends a stream's events from number `at` on, until its end."""

    def __init__(self, record: Record, at: int, settings: HttpSettings, parts: "Streams") -> None:
        self._record = record
        self._at = at
        self._settings = settings
        self._parts = parts
        self._comment = b""  # the last one sent

    def interrupt(self, error: ApiError) -> None:
        """Nothing to do: the stream itself is interrupted, and tells its readers."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        record = self._record
        with self._parts.lifecycle.attending(self), record.reading(self) as news:
            worker = asyncio.ensure_future(self._follow(scope, send, news))
            watcher = asyncio.ensure_future(departure(receive))
            try:
                await asyncio.wait((worker, watcher), return_when=asyncio.FIRST_COMPLETED)
            finally:
                worker.cancel()
                watcher.cancel()
                await asyncio.wait((worker, watcher))
        if not worker.cancelled() and (error := worker.exception()) is not None:
            raise error

    async def _follow(self, scope: Scope, send: Send, news: asyncio.Event) -> None:
        record = self._record
        await record.started.wait()
        if record.failure is not None:
            raise record.failure
        headers = [*EVENT_HEADERS, (_HEADER, record.key[1].encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        write = direct_write(scope)
        try:
            while True:
                news.clear()
                data = self._news()
                if not data and (record.ended or self._at < record.first):
                    break
                data = data or await self._silence(news)
                if data and (write is None or not write(data)):
                    async with asyncio.timeout(self._settings.send_timeout):
                        await send({"type": "http.response.body", "body": data, "more_body": True})
            async with asyncio.timeout(self._settings.send_timeout):
                end = self._parts.gap(record) if self._at < record.first else b""
                await send({"type": "http.response.body", "body": end, "more_body": False})
        except TimeoutError:
            self._parts.metrics.slow_readers += 1
            cut(scope)

    def _news(self) -> bytes:
        """What can be sent now; nothing where events are missing that a reader this slow has not had."""
        record = self._record
        if self._at < record.first:
            return b""
        data = record.since(self._at)
        self._at = record.next
        if record.comment and record.comment is not self._comment:
            self._comment = record.comment
            data += record.comment
        return data

    async def _silence(self, news: asyncio.Event) -> bytes:
        """Waits for news; a comment if none come for long."""
        interval = self._settings.ping_interval
        try:
            async with asyncio.timeout(interval or None):
                await news.wait()
        except TimeoutError:
            self._parts.metrics.pings += 1
            return PING
        return b""


class Place:
    """A name that is taken, for a stream that is about to begin."""

    def __init__(self, streams: "Streams", key: Key) -> None:
        self._streams = streams
        self._key = key

    def take(self, answer: Answer) -> "FirstReader":
        assert isinstance(answer, EventStream)  # `Streams.reserve` has asked for one
        key = self._key if self._key[1] != AUTO else (self._key[0], answer.format.id)
        return FirstReader(self._streams, self._streams.add(key, answer))


class FirstReader:
    """An ASGI application: begins a stream, and reads it."""

    def __init__(self, streams: "Streams", record: Record) -> None:
        self._streams = streams
        self._record = record

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._record.start(scope)
        await Reader(self._record, 1, self._streams.settings, self._streams)(scope, receive, send)


class Streams:
    """All resumable streams of a server. Their rings never hold more than `TOTAL_BYTES` together."""

    def __init__(self, settings: HttpSettings, lifecycle: Lifecycle, metrics: Metrics) -> None:
        self.settings = settings
        self.lifecycle = lifecycle
        self.metrics = metrics
        self._reserved: list[Key] = []
        self._live: dict[Key, Record] = {}
        self._ended: dict[Key, Record] = {}  # the oldest first

    def __len__(self) -> int:
        return len(self._live) + len(self._ended)

    @property
    def size(self) -> int:
        """Bytes that are held, or that streams under way may come to hold."""
        live = len(self._live) + len(self._reserved)
        return live * RING_BYTES + sum(record.size for record in self._ended.values())

    @property
    def _share(self) -> int | None:
        """Streams that one of several keys may have under way: as many as half of the room holds."""
        return TOTAL_BYTES // RING_BYTES // 2 if len(self.settings.access.keys) > 1 else None

    def _begun(self, key_id: str) -> int:
        return sum(owner == key_id for owner, _ in (*self._live, *self._reserved))

    @contextmanager
    def reserve(self, name: bytes, key_id: str, body: dict[str, object]) -> Iterator[Place]:
        """Takes a name and room for its stream while the request is prepared. Raises ApiError."""
        if not self.settings.resumable:
            raise Unsupported(HEADER, "it needs a server with --api-workers 1.")
        if not _SANE.fullmatch(name):
            allowed = "1 to 128 of the characters A-Z, a-z, 0-9, '.', '_', ':' and '-'"
            raise RequestError("invalid_value", f"'{HEADER}' must be {allowed}.", HEADER)
        if body.get("stream") is not True:
            raise RequestError("invalid_value", f"'{HEADER}' needs \"stream\": true.", HEADER)
        key = (key_id, name.decode())
        if key in self._live or (key in self._reserved and key[1] != AUTO):
            message = "A stream with this id is still under way."
            raise ApiError(409, "stream_exists", message, param=HEADER, headers={"x-should-retry": "false"})
        if (share := self._share) is not None and self._begun(key_id) >= share:
            message = f"This API key has {share} resumable streams under way, its share."
            raise QueueFull(message, BUSY_SECONDS, 1000 * BUSY_SECONDS, param=HEADER)
        while self._ended and self.size + RING_BYTES > TOTAL_BYTES:
            del self._ended[next(iter(self._ended))]
        if self.size + RING_BYTES > TOTAL_BYTES:
            message = "Too many resumable streams are under way."
            raise Unavailable("overloaded", message, retry_after=BUSY_SECONDS, param=HEADER)
        self._reserved.append(key)
        try:
            yield Place(self, key)
        finally:
            self._reserved.remove(key)

    def add(self, key: Key, answer: EventStream) -> Record:
        answer.settings = replace(answer.settings, ping_interval=0.0)  # readers have their own
        self._ended.pop(key, None)
        record = self._live[key] = Record(key, answer, self.settings.resume_grace, self._end)
        return record

    def find(self, id: str, key_id: str) -> Record:
        """Raises ApiError (404): also for a stream that somebody else's key began."""
        key = (key_id, id)
        record = self._live.get(key) or self._ended.get(key)
        if record is None:
            message = "There is no such stream: it never was, has been given up, or ended too long ago."
            raise ApiError(404, "stream_not_found", message, type="not_found_error")
        return record

    def forget(self, record: Record) -> None:
        for records in (self._live, self._ended):
            if records.get(record.key) is record:
                del records[record.key]

    def gap(self, record: Record) -> bytes:
        """The last event of a reader that was too slow for the ring."""
        error = {"error": StreamGap(record.first).payload()}
        return b"data: " + msgspec.json.encode(error) + b"\n\ndata: [DONE]\n\n"

    def _end(self, record: Record) -> None:
        self.forget(record)
        if record.failure is None and not record.given_up:
            self._ended[record.key] = record
            asyncio.get_running_loop().call_later(KEEP_SECONDS, self.forget, record)


class StreamRoute:
    """GET and DELETE of /v1/streams/{id}."""

    def __init__(self, streams: Streams, key_id: Callable[[Scope], str]) -> None:
        self._streams = streams
        self._key_id = key_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        streams = self._streams
        if not streams.settings.resumable:
            raise Unsupported(HEADER, "it needs a server with --api-workers 1.")
        record = streams.find(scope["path_params"]["id"], self._key_id(scope))
        if scope["method"] == "DELETE":
            await record.cancel()
            streams.forget(record)
            body = msgspec.json.encode({"id": record.key[1], "object": "stream", "deleted": True})
            await Response(body, media_type="application/json")(scope, receive, send)
            return
        at = _first_wanted(scope)
        if at < record.first:
            raise StreamGap(record.first)
        if at > record.next:
            message = f"The stream has got to event {record.next - 1} only."
            raise RequestError("out_of_range", message, "from")
        if scope["method"] == "HEAD":
            await Response(media_type="text/event-stream")(scope, receive, send)
            return
        await Reader(record, at, streams.settings, streams)(scope, receive, send)


def _first_wanted(scope: Scope) -> int:
    """The event behind `Last-Event-ID`, or `?from=`; the first one without either. Raises RequestError."""
    last = Headers(scope=scope).get("last-event-id")
    at = QueryParams(scope["query_string"]).get("from")
    name, value = ("Last-Event-ID", last) if last is not None else ("from", at)
    if value is None:
        return 1
    if not re.fullmatch("[0-9]{1,15}", value):
        raise RequestError("invalid_value", f"'{name}' must be the number of an event.", name)
    return int(value) + 1 if last is not None else max(int(value), 1)
