"""What a stream says while its request waits: a comment line with its place in the queue.

    : {"queue":{"position":2,"eta_ms":180}}

`position` requests go before it, and its turn may come in `eta_ms` milliseconds (null: nobody knows). To an
SSE client it is a comment: one line, and no blank one, which would dispatch an event in some clients.
"""

from time import perf_counter

import msgspec

from app.answers.generation import Generation

LOOK_SECONDS = 0.5  # how often a stream that waits looks at the queue
MOVED = 0.25  # a change of the time that is worth a line, as a part of it


class Turn:
    """One generation's. Nothing is said before `grace` seconds of waiting."""

    def __init__(self, generation: Generation, grace: float) -> None:
        self._place = generation.choices[0].place
        self._from = generation.started + grace
        self._said: tuple[int, float | None] | None = None

    @property
    def waits(self) -> bool:
        return self._place is not None and self._place.waiting

    def news(self) -> bytes:
        """The line, if there is one to say that has not been said."""
        if self._place is None or not self._place.waiting or perf_counter() < self._from:
            return b""
        position, seconds = self._place.outlook()
        if self._said is not None and self._said[0] == position and not _moved(self._said[1], seconds):
            return b""
        self._said = position, seconds
        eta = None if seconds is None else round(seconds * 1000)
        return b": " + msgspec.json.encode({"queue": {"position": position, "eta_ms": eta}}) + b"\n"


def _moved(before: float | None, now: float | None) -> bool:
    if before is None or now is None:
        return before is not now
    return abs(now - before) > MOVED * before
