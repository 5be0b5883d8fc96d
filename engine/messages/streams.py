"""Mailboxes: from one frame per step to one stream per choice.

A producer never waits for a consumer. What arrives while the consumer is busy is merged into one `Delta`, so
a slow reader costs memory for its tokens only, and a wake-up of one future per stream and step.
"""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field

from engine.messages.wire import EngineStats, Finish, Frame, Request, TokenLogprobs


@dataclass(slots=True)
class Delta:
    """What a stream received since its last `next()`: tokens in order, and its end, if it ended.

    `forced` holds the positions within `tokens` that the tool machine wrote; `logprobs` is parallel to
    `tokens` where the request asked for them (forced tokens have None), else empty.
    """

    tokens: list[int] = field(default_factory=list)
    forced: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs | None] = field(default_factory=list)
    finish: Finish | None = None


class TokenStream:
    """The tokens of one choice, for one consumer."""

    __slots__ = ("_pending", "_waiter", "finished", "id", "wants_logprobs")

    def __init__(self, id: int, wants_logprobs: bool = False) -> None:
        self.id = id
        self.wants_logprobs = wants_logprobs
        self.finished = False
        self._pending: Delta | None = None
        self._waiter: asyncio.Future[None] | None = None

    def pending(self) -> Delta:
        """The delta that the next `next()` will return; only the router writes to it."""
        if self._pending is None:
            self._pending = Delta()
        return self._pending

    def wake(self) -> None:
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def take(self) -> Delta | None:
        """What is pending, without waiting; None if nothing is."""
        delta, self._pending = self._pending, None
        return delta

    async def next(self) -> Delta:
        """Waits until something is pending and returns all of it. After a delta with `finish` none follows.

        Only one task may wait at a time. Cancelling the wait loses nothing.
        """
        while self._pending is None:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        delta, self._pending = self._pending, None
        return delta


class StreamRouter:
    """Knows the open streams and hands each frame's tokens to them. Lives on one event loop."""

    __slots__ = ("_streams", "orphan_tokens", "stats")

    def __init__(self) -> None:
        self._streams: dict[int, TokenStream] = {}
        self.stats = EngineStats()
        self.orphan_tokens = 0  # tokens for streams that had been closed before they arrived

    def __len__(self) -> int:
        return len(self._streams)

    def open(self, request: Request) -> list[TokenStream]:
        """One stream per choice. Raises ValueError if an id is already open."""
        wants = request.params.logprobs is not None
        streams = [TokenStream(request.id + k, wants) for k in range(request.n)]
        if any(stream.id in self._streams for stream in streams):
            raise ValueError(f"request id {request.id} is already open")
        for stream in streams:
            self._streams[stream.id] = stream
        return streams

    def close(self, ids: Iterable[int]) -> list[int]:
        """Forgets streams whose consumer left; returns those that were still open."""
        return [id for id in ids if self._streams.pop(id, None) is not None]

    def dispatch(self, frame: Frame) -> None:
        """Appends a frame's tokens to their streams and wakes each consumer once."""
        self.stats = frame.stats
        streams = self._streams
        touched: dict[int, TokenStream] = {}
        forced = set(frame.forced)
        logprobs = {item.index: item for item in frame.logprobs}
        for index, (id, token) in enumerate(zip(frame.streams, frame.tokens, strict=True)):
            stream = streams.get(id)
            if stream is None:
                self.orphan_tokens += 1
                continue
            delta = stream.pending()
            if index in forced:
                delta.forced.append(len(delta.tokens))
            delta.tokens.append(token)
            if stream.wants_logprobs:
                delta.logprobs.append(logprobs.get(index))
            touched[id] = stream
        for finish in frame.finished:
            stream = streams.pop(finish.stream, None)
            if stream is not None:
                stream.finished = True
                stream.pending().finish = finish
                touched[finish.stream] = stream
        for stream in touched.values():
            stream.wake()

    def fail_all(self, message: str) -> None:
        """Ends every open stream with an error: the engine is gone."""
        for id, stream in list(self._streams.items()):
            stream.finished = True
            stream.pending().finish = Finish(id, "error", message=message)
            stream.wake()
        self._streams.clear()
