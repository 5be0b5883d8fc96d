"""The engine's side of its sockets: one to the front end that started it, and any number of further ones.

    first link    configuration, Shutdown; the engine ends with it
    other links   requests and aborts only; with a link end its streams, and nothing else

Each link gets the tokens of the streams that were submitted through it. The step loop never waits for a
socket: while one is full, its frames are merged.
"""

import asyncio
import contextlib
import socket
from collections.abc import Callable, Iterable, Sequence
from itertools import compress
from typing import Protocol, cast

from engine.messages import (
    Abort,
    EngineConfig,
    EngineStats,
    Finish,
    Frame,
    ModelInfo,
    Ready,
    Request,
    Submit,
    TokenLogprobs,
)
from engine.messages.wire import ToEngine, Unframer, encode, merge, to_engine

FAREWELL_SECONDS = 2.0


class Queue(Protocol):
    """What links need of an engine. `enqueue` raises ValueError for a request that it can never serve."""

    info: ModelInfo
    on_frame: Callable[[Frame], None] | None

    def enqueue(self, request: Request) -> None: ...

    def abort(self, streams: Iterable[int]) -> None: ...

    def stats(self) -> EngineStats: ...


class Outbox:
    """Frames on their way to a front end; those that meet a full socket are merged into one."""

    def __init__(self, transport: asyncio.WriteTransport) -> None:
        self._transport = transport
        self._full = False
        self._held: Frame | None = None
        self.sent = 0  # frames written or held since the last heartbeat

    def push(self, frame: Frame) -> None:
        self.sent += 1
        if not self._full:
            self._transport.write(encode(frame))
        elif self._held is None:
            self._held = frame
        else:
            self._held = merge(self._held, frame)

    def pause(self) -> None:
        self._full = True

    def resume(self) -> None:
        self._full = False
        held, self._held = self._held, None
        if held is not None:
            self._transport.write(encode(held))


class Link(asyncio.Protocol):
    """A socket to a front end. What cannot be understood ends the link."""

    def __init__(self, exchange: "Exchange") -> None:
        self._exchange = exchange
        self._unframer = Unframer()
        self.closed = asyncio.Event()  # nothing can be sent any more
        self.outbox: Outbox

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.WriteTransport, transport)  # uvloop's is no subclass
        self.outbox = Outbox(self.transport)
        self._exchange.attach(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._exchange.detach(self)
        self.closed.set()

    def pause_writing(self) -> None:
        self.outbox.pause()

    def resume_writing(self) -> None:
        self.outbox.resume()

    def data_received(self, data: bytes) -> None:
        for body in self._unframer.feed(data):
            self.take(to_engine.decode(body))

    def take(self, message: ToEngine) -> None:
        if isinstance(message, Submit):
            self._exchange.submit(self, message.request)
        elif isinstance(message, Abort):
            self._exchange.abort(self, message.streams)

    async def hang_up(self) -> None:
        """Sends what is still unsent, then closes the socket."""
        self.outbox.resume()
        self.transport.close()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.closed.wait(), FAREWELL_SECONDS)


class FirstLink(Link):
    """The socket to the front end that started the engine."""

    def __init__(self, exchange: "Exchange") -> None:
        super().__init__(exchange)
        loop = asyncio.get_running_loop()
        self.config: asyncio.Future[EngineConfig] = loop.create_future()
        self.gone: asyncio.Future[None] = loop.create_future()  # nobody wants this engine any more

    def connection_lost(self, exc: Exception | None) -> None:
        self._leave()
        super().connection_lost(exc)

    def take(self, message: ToEngine) -> None:
        if isinstance(message, EngineConfig):
            self.config.set_result(message)
        elif isinstance(message, Submit | Abort):
            super().take(message)
        else:
            self._leave()

    def _leave(self) -> None:
        if not self.gone.done():
            self.gone.set_result(None)


class Exchange:
    """Brings requests from all links to one engine, and each token back through the link that asked."""

    def __init__(self) -> None:
        self._engine: Queue | None = None
        self._links: list[Link] = []
        self._owners: dict[int, Link] = {}  # by stream
        self._server: asyncio.Server | None = None  # uvloop closes one that nobody holds

    @property
    def links(self) -> Sequence[Link]:
        return tuple(self._links)

    def open(self, engine: Queue) -> None:
        """The engine has been started; it is told to all links, and to those that come later."""
        self._engine = engine
        engine.on_frame = self.push
        for link in self._links:
            link.transport.write(encode(Ready(engine.info)))

    async def listen(self, listener: socket.socket) -> None:
        """Lets further front ends connect to a listening Unix socket."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(lambda: Link(self), sock=listener)

    def attach(self, link: Link) -> None:
        self._links.append(link)
        if self._engine is not None:
            link.transport.write(encode(Ready(self._engine.info)))

    def detach(self, link: Link) -> None:
        """Nobody reads what its streams would still say."""
        self._links.remove(link)
        self.abort(link, [id for id, owner in self._owners.items() if owner is link])

    def submit(self, link: Link, request: Request) -> None:
        """A request that the engine cannot take fails alone."""
        ids = range(request.id, request.id + request.n)
        try:
            if self._engine is None:
                raise RuntimeError("the model is still loading")
            if any(id in self._owners for id in ids):
                raise ValueError(f"a stream of request {request.id} is already open")
            self._engine.enqueue(request)
        except Exception as error:
            message = f"{type(error).__name__}: {error}"
            finished = [Finish(id, "error", message=message) for id in ids]
            link.outbox.push(Frame([], [], [], [], finished, self._stats()))
            return
        self._owners.update(dict.fromkeys(ids, link))

    def abort(self, link: Link, ids: Sequence[int]) -> None:
        """Ends the streams among `ids` that are the link's own."""
        own = [id for id in ids if self._owners.get(id) is link]
        for id in own:
            del self._owners[id]
        if self._engine is not None and own:
            self._engine.abort(own)

    def push(self, frame: Frame) -> None:
        """Sends each link its part of a frame. Counters that changed without a token are for all."""
        if not (frame.streams or frame.finished or frame.prompts or frame.started):
            for link in self._links:
                link.outbox.push(Frame([], [], [], [], [], frame.stats))
        elif len(self._links) == 1:
            self._links[0].outbox.push(frame)
        else:
            self._share_out(frame)
        for finish in frame.finished:
            self._owners.pop(finish.stream, None)

    def beat(self) -> None:
        """Called once per heartbeat: a link that got no frame since the last call gets an empty one."""
        for link in self._links:
            if not link.outbox.sent:
                link.outbox.push(Frame([], [], [], [], [], self._stats()))
            link.outbox.sent = 0

    def _share_out(self, frame: Frame) -> None:
        owners = [self._owners.get(id) for id in frame.streams]
        finishers = [self._owners.get(finish.stream) for finish in frame.finished]
        starters = [self._owners.get(started.stream) for started in frame.started]
        scored = [self._owners.get(scores.stream) for scores in frame.prompts]
        concerned = {*owners, *finishers, *starters, *scored}
        for link in self._links:
            if link not in concerned:
                continue
            mine = [owner is link for owner in owners]
            part = Frame(
                list(compress(frame.streams, mine)),
                list(compress(frame.tokens, mine)),
                [],
                [],
                [finish for finish, owner in zip(frame.finished, finishers, strict=True) if owner is link],
                frame.stats,
                [scores for scores, owner in zip(frame.prompts, scored, strict=True) if owner is link],
                [started for started, owner in zip(frame.started, starters, strict=True) if owner is link],
            )
            if frame.forced or frame.logprobs:
                _move_marks(frame, part, mine)
            link.outbox.push(part)

    def _stats(self) -> EngineStats:
        return self._engine.stats() if self._engine is not None else EngineStats()


def _move_marks(frame: Frame, part: Frame, mine: Sequence[bool]) -> None:
    """What a frame says about positions, said about those of its part."""
    places = {index: place for place, index in enumerate(compress(range(len(mine)), mine))}
    part.forced.extend(places[index] for index in frame.forced if index in places)
    part.logprobs.extend(
        TokenLogprobs(places[item.index], item.logprob, item.top_ids, item.top_logprobs)
        for item in frame.logprobs
        if item.index in places
    )
