"""Who is let in, who waits and who is sent away.

A request enters with its key before its body is read, queues once its prompt is known, and leaves when its
last choice has ended. What is counted is on a `Board`, so that several front ends count together. Refusals
are cheap and say when to come back: 429 where the request's own key has had its share, 503 where the server
as a whole has too much to do.
"""

import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from app.admission.board import Board
from app.http.errors import ApiError, Overloaded, QueueFull
from app.settings.http import HttpSettings
from engine.messages import EngineClient, EngineUnavailable, ModelInfo

# Columns: choices that are open; choices, prompt tokens and work that wait. Then come those of the keys, and
# at the end two: requests that wait, and requests that have waited (this one only grows).
_OPEN, _WAITING, _TOKENS, _WORK, _SHARED = range(5)
_PER_KEY = 2  # columns: requests that are open, choices that wait
_LAST = 2
_MEMORY = 0.98  # weight of what was known before, with each request that ends: about fifty count
_GUESS = 128  # tokens that a choice may be expected to generate while nothing is known
SHARE = 2  # a key's choices may wait in at most so many times the places that are still free
LONGEST_RETRY = 60.0


def columns(keys: int) -> int:
    """How many numbers a board needs."""
    return _SHARED + _PER_KEY * keys + _LAST


class Pace:
    """How fast rows work, learned from what has ended: tokens (prompt and output) per second of a row."""

    __slots__ = ("_count", "_output", "_seconds", "_tokens")

    def __init__(self) -> None:
        self._tokens = self._seconds = self._output = self._count = 0.0

    def learn(self, prompt: int, output: int, choices: int, seconds: float) -> None:
        """`choices` rows were held for `seconds` each."""
        self._tokens = self._tokens * _MEMORY + prompt + output
        self._output = self._output * _MEMORY + output
        self._seconds = self._seconds * _MEMORY + seconds * choices
        self._count = self._count * _MEMORY + choices

    def output(self, most: int) -> int:
        """Tokens that a choice is expected to generate."""
        return min(most, round(self._output / self._count) if self._count else _GUESS)

    def seconds(self, tokens: int, rows: int) -> float | None:
        """How long all rows together need for `tokens`; None while nothing is known."""
        if self._tokens <= 0 or self._seconds <= 0:
            return None
        return tokens * self._seconds / self._tokens / max(rows, 1)

    def service(self) -> float:
        """Seconds that a choice holds its row on average; 1 while nothing is known."""
        return self._seconds / self._count if self._count else 1.0


class Place:
    """One request's place: entered, then queued, then admitted (the engine works on it), then left."""

    __slots__ = (
        "_admitted_at",
        "_ahead",
        "_choices",
        "_column",
        "_gate",
        "_gone",
        "_left",
        "_prompt",
        "_work",
        "key",
    )

    def __init__(self, gate: "Gate", key: str, column: int | None) -> None:
        self.key = key
        self._gate = gate
        self._column = column  # of its key
        self._choices = self._prompt = self._work = 0
        # Requests of other front ends: that waited when it came, that had waited.
        self._ahead = self._gone = 0
        self._admitted_at = 0.0
        self._left = False

    @property
    def queued(self) -> bool:
        return self._choices > 0

    @property
    def work(self) -> int:
        """Tokens that it is expected to cost."""
        return self._work

    @property
    def waiting(self) -> bool:
        return self.queued and not self._admitted_at and not self._left

    def queue(self, prompts: Sequence[int], n: int, max_tokens: int, info: ModelInfo) -> None:
        """Takes part in the queue: `prompts` are the prompts' lengths, each continued `n` times by at most
        `max_tokens`. Raises QueueFull (429) or Overloaded (503), and then has changed nothing.
        """
        self._choices = len(prompts) * n
        self._prompt = sum(prompts)
        self._work = self._prompt + self._choices * self._gate.pace.output(max_tokens)
        self._ahead, self._gone = self._gate.others_wait(), self._gate.others_waited()
        self._count(1)
        self._gate.board.add(_OPEN, self._choices)
        try:
            self._gate.check(self._choices, self._prompt, self._work, self._column, info)
        except ApiError:
            self._count(-1)
            self._gate.board.add(_OPEN, -self._choices)
            self._choices = 0
            raise

    def admit(self) -> None:
        """The engine has given it a row; idempotent."""
        if self.waiting:
            self._admitted_at = time.perf_counter()
            self._count(-1)
            self._gate.waited()

    def leave(self, output: int = 0) -> None:
        """Gives everything back, after `output` generated tokens; idempotent."""
        if self._left:
            return
        board = self._gate.board
        if self._admitted_at:
            if output:
                seconds = time.perf_counter() - self._admitted_at
                self._gate.pace.learn(self._prompt, output, self._choices, seconds)
        elif self.queued:
            self._count(-1)
            self._gate.waited()
        self._left = True
        board.add(_OPEN, -self._choices)
        if self._column is not None:
            board.add(self._column, -1)

    def outlook(self) -> tuple[int, float | None]:
        """How many requests go before it, and in how many seconds its turn may come (None: nobody knows).

        Of its own process's requests the order is known. Those of other front ends are taken to have been
        served in the order in which they came.
        """
        gate = self._gate
        before, work = gate.line(self)
        waiting = gate.others_wait()
        served = max(0, gate.others_waited() - self._gone)
        theirs = min(waiting, max(0, self._ahead - served))
        if theirs:
            work += gate.others(_WORK) * theirs // waiting
        return before + theirs, gate.turn(work)

    def _count(self, sign: int) -> None:
        """What waits with it."""
        board = self._gate.board
        self._gate.stand(self, sign > 0)
        board.add(_WAITING, sign * self._choices)
        board.add(_TOKENS, sign * self._prompt)
        board.add(_WORK, sign * self._work)
        if self._column is not None:
            board.add(self._column + 1, sign * self._choices)


class Gate:
    """Counts requests and says no. `board` has `columns(len(settings.access.keys))` columns."""

    def __init__(self, client: EngineClient, settings: HttpSettings, board: Board | None = None) -> None:
        ids = [key.id for key in settings.access.keys]
        self._client = client
        self._settings = settings
        self._keys = {id: _SHARED + _PER_KEY * k for k, id in enumerate(ids)}
        self._wait_column, self._waited = columns(len(ids)) - 2, columns(len(ids)) - 1
        self.board = board or Board(columns(len(ids)))
        self.pace = Pace()
        self._line: dict[Place, None] = {}  # those of this process that wait, in the order in which they came
        # What goes before each of them, as of the last change: far more often asked for than changed.
        self._before: dict[Place, tuple[int, int]] = {}

    def stand(self, place: Place, waits: bool) -> None:
        """It begins to wait, or waits no more."""
        if waits:
            self._line[place] = None
        else:
            del self._line[place]
        self._before.clear()
        self.board.add(self._wait_column, 1 if waits else -1)

    def line(self, place: Place) -> tuple[int, int]:
        """How many requests of this process wait before this one, and their work. Both are all that wait
        where it does not wait itself.
        """
        if not self._before:
            work = 0
            for before, each in enumerate(self._line):
                self._before[each] = before, work
                work += each.work
        return self._before.get(place) or (len(self._line), sum(each.work for each in self._line))

    def others(self, column: int) -> int:
        """What the other front ends have counted."""
        return self.board.total(column) - self.board.own(column)

    def waited(self) -> None:
        """One more request of this process waits no more."""
        self.board.add(self._waited, 1)

    def others_wait(self) -> int:
        return self.others(self._wait_column)

    def others_waited(self) -> int:
        return self.others(self._waited)

    def turn(self, work: int) -> float | None:
        """Seconds until a row is free for who comes after so much work."""
        try:
            rows = self._client.info.max_rows
        except EngineUnavailable:
            return None
        wait = self.pace.seconds(work, rows)
        return None if wait is None else wait + self.pace.service() / rows

    @contextmanager
    def entering(self, key: str) -> Iterator[Place]:
        """A request of `key` ("" where there are no keys), before anything of it was read.

        Whoever answers it calls `leave`, once it has been queued; else it leaves with the block. Raises
        QueueFull (429) or Overloaded (503).
        """
        place = self._enter(key)
        try:
            yield place
        except BaseException:
            place.leave()
            raise
        if not place.queued:
            place.leave()

    def _enter(self, key: str) -> Place:
        column = self._keys.get(key)
        place = Place(self, key, column)
        if column is None:
            self._check_rows(0, None)
            return place
        limit = self._settings.max_concurrent_per_key
        total = self.board.add(column, 1)
        try:
            if limit is not None and total > limit:
                message = f"This key has {limit} requests open already, as many as it may."
                raise QueueFull(message, *self._retry(self.pace.service()))
            self._check_rows(0, column)
        except ApiError:
            self.board.add(column, -1)
            raise
        return place

    def check(self, choices: int, tokens: int, work: int, column: int | None, info: ModelInfo) -> None:
        """Whether what has just been counted is too much. Raises ApiError."""
        waiting = self._check_rows(choices, column)
        if waiting <= 0:
            return
        limits = self._settings
        before = self.board.total(_TOKENS) - tokens
        if before > 0 and before + tokens > limits.max_queued_tokens:
            raise self._full(f"The queue is full ({before} prompt tokens waiting).", column, choices)
        if len(self._keys) > 1 and column is not None:
            own = self.board.total(column + 1)
            if own > SHARE * (limits.max_queue - waiting):
                message = f"This key has {own - choices} choices waiting, its share of the queue."
                raise QueueFull(message, *self._retry(self._wait(info.max_rows)))
        # A wait that is bound to end with an error would be waste, for both sides.
        wait = self.pace.seconds(self.board.total(_WORK) - work, info.max_rows)
        if 0 < limits.queue_timeout < (wait or 0.0):
            raise self._full(f"The queue is {wait:.0f} seconds long.", column, choices)

    def _check_rows(self, choices: int, column: int | None) -> int:
        """How many wait before a newcomer's `choices`, which have been counted. Raises ApiError."""
        try:
            rows = self._client.info.max_rows
        except EngineUnavailable:
            return 0  # the newcomer will hear of it
        # This process and its siblings know at once whom they let in; the engine tells, a message later,
        # what it really has.
        stats = self._client.stats()
        waiting = max(self.board.total(_OPEN) - choices, stats.running + stats.waiting) - rows
        if waiting > 0 and waiting + max(choices, 1) > self._settings.max_queue:
            raise self._full(f"The queue is full ({waiting} waiting).", column, choices)
        return waiting

    def _full(self, message: str, column: int | None, choices: int) -> ApiError:
        """Its own fault if others of the same key wait already, where there are several keys."""
        try:
            wait = self._wait(self._client.info.max_rows)
        except EngineUnavailable:
            wait = None
        if len(self._keys) > 1 and column is not None and self.board.total(column + 1) > choices:
            return QueueFull(message, *self._retry(wait))
        return Overloaded(message, *self._retry(wait))

    def _wait(self, rows: int) -> float | None:
        return self.pace.seconds(self.board.total(_WORK), rows)

    def retry(self) -> tuple[int, int]:
        """When to come back, in seconds and milliseconds, for a request that waited in vain."""
        try:
            return self._retry(self._wait(self._client.info.max_rows))
        except EngineUnavailable:
            return self._retry(None)

    @staticmethod
    def _retry(wait: float | None) -> tuple[int, int]:
        """With up to a quarter more, so that those who are sent away together do not come back together."""
        seconds = min(max(wait or 1.0, 1.0) * random.uniform(1.0, 1.25), LONGEST_RETRY)
        return -int(-seconds // 1), int(seconds * 1000)
