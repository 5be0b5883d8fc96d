"""The choices of one HTTP request while the engine works on them.

`next()` gives what became known since the last call; `close()` frees whatever is still running in the engine.
Nothing here knows HTTP.
"""

import asyncio
import time
from dataclasses import dataclass

import msgspec

from app.admission.replay import Replays
from app.answers.choices import Choice
from app.answers.pieces import Piece
from app.http.errors import ApiError, EngineGone, GrammarFailed, InternalError, OutOfMemory, PoisonRequest
from app.telemetry.metrics import Metrics
from engine.messages import Delta, EngineClient, EngineState, EngineUnavailable, Lane, Request

Update = tuple[Choice, list[Piece]]

TOKEN_BYTES = 16  # an id in a list, and its text
LOGPROB_BYTES = 80  # an id and a number in two lists


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
    `next`. `left` is the phase in which the client left, or why it was given up; `fault` is the engine's.

    With `replays`, a generation that has given out nothing survives the engine's death and begins again with
    the next one. `whole`: what it gives out is kept until its end, so it may begin again at any time; the
    answer throws away what it has when `attempts` goes up.
    """

    def __init__(
        self,
        client: EngineClient,
        choices: list[Choice],
        metrics: Metrics,
        started: float,
        replays: Replays | None = None,
    ) -> None:
        self.choices = choices
        self.whole = False
        self.attempts = 1
        self._replays = replays
        self._engine = client.info if replays is not None else None  # the one that works on it
        self._crash: str | None = None  # what the engine died of, not yet dealt with
        self._given = False
        self._client = client
        self._metrics = metrics
        self.started = started
        self.left = ""
        self.fault = ""
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
        updates = await self._news()
        while self._crash is not None and self._starts_again(self._crash):
            updates = await self._news()
        if self._error is not None and not updates:
            raise self._error
        self._given = self._given or bool(updates)
        return updates

    async def _news(self) -> list[Update]:
        arrived = self._take()
        while not arrived and not self._nudged:
            await self._wait()
            if self._error is not None:
                raise self._error
            arrived = self._take()
        self._nudged = False
        return [(choice, pieces) for choice, delta in arrived if (pieces := self._feed(choice, delta))]

    def shorten(self, choice: Choice, lane: Lane) -> None:
        """Lets plain tokens of a choice take `lane` while a task waits in `next`: it is not woken for them.

        What the lane takes it accounts for itself, as `_feed` does for the rest.
        """
        self._lanes[choice.index] = lane

    @property
    def backlog(self) -> int:
        """Roughly the bytes that wait here because nobody has taken them."""
        held = [stream.held for _, stream in self._streams if stream.held is not None]
        tokens = sum(len(delta.tokens) for delta in held)
        alternatives = sum(1 + len(entry.top_ids) for delta in held for entry in delta.logprobs if entry)
        return TOKEN_BYTES * tokens + LOGPROB_BYTES * alternatives

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

    @property
    def phase(self) -> str:
        """How far it has come: "queue", "prefill" or "decode"."""
        if any(choice.completion_tokens for choice in self.choices):
            return "decode"
        got_a_row = any(stream.started is not None for _, stream in self._streams)
        return "prefill" if got_a_row else "queue"

    @property
    def abandoned(self) -> bool:
        """Whether it is unfinished although nothing went wrong with it."""
        return self._error is None and not self.done

    def leave(self) -> None:
        """The client has left; `close` is to follow."""
        self.left = self.phase
        self._metrics.disconnected(self.left)

    def close(self) -> None:
        """Aborts what still runs in the engine; idempotent."""
        if self._closed:
            return
        self._closed = True
        if self._replays is not None:
            self._replays.forget(self)
        self._client.abort(
            [c.stream.id for c in self.choices if c.stream is not None and not c.stream.finished]
        )
        self._free_place()
        for choice in self.choices:
            if not choice.done:
                choice.reason = "abort"
                self._count(choice, "abort")

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
                choice.first_token_at = now
                self._metrics.first_token(now - self.started, len(delta.tokens), now)
                if choice.place is not None:
                    choice.place.admit()  # where the engine has not said so
            choice.last_token_at = now
        pieces = choice.feed(delta)
        if choice.fault is not None:
            self._fail(choice, choice.fault)
        elif pieces and (reason := pieces[-1].finish) is not None:
            self._end(choice, reason)
        return pieces

    def _fail(self, choice: Choice, message: str) -> None:
        """Once what is known has been returned, `next` raises, unless all can begin again."""
        error: ApiError
        if choice.fault_code == "engine_unavailable" and self._replays is not None:
            self._crash = message
            return
        self._count(choice, "error")
        self.fault = message
        if choice.fault_code == "out_of_memory":
            error = OutOfMemory(message)
        elif choice.fault_code == "grammar_failed":
            error = GrammarFailed(message, choice.shaped_by)
        elif choice.fault_code is not None or self._client.state != EngineState.READY:
            error = EngineGone(message)
        else:
            error = InternalError(message)
        self._error = self._error or error

    # -- when the engine has died
    # --------------------------------------------------------------------------------------

    def _requests(self) -> list[tuple[Request, list[Choice]]]:
        """The engine's requests and their choices."""
        requests: dict[int, tuple[Request, list[Choice]]] = {}
        for choice in self.choices:
            request = choice.stream.request if choice.stream is not None else None
            if request is not None:
                requests.setdefault(request.id, (request, []))[1].append(choice)
        return list(requests.values())

    def _starts_again(self, message: str) -> bool:
        """Whether the generation will go to the next engine; if not, it has failed."""
        replays, self._crash = self._replays, None
        assert replays is not None
        faulty = [choice for choice in self.choices if choice.fault is not None]
        caught = [request for request, choices in self._requests() if any(c in faulty for c in choices)]
        poison = replays.caught(caught, self._engine)
        if poison or not replays.possible or self.attempts > 1 or (self._given and not self.whole):
            for choice in faulty:
                self._count(choice, "error")
            self.fault = message
            self._error = self._error or (PoisonRequest() if poison else EngineGone(message))
            return False
        for choice, stream in self._streams:
            stream.listener = None
            choice.restart()
            self._running.add(choice.index)
        self._streams = []
        self.attempts += 1
        self._metrics.replays += 1
        replays.later(self)
        return True

    def resubmit(self) -> None:
        """There is an engine again: gives it the same requests, under new ids."""
        try:
            self._engine = self._client.info
            for request, choices in self._requests():
                again = msgspec.structs.replace(request, id=self._client.next_id(request.n))
                for choice, stream in zip(choices, self._client.submit(again), strict=True):
                    choice.stream = stream
                    stream.listener = self._wake
                    if choice.place is not None:
                        stream.on_admission = choice.place.admit
                    self._streams.append((choice, stream))
        except (EngineUnavailable, ValueError) as error:
            self.interrupt(EngineGone(str(error)))

    def _end(self, choice: Choice, reason: str) -> None:
        self._running.discard(choice.index)
        stream = choice.stream
        if stream is not None and not stream.finished:
            self._client.abort([stream.id])  # a stop string: the engine does not know yet
        self._count(choice, "stop" if reason == "tool_calls" else reason)
        choice.reason = reason
        if not self._running:
            self._metrics.answered(time.perf_counter() - self.started)
            self._free_place()

    def _count(self, choice: Choice, reason: str) -> None:
        if not choice.counted:
            choice.counted = True
            self._metrics.finished(reason)

    def _free_place(self) -> None:
        """Its place is free for others."""
        output = sum(choice.completion_tokens for choice in self.choices)
        for choice in self.choices:
            if choice.place is not None:
                choice.place.leave(output)
