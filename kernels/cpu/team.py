"""The threads that run compiled steps together.

They look for the next step for a moment, which is where a busy engine finds them, and sleep after that.
"""

import threading
import time
from contextlib import suppress

import numpy as np
from numba import types

from kernels.cpu import step
from kernels.cpu.program import FIRST_ASLEEP, Field

LOOKS = 4000  # for a next step, about a tenth of a millisecond


def prepare() -> float:
    """Compiles what a team calls, or loads what an earlier process has compiled; returns the seconds that took."""
    started = time.perf_counter()
    for function, arguments in (
        (step.run, 2),
        (step.follow, 4),
        (step.announce, 1),
        (step.park, 3),
        (step.asleep, 2),
        (step.dismiss, 1),
    ):
        function.compile((types.int64,) * arguments)
    return time.perf_counter() - started


class Team:
    """`threads` threads, the caller of `run` being one. program: see kernels.cpu.program; SYNC and THREADS are the team's
    to fill in.
    """

    def __init__(self, program: "np.ndarray[tuple[int], np.dtype[np.int64]]", threads: int) -> None:
        if threads < 1:
            raise ValueError(f"a team of {threads} threads")
        self.threads = threads
        self._program = program
        words = FIRST_ASLEEP + 8 * threads
        self._memory = np.zeros(words + 8, dtype=np.int64)
        address: int = self._memory.ctypes.data
        self._sync = address + (-address) % 64
        self._address: int = program.ctypes.data
        program[Field.SYNC], program[Field.THREADS] = self._sync, threads
        self._beds = [threading.Lock() for _ in range(threads)]
        for bed in self._beds:
            bed.acquire()
        self._others = [
            threading.Thread(target=self._follow, args=(thread,), name=f"step {thread}", daemon=True)
            for thread in range(1, threads)
        ]
        for other in self._others:
            other.start()

    def run(self) -> None:
        """The step that the program describes, from beginning to end."""
        if self._others:
            step.announce(self._sync)
            self._wake()
        step.run(self._address, 0)

    def close(self) -> None:
        """Ends the other threads; a second call does nothing."""
        step.dismiss(self._sync)
        self._wake()
        for other in self._others:
            other.join()
        self._others = []

    def _wake(self) -> None:
        for thread in range(1, self.threads):
            if step.asleep(self._sync, thread):
                with suppress(RuntimeError):  # it has woken up by itself meanwhile
                    self._beds[thread].release()

    def _follow(self, thread: int) -> None:
        seen = 0
        while True:
            seen = step.follow(self._address, thread, seen, LOOKS)
            if seen < 0:
                return
            if step.park(self._sync, thread, seen):
                self._beds[thread].acquire()
