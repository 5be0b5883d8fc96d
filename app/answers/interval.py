"""A stream that sends several tokens in one event, as many as its client asked for (`stream_interval`).

The first token goes out at once. Plain tokens wait in a lane, which writes them itself once they are enough,
so that the stream's task sleeps through them.
"""

from collections.abc import Sequence
from time import perf_counter

from app.answers.choices import Choice
from app.answers.generation import Update
from app.answers.pieces import Piece, merged
from app.answers.stream import EventStream
from app.http.direct import DirectWrite
from app.requests.text import TextService
from app.telemetry.metrics import Metrics


class IntervalLane:
    """Keeps a choice's plain tokens until one more makes them an event; a `Lane`.

    `room` says how many more it may keep. It writes the event only while `first`: while nothing that the
    stream's task holds comes before its tokens. Without a direct way to the connection, the task is woken for
    each event. `written_at` is when it last wrote (perf_counter).
    """

    __slots__ = (
        "_around",
        "_choice",
        "_interval",
        "_metrics",
        "_spellings",
        "_text",
        "_tokens",
        "_write",
        "first",
        "room",
        "written_at",
    )

    def __init__(
        self,
        choice: Choice,
        interval: int,
        text: TextService,
        around: tuple[bytes, bytes] | None,
        write: DirectWrite | None,
        metrics: Metrics,
    ) -> None:
        self._choice = choice
        self._interval = interval
        self._text = text
        self._spellings = text.spellings
        self._around = around
        self._write = write
        self._metrics = metrics
        self._tokens: list[int] = []
        self.room = 0
        self.first = False
        self.written_at = 0.0

    def push(self, token: int, now: float) -> bool:
        if not self._spellings[token]:
            return False
        if self.room > 0:
            self._tokens.append(token)
            self.room -= 1
        elif not self._send(token, now):
            return False
        choice = self._choice
        self._metrics.flowed(choice.last_token_at, now)
        choice.last_token_at = now
        choice.completion_tokens += 1
        return True

    def push_all(self, tokens: Sequence[int], now: float) -> bool:
        if len(tokens) > self.room or not all(self._spellings[token] for token in tokens):
            return False
        choice = self._choice
        self._tokens += tokens
        self.room -= len(tokens)
        self._metrics.token_gap(now - choice.last_token_at, len(tokens), now)
        choice.last_token_at = now
        choice.completion_tokens += len(tokens)
        return True

    def take(self) -> list[Piece]:
        """What it keeps, as a piece."""
        tokens, self._tokens = self._tokens, []
        return [Piece(self._text.decode(tokens), tokens)] if tokens else []

    def _send(self, last: int, now: float) -> bool:
        if self._write is None or self._around is None or not self.first:
            return False
        spellings = self._spellings
        before, after = self._around
        # Each spelling is a JSON string of its own; without the quotes they join to one.
        text = b"".join([spellings[token][1:-1] for token in self._tokens]) + spellings[last][1:-1]
        event = before + b'"' + text + b'"' + after
        if not self._write(event):
            return False
        self._tokens.clear()
        self._metrics.sent(1, len(event))
        self.room = self._interval - 1
        self.written_at = now
        return True


class IntervalStream(EventStream):
    """`format.delivery.interval` tokens per event, fewer in a choice's first and last one.

    Tokens without text (parts of characters, beginnings of stop strings) count with the text that they become
    part of, so an event can hold more.
    """

    def _open_lanes(self) -> None:
        self._interval_lanes: dict[int, IntervalLane] = {}
        self._waiting: dict[int, list[Piece]] = {}
        format = self.format
        for choice in self.generation.choices:
            around = format.around(choice)
            lane = IntervalLane(
                choice, format.delivery.interval, format.text, around, self.write, self.metrics
            )
            self._interval_lanes[choice.index] = lane
            self.generation.shorten(choice, lane)

    def _events(self, updates: list[Update]) -> bytes:
        """The events that `updates` complete; an update without pieces gives what waits."""
        events: list[bytes] = []
        interval = self.format.delivery.interval
        for choice, pieces in updates:
            lane = self._interval_lanes[choice.index]
            begins = choice.index not in self._waiting
            waiting = self._waiting.setdefault(choice.index, [])
            waiting += lane.take() + pieces
            kept = sum(len(piece.tokens) for piece in waiting)
            if waiting and (begins or not pieces or kept >= interval or waiting[-1].finish is not None):
                events += [self.format.event(choice, piece) for piece in merged(waiting)]
                waiting.clear()
                kept = 0
            lane.room = interval - kept - 1
            lane.first = not waiting
        data = b"".join(events)
        if events:
            self.metrics.sent(len(events), len(data))
        return data

    def _rest(self) -> bytes:
        return self._events([(choice, []) for choice in self.generation.choices])

    def _since_write(self) -> float:
        latest = max(lane.written_at for lane in self._interval_lanes.values())
        return perf_counter() - max(self._last_write, latest)
