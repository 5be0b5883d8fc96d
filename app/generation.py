"""The choices of one HTTP request while the engine works on them.

`next()` gives what became known since the last call; `close()` frees whatever is still running in the engine.
Nothing here knows HTTP.
"""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

from app.choices import Choice, EngineFault, Piece
from app.errors import ApiError, EngineGone, InternalError
from app.metrics import Metrics
from engine.messages import Delta, EngineClient, EngineState

Update = tuple[Choice, list[Piece]]


@dataclass(frozen=True, slots=True)
class Usage:
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int

    def payload(self) -> dict[str, object]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
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
        self._single = choices[0] if len(choices) == 1 and choices[0].stream is not None else None
        # Several streams: one pump task each puts its deltas here.
        self._arrived: list[tuple[Choice, Delta]] = []
        self._event = asyncio.Event()
        self._pumps: list[asyncio.Task[None]] = []
        if self._single is None:
            self._pumps = [asyncio.ensure_future(self._pump(c)) for c in choices if c.stream is not None]

    @property
    def done(self) -> bool:
        return not self._running

    async def next(self) -> list[Update]:
        """Waits for news; an empty list is a nudge. Cancelling loses nothing.

        Raises the ApiError of `interrupt`, or the one that an engine's failure amounts to.
        """
        choice = self._single
        if choice is not None and choice.stream is not None:
            arrived = [(choice, await choice.stream.next())]
        else:
            await self._event.wait()
            self._event.clear()
            arrived, self._arrived = self._arrived, []
        if self._error is not None:
            raise self._error
        try:
            return [(choice, pieces) for choice, delta in arrived if (pieces := self._feed(choice, delta))]
        except EngineFault as fault:
            self._metrics.finished("error")
            if self._client.state != EngineState.READY:
                raise EngineGone(str(fault)) from None
            raise InternalError(str(fault)) from None

    def nudge(self) -> None:
        """Makes `next` return, even with nothing."""
        self._event.set()
        if self._single is not None and self._single.stream is not None:
            self._single.stream.pending()
            self._single.stream.wake()

    def interrupt(self, error: ApiError) -> None:
        """Makes `next` raise `error`."""
        self._error = error
        self.nudge()

    def usage(self, choices: Sequence[Choice] | None = None) -> Usage:
        """Tokens of each prompt count once, however many choices continue it."""
        chosen = self.choices if choices is None else choices
        prompts = {id(choice.prompt): choice for choice in chosen}
        return Usage(
            sum(len(choice.prompt) for choice in prompts.values()),
            sum(choice.completion_tokens for choice in chosen),
            sum(choice.cached_tokens for choice in prompts.values()),
        )

    def close(self) -> None:
        """Aborts what still runs in the engine; idempotent."""
        if self._closed:
            return
        self._closed = True
        for pump in self._pumps:
            pump.cancel()
        self._client.abort(
            [c.stream.id for c in self.choices if c.stream is not None and not c.stream.finished]
        )
        for choice in self.choices:
            if not choice.done:
                self._metrics.finished("abort")

    def _feed(self, choice: Choice, delta: Delta) -> list[Piece]:
        if choice.done:
            return []
        if delta.tokens:
            now = time.perf_counter()
            if choice.completion_tokens:
                self._metrics.token_gap(now - choice.last_token_at, len(delta.tokens), now)
            else:
                self._metrics.first_token(now - self._started, len(delta.tokens), now)
            choice.last_token_at = now
        pieces = choice.feed(delta)
        if pieces and (reason := pieces[-1].finish) is not None:
            self._end(choice, reason)
        return pieces

    def _end(self, choice: Choice, reason: str) -> None:
        self._running.discard(choice.index)
        stream = choice.stream
        if stream is not None and not stream.finished:
            self._client.abort([stream.id])  # a stop string: the engine does not know yet
        self._metrics.finished(reason)
        if not self._running:
            self._metrics.answered(time.perf_counter() - self._started)

    async def _pump(self, choice: Choice) -> None:
        stream = choice.stream
        if stream is None:
            return
        while True:
            delta = await stream.next()
            self._arrived.append((choice, delta))
            self._event.set()
            if delta.finish is not None:
                return
