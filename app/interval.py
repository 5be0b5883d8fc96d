"""A stream that sends several tokens in one event, as many as its client asked for (`stream_interval`).

The first token goes out at once. Plain tokens wait in a lane, so that the stream's task is woken once per
event and not once per token.
"""

from collections.abc import Sequence

from app.choices import Piece, joined
from app.generation import Update
from app.lanes import WaitingLane
from app.stream import EventStream


class IntervalLane(WaitingLane):
    """Keeps tokens until one more would complete an event; that one it leaves to the stream's task."""

    __slots__ = ("room",)

    room: int  # tokens that may still be kept

    def push(self, token: int, now: float) -> bool:
        if self.room < 1 or not super().push(token, now):
            return False
        self.room -= 1
        return True

    def push_all(self, tokens: Sequence[int], now: float) -> bool:
        if self.room < len(tokens) or not super().push_all(tokens, now):
            return False
        self.room -= len(tokens)
        return True


class IntervalStream(EventStream):
    """`format.delivery.interval` tokens per event, fewer in a choice's first and last one.

    Tokens without text (parts of characters, beginnings of stop strings) count with the text that they become
    part of, so an event can hold more.
    """

    def _open_lanes(self) -> None:
        self._interval_lanes: dict[int, IntervalLane] = {}
        self._waiting: dict[int, list[Piece]] = {}
        for choice in self.generation.choices:
            lane = IntervalLane(choice, self.format.text, self.metrics)
            lane.room = 0  # until the first token has been sent
            self._interval_lanes[choice.index] = lane
            self.generation.shorten(choice, lane)

    def _events(self, updates: list[Update]) -> bytes:
        """The events that `updates` complete; an update without pieces gives what waits."""
        events: list[bytes] = []
        interval = self.format.delivery.interval
        for choice, pieces in updates:
            lane = self._interval_lanes[choice.index]
            first = choice.index not in self._waiting
            waiting = self._waiting.setdefault(choice.index, [])
            waiting += lane.take() + pieces
            kept = sum(len(piece.tokens) for piece in waiting)
            if waiting and (first or not pieces or kept >= interval or waiting[-1].finish is not None):
                events.append(self.format.event(choice, joined(waiting)))
                waiting.clear()
                kept = 0
            lane.room = interval - kept - 1
        if events:
            self.metrics.sent(len(events))
        return b"".join(events)

    def _rest(self) -> bytes:
        return self._events([(choice, []) for choice in self.generation.choices])
