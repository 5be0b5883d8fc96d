"""The choices of one HTTP request while the engine works on them.

`next()` gives what became known since the last call; `close()` frees whatever is still running in the engine.
Nothing here knows HTTP.
"""

import asyncio
import time
from dataclasses import dataclass

from app.choices import Choice, Piece
from app.errors import ApiError, EngineGone, InternalError
from app.metrics import Metrics
from engine.messages import Delta, EngineClient, EngineState, Lane

Update = tuple[Choice, list[Piece]]


@dataclass(frozen=True, slots=True)
class Usage:
    """What an answer cost; `cached_tokens` is None, and left out of the payload, where nobody knows it."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int | None

    def payload(self) -> dict[str, object]:
        cached = {} if self.cached_tokens is None else {"cached_tokens": self.cached_tokens}
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": cached,
        }


class Generation:
    """`started` is the time (perf_counter) at which the HTTP request came in. One task at a time calls
    `next`.
    """

    def __init__(self, client: EngineClient, choices: list[Choice], metrics: Metrics, started: float) -> None:
        self.choices = choices
        self._client = client
        self._metrics = metrics
        self._started = started
        self._running = {choice.index for choice in choices if choice.stream is not None}
        self._error: ApiError | None = None
        self._closed = False
        # A prompt that is only echoed is answered from the start.
        self.initial: list[Update] = []
        for choice in choices:
            if choice.stream is None:
                choice.done = True
                self.initial.append((choice, [Piece("", [], finish="length")]))
        self._streams = [(choice, choice.stream) for choice in choices if choice.stream is not None]
        for _, stream in self._streams:
            stream.listener = self._wake
        self._lanes: dict[int, Lane] = {}  # by choice index
        self._waiter: asyncio.Future[None] | None = None
        self._nudged = False

    @property
    def done(self) -> bool:
        return not self._running

    @property
    def admitted(self) -> bool:
        """Whether the engine has begun to work on it."""
        return any(
            choice.stream is None or choice.stream.admitted_at or choice.completion_tokens or choice.done
            for choice in self.choices
        )

    async def next(self) -> list[Update]:
        """Waits for news; an empty list is a nudge. Cancelling loses nothing.

        Raises the ApiError of `interrupt`, or the one that an engine's failure amounts to; what arrived
        together with the failure is returned first.
        """
        if self._error is not None:
            raise self._error
        arrived = self._take()
        while not arrived and not self._nudged:
            await self._wait()
            if self._error is not None:
                raise self._error
            arrived = self._take()
        self._nudged = False
        updates = [(choice, pieces) for choice, delta in arrived if (pieces := self._feed(choice, delta))]
        if self._error is not None and not updates:
            raise self._error
        return updates

    def shorten(self, choice: Choice, lane: Lane) -> None:
        """Lets plain tokens of a choice take `lane` while a task waits in `next`: it is not woken for them.

        What the lane takes it accounts for itself, as `_feed` does for the rest.
        """
        self._lanes[choice.index] = lane

    def nudge(self) -> None:
        """Makes `next` return, even with nothing."""
        self._nudged = True
        self._wake()

    def interrupt(self, error: ApiError) -> None:
        """Makes `next` raise `error`."""
        self._error = error
        self._wake()

    def usage(self) -> Usage:
        """Tokens of each prompt count once, however many choices continue it; what the cache had of them is
        what the first choice found there.
        """
        prompts: dict[int, Choice] = {}
        for choice in self.choices:
            prompts.setdefault(id(choice.prompt), choice)
        cached = [choice.cached_tokens for choice in prompts.values()]
        known = [tokens for tokens in cached if tokens is not None]
        return Usage(
            sum(len(choice.prompt) for choice in prompts.values()),
            sum(choice.completion_tokens for choice in self.choices),
            sum(known) if len(known) == len(cached) else None,
        )

    def close(self) -> None:
        """Aborts what still runs in the engine; idempotent."""
        if self._closed:
            return
        self._closed = True
        self._client.abort(
            [c.stream.id for c in self.choices if c.stream is not None and not c.stream.finished]
        )
        self._leave()
        for choice in self.choices:
            if not choice.done:
                self._metrics.finished("abort")

    def _take(self) -> list[tuple[Choice, Delta]]:
        return [(choice, delta) for choice, stream in self._streams if (delta := stream.take()) is not None]

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    async def _wait(self) -> None:
        """Waits until `_wake` is called. The lanes are open just as long."""
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            if self._lanes:
                for choice, stream in self._streams:
                    if choice.plain and choice.completion_tokens:
                        stream.lane = self._lanes[choice.index]
            await self._waiter
        finally:
            self._waiter = None
            if self._lanes:
                for _, stream in self._streams:
                    stream.lane = None

    def _feed(self, choice: Choice, delta: Delta) -> list[Piece]:
        if choice.done:
            return []
        if delta.tokens:
            now = time.perf_counter()
            if choice.completion_tokens:
                self._metrics.token_gap(now - choice.last_token_at, len(delta.tokens), now)
            else:
                self._metrics.first_token(now - self._started, len(delta.tokens), now)
                if choice.place is not None:
                    choice.place.admit()  # where the engine has not said so
            choice.last_token_at = now
        pieces = choice.feed(delta)
        if choice.fault is not None:
            self._fail(choice.fault)
        elif pieces and (reason := pieces[-1].finish) is not None:
            self._end(choice, reason)
        return pieces

    def _fail(self, message: str) -> None:
        """Once what is known has been returned, `next` raises."""
        self._metrics.finished("error")
        gone = self._client.state != EngineState.READY
        self._error = self._error or (EngineGone(message) if gone else InternalError(message))

    def _end(self, choice: Choice, reason: str) -> None:
        self._running.discard(choice.index)
        stream = choice.stream
        if stream is not None and not stream.finished:
            self._client.abort([stream.id])  # a stop string: the engine does not know yet
        self._metrics.finished(reason)
        if not self._running:
            self._metrics.answered(time.perf_counter() - self._started)
            self._leave()

    def _leave(self) -> None:
        """Its place is free for others."""
        output = sum(choice.completion_tokens for choice in self.choices)
        for choice in self.choices:
            if choice.place is not None:
                choice.place.leave(output)
