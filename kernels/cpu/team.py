"""The threads that run compiled steps together.

They look for the next step for a moment, which is where a busy engine finds them, and sleep after that.
"""

import threading
from contextlib import suppress

import numpy as np

from kernels.cpu.entry import ANNOUNCE, DISMISS, FOLLOW, PARK, RUN, WAKE, prepared
from kernels.cpu.program import FIRST_ASLEEP, MOST_THREADS, Field

LOOKS = 4000  # for a next step, about a tenth of a millisecond


class Team:
    """`threads` threads, the caller of `run` being one. program: see kernels.cpu.program; SYNC and THREADS
    are the team's to fill in.
    """

    def __init__(self, program: "np.ndarray[tuple[int], np.dtype[np.int64]]", threads: int) -> None:
        if not 1 <= threads < MOST_THREADS:
            raise ValueError(f"a team of {threads} threads")
        self.threads = threads
        self._work, _ = prepared()
        self._program = program
        words = FIRST_ASLEEP + 8 * threads
        self._memory = np.zeros(words + 8, dtype=np.int64)
        address: int = self._memory.ctypes.data
        self._sync = address + (-address) % 64
        self._address: int = program.ctypes.data
        program[Field.SYNC] = self._sync
        self._beds = [threading.Lock() for _ in range(threads)]
        for bed in self._beds:
            bed.acquire()
        self._others = [
            threading.Thread(target=self._follow, args=(thread,), name=f"step {thread}", daemon=True)
            for thread in range(1, threads)
        ]
        for other in self._others:
            other.start()

    def run(self, threads: int) -> None:
        """The step that the program describes, from beginning to end, with so many of the threads."""
        self._program[Field.THREADS] = threads
        if threads > 1:
            self._work(ANNOUNCE, self._address, 0, 0, threads)
            self._wake(threads)
        self._work(RUN, self._address, 0, 0, 0)

    def close(self) -> None:
        """Ends the other threads; a second call does nothing."""
        self._work(DISMISS, self._address, 0, 0, 0)
        self._wake(self.threads)
        for other in self._others:
            other.join()
        self._others = []

    def _wake(self, threads: int) -> None:
        for thread in range(1, threads):
            if self._work(WAKE, self._address, thread, 0, 0):
                with suppress(RuntimeError):  # it has woken up by itself meanwhile
                    self._beds[thread].release()

    def _follow(self, thread: int) -> None:
        seen = 0
        while True:
            seen = self._work(FOLLOW, self._address, thread, seen, LOOKS)
            if seen < 0:
                return
            if self._work(PARK, self._address, thread, seen, 0):
                self._beds[thread].acquire()
