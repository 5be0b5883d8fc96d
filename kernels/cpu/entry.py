"""The one function of the compiled step that Python calls, and its place in numba's cache."""

import hashlib
import logging
import time
from functools import cache
from pathlib import Path

from numba import njit, types

from kernels.cpu.machine import load_i64, peek, poke, relax
from kernels.cpu.program import EPOCH, FIRST_ASLEEP, MOST_THREADS, Field
from kernels.cpu.step import run

# What `work` is to do.
RUN, FOLLOW, ANNOUNCE, PARK, WAKE, DISMISS = range(6)

_log = logging.getLogger("fastpath.kernels")


def _entry(sources: str, cached: bool):
    """sources: what the code was made of. numba looks at the changes of one file only; as part of the
    function's closure it is part of its name in the cache.
    """

    @njit(nogil=True, error_model="numpy", cache=cached)
    def work(task, p, thread, seen, looks):
        """p: the program's address. Tasks:

        RUN: this thread's part of a step, the whole team's beginning being ANNOUNCE, with as many threads as
        `looks` says. FOLLOW: each step that is announced, until there has been none for so many looks;
        returns the last one's number, -1 at the end. seen: the last one before. PARK: whether the thread is
        to sleep; who announces a step from now on will see that it does. WAKE: whether the thread sleeps; it
        is then to be woken. DISMISS: ends the team.
        """
        sources  # noqa: B018
        sync = load_i64(p, Field.SYNC)
        epoch, asleep = sync + 8 * EPOCH, sync + 8 * (FIRST_ASLEEP + 8 * thread)
        if task == FOLLOW:
            idle = 0
            while idle < looks:
                now = peek(epoch)
                if now == seen:
                    relax()
                    idle += 1
                    continue
                if now < 0:
                    return now
                seen, idle = now, 0
                # How many take part is told with the number of the step: the program may be the next one's
                # already when a thread that has no part in this one looks there.
                if thread < now % MOST_THREADS:
                    run(p, thread)
            return seen
        if task == RUN:
            run(p, thread)
        elif task == ANNOUNCE:
            now = peek(epoch)
            poke(epoch, now - now % MOST_THREADS + MOST_THREADS + looks)
        elif task == PARK:
            poke(asleep, 1)
            if peek(epoch) == seen:
                return 1
            poke(asleep, 0)
        elif task == WAKE:
            if peek(asleep) != 0:
                poke(asleep, 0)
                return 1
        else:
            poke(epoch, -1)
        return 0

    return work


@cache
def prepared():
    """`work`, and the seconds that compiling it took, or loading what an earlier process has compiled."""
    started = time.perf_counter()
    folder = Path(__file__).parent
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*.py")):
        digest.update(file.read_bytes())
    try:
        work = _entry(digest.hexdigest(), True)
    except RuntimeError as error:  # no folder that could be written to
        _log.warning("what is compiled cannot be kept: %s", error)
        work = _entry(digest.hexdigest(), False)
    work.compile((types.int64,) * 5)
    return work, time.perf_counter() - started
