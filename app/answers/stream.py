"""The two ways to answer a generation: as server-sent events, or as one JSON body.

Both race against the client: when it leaves, whatever still runs is aborted at once, queued or decoding,
streamed or not. A stream's headers wait a moment for the first token, so that an early failure gets a real
HTTP status; later ones become an error event. While its request waits for a row, a stream says how many go
before it. Whatever happens after the headers, a stream ends with `[DONE]`.
"""

import asyncio
import logging
from time import perf_counter

from starlette.types import Receive, Scope, Send

from app.admission.gate import Gate
from app.answers.deadlines import deadlines
from app.answers.generation import Generation, Update
from app.answers.lanes import EventLane, WaitingLane
from app.answers.openai import Writer
from app.answers.pieces import Piece
from app.answers.record import timing_headers
from app.answers.turn import LOOK_SECONDS as QUEUE_SECONDS
from app.answers.turn import Turn
from app.http.direct import DirectWrite, cut, direct_write
from app.http.errors import ApiError, InternalError
from app.http.lifecycle import Lifecycle
from app.http.middleware import key_id, request_id
from app.settings.http import HttpSettings
from app.telemetry.metrics import Metrics

log = logging.getLogger("fastpath.http")

MAX_BACKLOG = 256 * 1024  # bytes that may wait for a reader that is behind
LOOK_SECONDS = 1.0  # how often a reader that is behind is looked at
PING = b": ping\n"  # one line and no blank one: a blank line would dispatch an event in some clients
EVENT_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),
]


async def departure(receive: Receive) -> None:
    """Returns when the client has closed its connection (or the answer is complete)."""
    while (await receive())["type"] != "http.disconnect":
        pass


class Answer:
    """An ASGI application that answers one request from its generation."""

    def __init__(
        self,
        generation: Generation,
        format: Writer,
        settings: HttpSettings,
        lifecycle: Lifecycle,
        metrics: Metrics,
        gate: Gate,
    ) -> None:
        self.generation = generation
        self.format = format
        self.settings = settings
        self.lifecycle = lifecycle
        self.metrics = metrics
        self._scope: Scope = {}
        self.gate = gate
        self.write: DirectWrite | None = None

    def interrupt(self, error: ApiError) -> None:
        self.generation.interrupt(error)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        generation = self.generation
        self.write = direct_write(scope)
        self.format.request_id = request_id(scope)
        self._scope = scope
        try:
            opened = self.lifecycle.answering(self, len(generation.choices), self.format.id, key_id(scope))
            with opened, deadlines(generation, self.settings, self.gate):
                await self._race(receive, send)
        finally:
            generation.close()

    async def _race(self, receive: Receive, send: Send) -> None:
        worker = asyncio.ensure_future(self.answer(send))
        watcher = asyncio.ensure_future(departure(receive))
        try:
            await asyncio.wait((worker, watcher), return_when=asyncio.FIRST_COMPLETED)
            if not worker.done():
                self.generation.leave()
        finally:
            self.generation.close()
            worker.cancel()
            watcher.cancel()
            await asyncio.wait((worker, watcher))
        if not worker.cancelled() and (error := worker.exception()) is not None:
            raise error

    async def answer(self, send: Send) -> None:
        raise NotImplementedError


class JsonAnswer(Answer):
    """Collects everything, then sends one body."""

    async def answer(self, send: Send) -> None:
        generation = self.generation
        generation.whole = True
        attempt = generation.attempts
        collected: dict[int, list[Piece]] = {choice.index: [] for choice in generation.choices}
        lanes: dict[int, WaitingLane] = {}
        for choice in generation.choices:
            lane = WaitingLane(choice, self.format.text, self.metrics)
            lanes[choice.index] = lane
            generation.shorten(choice, lane)
        updates = generation.initial
        while True:
            for choice, pieces in updates:
                collected[choice.index] += lanes[choice.index].take() + pieces
            if generation.done:
                break
            updates = await generation.next()
            if generation.attempts != attempt:
                attempt = generation.attempts
                for index, pieces in collected.items():
                    pieces.clear()
                    lanes[index].take()
        body = self.format.body([(c, collected[c.index]) for c in generation.choices], generation.usage())
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        headers += timing_headers(generation)
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


class EventStream(Answer):
    """One event per token; what arrives while a write is under way goes out together in the next one.

    Where the HTTP server takes body bytes without a coroutine (app/http/direct.py), plain tokens go straight
    from the engine's frame to the connection, and this task sleeps until something else happens.
    """

    async def answer(self, send: Send) -> None:
        self._send = send
        self._loop = asyncio.get_running_loop()
        self._sending_since: float | None = None
        self._last_write = perf_counter()
        self._lanes: list[EventLane] = []
        self._stalled = False
        self._turn = Turn(self.generation, self.settings.queue_notice)
        updates = await self._first_updates()
        await send({"type": "http.response.start", "status": 200, "headers": EVENT_HEADERS})
        self._task = asyncio.current_task()
        self._timer = self._loop.call_later(self._interval(), self._tick)
        try:
            await self._stream(updates)
        except asyncio.CancelledError:
            if not self._stalled:
                raise
            self.metrics.slow_readers += 1
            self.generation.left = "slow_reader"
            log.info("a reader took nothing for %g s or was far behind; aborted", self.settings.send_timeout)
            cut(self._scope)
        finally:
            self._timer.cancel()

    async def _first_updates(self) -> list[Update]:
        """What is known when the headers must leave. Errors until then become a real status."""
        generation, grace = self.generation, self.settings.header_grace
        if generation.initial or generation.done:
            return generation.initial
        updates = await self._updates_within(min(grace, self.settings.queue_notice))
        more = grace - self.settings.queue_notice
        if not updates and not generation.done and more > 0 and not self._turn.waits:
            updates = await self._updates_within(more)
        return updates

    async def _updates_within(self, seconds: float) -> list[Update]:
        generation = self.generation
        updates: list[Update] = []
        try:
            async with asyncio.timeout(seconds):
                while not updates and not generation.done:
                    updates = await generation.next()
        except TimeoutError:
            pass
        return updates

    async def _stream(self, updates: list[Update]) -> None:
        generation, format = self.generation, self.format
        opening = format.opening(generation.choices)
        data = b""
        self._open_lanes()
        try:
            while True:
                if opening and (updates or not self._queued()):
                    data, opening = opening, b""
                data += self._events(updates)
                if generation.done:
                    break
                data = data or self._turn.news()
                if data:
                    await self._write(data)
                elif self._silent():
                    self.metrics.pings += 1
                    await self._write(PING)
                data = b""
                updates = await self._next()
            data += format.ending(generation.usage())
        except ApiError as error:
            data += opening + self._rest() + format.failure(error)
        except Exception:
            log.exception("a stream failed")
            data += opening + format.failure(InternalError())
        await self._finish(data)

    def _queued(self) -> bool:
        """Whether it waits, and has waited for long enough to say so."""
        return self._turn.waits and perf_counter() - self.generation.started >= self.settings.queue_notice

    async def _next(self) -> list[Update]:
        """What comes next; nothing after a while, as long as its place in the queue may change."""
        if not self._turn.waits:
            return await self.generation.next()
        look = self._loop.call_later(QUEUE_SECONDS, self.generation.nudge)
        try:
            return await self.generation.next()
        finally:
            look.cancel()

    def _open_lanes(self) -> None:
        if self.write is None:
            return
        for choice in self.generation.choices:
            lane = self.format.lane(choice, self.write, self.metrics)
            if lane is not None:
                self._lanes.append(lane)
                self.generation.shorten(choice, lane)

    def _events(self, updates: list[Update]) -> bytes:
        if not updates:
            return b""
        events = [self.format.event(choice, piece) for choice, pieces in updates for piece in pieces]
        data = b"".join(events)
        self.metrics.sent(len(events), len(data))
        return data

    def _rest(self) -> bytes:
        """Events that were held back, when a failure ends the stream."""
        return b""

    async def _write(self, data: bytes) -> None:
        if self.write is None or not self.write(data):
            self._sending_since = perf_counter()
            await self._send({"type": "http.response.body", "body": data, "more_body": True})
            self._sending_since = None
        self._last_write = perf_counter()

    async def _finish(self, data: bytes) -> None:
        self._sending_since = perf_counter()
        await self._send({"type": "http.response.body", "body": data, "more_body": False})

    def _since_write(self) -> float:
        """Seconds since the last write, by this task or a lane. Not since the last token: one without text,
        in a calculation for example, writes nothing.
        """
        return perf_counter() - max([self._last_write, *(lane.written_at for lane in self._lanes)])

    def _silent(self) -> bool:
        interval = self.settings.ping_interval
        return interval > 0 and self._since_write() >= interval

    def _interval(self) -> float:
        """How often the timer looks: as often as the shorter of its two duties needs."""
        return min(self.settings.ping_interval or self.settings.send_timeout, self.settings.send_timeout)

    def _tick(self) -> None:
        """Wakes a silent stream for its ping, ends one whose reader takes nothing or is far behind."""
        wait = self._interval()
        if self._sending_since is not None:
            stuck = perf_counter() - self._sending_since
            if stuck >= self.settings.send_timeout or self.generation.backlog > MAX_BACKLOG:
                self._stalled = True
                if self._task is not None:
                    self._task.cancel()
                return
            wait = min(wait, self.settings.send_timeout - stuck, LOOK_SECONDS)
        elif self._silent():
            self.generation.nudge()
        elif self.settings.ping_interval > 0:
            wait = min(wait, self.settings.ping_interval - self._since_write())
        self._timer = self._loop.call_later(max(wait, 0.001), self._tick)
