"""The server's end: no new requests, wait for open answers, then end those that remain.

`drain()` is the whole sequence; its three parts can be called alone. All methods belong to the event loop.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from app.http.errors import ApiError, Cancelled, Draining, ServerShutdown


class Interruptible(Protocol):
    """An answer under way."""

    def interrupt(self, error: ApiError) -> None:
        """Makes the answer end with `error`, as an HTTP status or, after the headers, an event."""
        ...


class Lifecycle:
    """Knows every open answer (streams and plain ones, queued ones too).

    `closing` is set when draining starts: endless streams, such as the statistics, end themselves on it and
    are not counted in `open_answers`.
    """

    def __init__(self) -> None:
        self._open: dict[Interruptible, int] = {}
        self._named: dict[tuple[str, str], Interruptible] = {}  # by id and owner
        self._idle = asyncio.Event()
        self._idle.set()
        self.closing = asyncio.Event()
        self.leaving = False  # still takes requests, but asks balancers to send none

    @property
    def draining(self) -> bool:
        return self.closing.is_set()

    @property
    def open_answers(self) -> int:
        return len(self._open)

    @property
    def open_choices(self) -> int:
        return sum(self._open.values())

    def start_draining(self) -> None:
        """From now on new requests get 503 `draining` and /ready says 503. Idempotent."""
        self.closing.set()

    async def wait_idle(self, timeout: float) -> bool:
        """Waits until no answer is open; False when `timeout` seconds went by first."""
        try:
            async with asyncio.timeout(timeout):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    def expire(self) -> int:
        """Ends every open answer with `server_shutdown` (streams: error event, then [DONE]); returns how
        many.
        """
        answers = list(self._open)
        for answer in answers:
            answer.interrupt(ServerShutdown())
        return len(answers)

    def cancel(self, id: str, owner: str) -> bool:
        """Ends the owner's open answer of this id with `request_cancelled`; False if there is none."""
        answer = self._named.pop((id, owner), None)
        if answer is None:
            return False
        answer.interrupt(Cancelled())
        return True

    async def drain(self, timeout: float, farewell: float = 1.0, delay: float = 0.0) -> bool:
        """After `delay` seconds, in which /ready says no, stops admitting, waits up to `timeout` seconds,
        then ends the rest and gives it `farewell` seconds to say so.

        True when every answer ended by itself.
        """
        self.leaving = True
        if delay:
            await asyncio.sleep(delay)
        self.start_draining()
        if await self.wait_idle(timeout):
            return True
        self.expire()
        await self.wait_idle(farewell)
        return False

    @contextmanager
    def attending(self, reader: Interruptible) -> Iterator[None]:
        """Counts somebody who reads an answer that is counted by itself, also while the server drains."""
        self._open[reader] = 0
        self._idle.clear()
        try:
            yield
        finally:
            self._close(reader)

    @contextmanager
    def answering(self, answer: Interruptible, choices: int, id: str = "", owner: str = "") -> Iterator[None]:
        """Counts an answer as open; its owner can cancel it by its id. Raises `Draining` when the server is
        on its way out.
        """
        if self.draining:
            raise Draining()
        self._open[answer] = choices
        if id:
            self._named[id, owner] = answer
        self._idle.clear()
        try:
            yield
        finally:
            self._named.pop((id, owner), None)
            self._close(answer)

    def _close(self, answer: Interruptible) -> None:
        del self._open[answer]
        if not self._open:
            self._idle.set()
