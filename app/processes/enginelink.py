"""The socket to an engine, and the engine's client on top of it."""

import asyncio
import logging
import time
from collections.abc import Iterable, Sequence
from typing import Protocol, cast

from engine.messages import (
    Abort,
    EngineState,
    EngineStats,
    EngineUnavailable,
    Failed,
    Fanout,
    Frame,
    ModelInfo,
    Ready,
    Request,
    StreamRouter,
    Submit,
    TokenStream,
)
from engine.messages.wire import FromEngine, ToEngine, Unframer, encode, from_engine

log = logging.getLogger("fastpath.engine")


class Receiver(Protocol):
    """Gets what an engine sends."""

    def on_ready(self, info: ModelInfo) -> None: ...

    def on_frames(self, frames: Sequence[Frame]) -> None:
        """All frames that one read has brought."""
        ...


class EngineLink(asyncio.Protocol):
    """Exchanges messages with an engine, and counts how long it has been silent.

    `silent_ticks` and `step_ticks` count the calls of `tick` since the last message, and since the last one
    that showed progress or an idle engine.
    """

    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver
        self._unframer = Unframer()
        self._transport: asyncio.WriteTransport | None = None
        self._steps = -1
        self.lost = asyncio.Event()  # the socket is closed and everything that came through it has been read
        self.failure: Failed | None = None
        self.was_ready = False
        self.silent_ticks = 0
        self.step_ticks = 0
        self.heard = 0.0  # when (monotonic)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)  # uvloop's is no subclass

    def data_received(self, data: bytes) -> None:
        self.heard = time.monotonic()
        frames: list[Frame] = []
        try:
            for body in self._unframer.feed(data):
                message = from_engine.decode(body)
                if isinstance(message, Frame):
                    frames.append(message)
                else:
                    self._take(message)
            if frames:
                self._progress(frames)
                self._receiver.on_frames(frames)
        except Exception:
            log.exception("the engine sent what cannot be understood")
            self.broken()

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set()

    def broken(self) -> None:
        """The engine sent what is no message."""
        self.close()

    def _take(self, message: FromEngine) -> None:
        self.silent_ticks = 0
        if isinstance(message, Ready):
            self.was_ready = True
            self.step_ticks = 0
            self._receiver.on_ready(message.info)
        elif isinstance(message, Failed):
            self.failure = message

    def _progress(self, frames: Sequence[Frame]) -> None:
        self.silent_ticks = 0
        stats = frames[-1].stats
        if stats.steps != self._steps or not (stats.running or stats.waiting):
            self._steps, self.step_ticks = stats.steps, 0

    def tick(self) -> None:
        self.silent_ticks += 1
        self.step_ticks += 1

    def send(self, message: ToEngine) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(encode(message))

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()


class LinkedEngine:
    """An `EngineClient` over an `EngineLink`; subclasses make the link and watch it.

    first_id: stream ids are handed out from here. stale_ticks: silence after which the engine is not ready.
    """

    def __init__(self, stale_ticks: float, first_id: int = 1) -> None:
        self._stale_ticks = stale_ticks
        self._next_id = first_id
        self._router = StreamRouter()
        self._fanout = Fanout(self._router)
        self._link: EngineLink | None = None
        self._info: ModelInfo | None = None
        self.revivals = 0  # times that another engine took the place of a dead one
        self._dead = False
        self._gone = asyncio.Event()  # for good
        self._was_ready = asyncio.Event()

    @property
    def state(self) -> EngineState:
        if self._dead or self._gone.is_set():
            return EngineState.DEAD
        if self._link is None or not self._link.was_ready:
            return EngineState.LOADING
        stale = self._link.silent_ticks > self._stale_ticks
        return EngineState.DEAD if stale or self._link.lost.is_set() else EngineState.READY

    @property
    def info(self) -> ModelInfo:
        if self._info is None:
            raise EngineUnavailable("the model is still loading")
        return self._info

    def next_id(self, n: int) -> int:
        first = self._next_id
        self._next_id += n
        return first

    def submit(self, request: Request) -> list[TokenStream]:
        state = self.state
        if self._link is None or state is not EngineState.READY:
            loading = state is EngineState.LOADING
            raise EngineUnavailable("the model is still loading" if loading else "the engine is restarting")
        streams = self._router.open(request)
        self._link.send(Submit(request))
        return streams

    def abort(self, streams: Iterable[int]) -> None:
        still_open = self._router.close(streams)
        if still_open and self._link is not None:
            self._link.send(Abort(still_open))

    def stats(self) -> EngineStats:
        return self._router.stats

    def on_frames(self, frames: Sequence[Frame]) -> None:
        self._fanout.push(frames)

    @property
    def heartbeat_age(self) -> float:
        """Seconds since the engine was heard; 0 while there is none that could be."""
        link = self._link
        return time.monotonic() - link.heard if link is not None and link.was_ready else 0.0

    def on_ready(self, info: ModelInfo) -> None:
        self.revivals += self._info is not None
        self._info = info
        self._dead = False
        self._was_ready.set()

    def _bury(self, message: str) -> None:
        """What holds once an engine is gone: no stream is open and nothing runs."""
        self._fanout.flush()  # what it said before its end
        self._dead = self._info is not None
        self._link = None
        self._router.stats = EngineStats()
        self._router.fail_all(message)
