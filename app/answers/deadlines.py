"""The two clocks of a request: how long it may wait for its turn, and how long it may take in all."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from app.admission.gate import Gate
from app.answers.generation import Generation
from app.http.errors import DeadlineExceeded, QueueTimeout
from app.settings.http import HttpSettings


@contextmanager
def deadlines(generation: Generation, settings: HttpSettings, gate: Gate) -> Iterator[None]:
    """Interrupts the generation with DeadlineExceeded or QueueTimeout unless the block ends before."""
    loop = asyncio.get_running_loop()

    def turn_has_not_come() -> None:
        if not generation.admitted:
            generation.interrupt(QueueTimeout(waiting, *gate.retry()))

    waiting, limit = settings.queue_timeout, settings.request_timeout
    timers = [loop.call_later(limit, lambda: generation.interrupt(DeadlineExceeded(limit)))]
    if waiting:
        timers.append(loop.call_later(waiting, turn_has_not_come))
    try:
        yield
    finally:
        for timer in timers:
            timer.cancel()
