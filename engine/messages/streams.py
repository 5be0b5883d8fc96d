"""Mailboxes: from one frame per step to one stream per choice.

A producer never waits for a consumer. What arrives while the consumer is busy is merged into one `Delta`, so
a slow reader costs memory for its tokens only, and a wake-up of one future per stream and step. A consumer
that can do its part at once, without waiting for anything, offers a `Lane` and is not even woken.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import reduce
from time import perf_counter
from typing import Protocol

from engine.messages.wire import (
    EngineStats,
    Finish,
    Frame,
    PromptLogprobs,
    Request,
    Started,
    TokenLogprobs,
    merge,
)

log = logging.getLogger("fastpath.engine")

ROWS_PER_TURN = 128  # streams served before the event loop gets its turn
ARRIVALS = 4096  # frames with tokens whose times are remembered


@dataclass(slots=True)
class Delta:
    """What a stream received since its last `next()`: tokens in order, and its end, if it ended.

    `forced` holds the positions within `tokens` that the tool machine wrote; `logprobs` is parallel to
    `tokens` where the request asked for them (forced tokens have None), else empty. `prompt` has the logprobs
    of prompt tokens, which come before any token of the request.
    """

    tokens: list[int] = field(default_factory=list)
    forced: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs | None] = field(default_factory=list)
    finish: Finish | None = None
    prompt: Sequence[PromptLogprobs] = ()


class Lane(Protocol):
    """Takes a stream's plain tokens where they arrive; `now` is perf_counter's time of arrival.

    False: nothing was taken, and the tokens go into the stream's delta. Neither method may wait or call the
    router. A lane that raises is taken away; what it was given goes into the delta.
    """

    def push(self, token: int, now: float) -> bool: ...

    def push_all(self, tokens: Sequence[int], now: float) -> bool:
        """Several tokens at once: the consumer is behind."""
        ...


class TokenStream:
    """The tokens of one choice, for one consumer.

    The consumer waits in `next`, or has `listener` called when something is pending and fetches it with
    `take`. `lane`, while it is set and nothing is pending, gets the tokens that do not end the stream; the
    consumer takes it away before it does anything that would have to come before the next token.

    What nobody needs for the tokens themselves: `request`, as the engine was asked; `started`, once the
    choice has got a row; `arrivals`, for all streams of a router: when frames with tokens came
    (perf_counter), and how many steps the engine had made by then.
    `admitted_at` is when the engine said that it works on the stream (perf_counter, 0: not yet), and
    `on_admission` is called then.
    """

    __slots__ = (
        "_waiter",
        "admitted_at",
        "arrivals",
        "finished",
        "held",
        "id",
        "lane",
        "listener",
        "on_admission",
        "request",
        "started",
        "wants_logprobs",
    )

    def __init__(
        self,
        id: int,
        wants_logprobs: bool = False,
        request: Request | None = None,
        arrivals: Sequence[tuple[float, int]] = (),
    ) -> None:
        self.id = id
        self.started: Started | None = None
        self.arrivals = arrivals
        self.wants_logprobs = wants_logprobs
        self.request = request
        self.finished = False
        self.held: Delta | None = None  # what is pending
        self.lane: Lane | None = None
        self.listener: Callable[[], None] | None = None
        self.admitted_at = 0.0
        self.on_admission: Callable[[], None] | None = None
        self._waiter: asyncio.Future[None] | None = None

    def pending(self) -> Delta:
        """The delta that the next `next()` will return; only the router writes to it."""
        if self.held is None:
            self.held = Delta()
        return self.held

    def wake(self) -> None:
        if self.listener is not None:
            self.listener()
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def take(self) -> Delta | None:
        """What is pending, without waiting; None if nothing is."""
        delta, self.held = self.held, None
        return delta

    async def next(self) -> Delta:
        """Waits until something is pending and returns all of it. After a delta with `finish` none follows.

        Only one task may wait at a time. Cancelling the wait loses nothing.
        """
        while self.held is None:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        delta, self.held = self.held, None
        return delta


class StreamRouter:
    """Knows the open streams and hands each frame's tokens to them. Lives on one event loop."""

    __slots__ = ("_arrivals", "_streams", "orphan_tokens", "stats")

    def __init__(self) -> None:
        self._arrivals: deque[tuple[float, int]] = deque(maxlen=ARRIVALS)
        self._streams: dict[int, TokenStream] = {}
        self.stats = EngineStats()
        self.orphan_tokens = 0  # tokens for streams that had been closed before they arrived

    def __len__(self) -> int:
        return len(self._streams)

    def open(self, request: Request) -> list[TokenStream]:
        """One stream per choice. Raises ValueError if an id is already open."""
        wants = request.params.logprobs is not None
        ids = range(request.id, request.id + request.n)
        streams = [TokenStream(id, wants, request, self._arrivals) for id in ids]
        if any(stream.id in self._streams for stream in streams):
            raise ValueError(f"request id {request.id} is already open")
        for stream in streams:
            self._streams[stream.id] = stream
        return streams

    def close(self, ids: Iterable[int]) -> list[int]:
        """Forgets streams whose consumer left; returns those that were still open."""
        return [id for id in ids if self._streams.pop(id, None) is not None]

    def dispatch(self, frame: Frame) -> None:
        """Hands a frame's tokens to their streams: through the lane, or as a delta with a wake-up."""
        for _ in self.deliver(frame):
            pass

    def deliver(self, frame: Frame) -> Iterator[None]:
        """`dispatch` in parts, one per `ROWS_PER_TURN` streams; a stream ends in the part with its last
        token or later.
        """
        self.stats = frame.stats
        now = perf_counter()
        if frame.started:
            self._start(frame.started, now)
        for scores in frame.prompts:
            scored = self._streams.get(scores.stream)
            if scored is not None:
                delta = scored.pending()
                delta.prompt = (*delta.prompt, scores)
                scored.wake()
        if frame.tokens:
            self._arrivals.append((now, frame.stats.steps))
        # A last token goes the same way as the end it came with, so that one event can say both.
        ending = {finish.stream for finish in frame.finished}
        if len(set(frame.streams)) == len(frame.streams):
            yield from self._deliver_step(frame, ending, now)
        else:
            yield from self._deliver_steps(frame, ending, now)
        for finish in frame.finished:
            stream = self._streams.pop(finish.stream, None)
            if stream is not None:
                stream.finished = True
                stream.pending().finish = finish
                stream.wake()

    def _start(self, all_started: Iterable[Started], now: float) -> None:
        for started in all_started:
            stream = self._streams.get(started.stream)
            if stream is not None and not stream.admitted_at:
                stream.started = started
                stream.admitted_at = now
                if stream.on_admission is not None:
                    stream.on_admission()

    def _deliver_step(self, frame: Frame, ending: set[int], now: float) -> Iterator[None]:
        """A frame with one token per stream."""
        find = self._streams.get
        marks = _Marks(frame)
        ids, tokens = frame.streams, frame.tokens
        for start in range(0, len(ids), ROWS_PER_TURN):
            if start:
                yield
            rows = zip(ids[start : start + ROWS_PER_TURN], tokens[start : start + ROWS_PER_TURN], strict=True)
            for index, (id, token) in enumerate(rows, start):
                stream = find(id)
                if stream is None:
                    self.orphan_tokens += 1
                    continue
                lane = stream.lane
                try:
                    if (
                        lane is not None
                        and stream.held is None
                        and id not in ending
                        and lane.push(token, now)
                    ):
                        continue
                except Exception:
                    _remove_lane(stream)
                marks.append(stream, index, token)
                if id not in ending:
                    stream.wake()

    def _deliver_steps(self, frame: Frame, ending: set[int], now: float) -> Iterator[None]:
        """A frame that holds several tokens of some streams: forced ones, or several steps in one."""
        marks = _Marks(frame)
        tokens = frame.tokens
        places: dict[int, list[int]] = {}
        for index, id in enumerate(frame.streams):
            places.setdefault(id, []).append(index)
        for row, (id, indices) in enumerate(places.items(), 1):
            stream = self._streams.get(id)
            if stream is None:
                self.orphan_tokens += len(indices)
                continue
            lane = stream.lane if stream.held is None and id not in ending else None
            taken = False
            try:
                if lane is not None:
                    taken = lane.push_all([tokens[index] for index in indices], now)
            except Exception:
                _remove_lane(stream)
            if not taken:
                for index in indices:
                    marks.append(stream, index, tokens[index])
                if id not in ending:
                    stream.wake()
            if not row % ROWS_PER_TURN:
                yield

    def fail_all(self, message: str) -> None:
        """Ends every open stream with an error: the engine is gone."""
        for id, stream in list(self._streams.items()):
            stream.finished = True
            stream.pending().finish = Finish(id, "error", message=message, code="engine_unavailable")
            stream.wake()
        self._streams.clear()


def _remove_lane(stream: TokenStream) -> None:
    """One stream's fault must not reach the others in its frame."""
    log.exception("the lane of stream %d failed", stream.id)
    stream.lane = None


class _Marks:
    """What a frame says beside its tokens."""

    __slots__ = ("forced", "logprobs")

    def __init__(self, frame: Frame) -> None:
        self.forced = frozenset(frame.forced)
        self.logprobs = {item.index: item for item in frame.logprobs}

    def append(self, stream: TokenStream, index: int, token: int) -> None:
        delta = stream.pending()
        if index in self.forced:
            delta.forced.append(len(delta.tokens))
        delta.tokens.append(token)
        if stream.wants_logprobs:
            delta.logprobs.append(self.logprobs.get(index))


class Fanout:
    """Delivers frames in the order in which they came, with a turn for the event loop between the parts.

    Frames that come while one is being delivered are merged: each stream gets all of theirs at once.
    """

    __slots__ = ("_frames", "_parts", "_router", "_scheduled")

    def __init__(self, router: StreamRouter) -> None:
        self._router = router
        self._frames: list[Frame] = []
        self._parts: Iterator[None] | None = None
        self._scheduled = False

    def push(self, frames: Iterable[Frame]) -> None:
        self._frames += frames
        if not self._scheduled:
            self._turn()

    def flush(self) -> None:
        """Delivers at once what has not been delivered."""
        while self._parts is not None or self._frames:
            self._step()

    def _turn(self) -> None:
        self._scheduled = False
        self._step()
        if self._parts is not None or self._frames:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._turn)

    def _step(self) -> None:
        if self._parts is None and self._frames:
            frame = reduce(merge, self._frames)
            self._frames = []
            self._parts = self._router.deliver(frame)
        if self._parts is not None and next(self._parts, self) is self:
            self._parts = None
