"""Time without what other programs of a machine take of it, for limits that mean a program's own slowness."""

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path


def _waited(pids: tuple[int, ...]) -> dict[int, int]:
    """Nanoseconds that each thread of these processes has been ready to run and had no core, so far. Linux
    keeps them in a thread's schedstat.
    """
    found = {}
    for pid in pids:
        with contextlib.suppress(OSError):  # it has ended
            for thread in os.listdir(f"/proc/{pid}/task"):
                with contextlib.suppress(OSError):
                    _, waited, _ = Path(f"/proc/{pid}/task/{thread}/schedstat").read_text().split()
                    found[int(thread)] = int(waited)
    return found


class FairClock:
    """Runs from when it is made, and stands while a thread of these processes waits for a core: on a quiet
    machine it is a wall clock. pids: of the processes that are measured, next to this one.
    """

    def __init__(self, *pids: int) -> None:
        self._pids = (os.getpid(), *pids)
        self._before = _waited(self._pids)
        self._now = dict(self._before)
        self._start = time.monotonic()

    def seconds(self) -> float:
        """Of a process that has ended, it knows the waits of which an earlier call has heard."""
        wall = time.monotonic() - self._start
        self._now |= _waited(self._pids)
        waited = sum(count - self._before.get(thread, 0) for thread, count in self._now.items())
        return max(0.0, wall - waited / 1e9)

    def until(self, condition: Callable[[], bool], seconds: float) -> None:
        """Waits for a condition, which must come true within this time of the clock."""
        while not condition():
            assert self.seconds() < seconds, "the condition did not come true in time"
            time.sleep(0.01)
