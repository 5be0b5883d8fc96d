"""The one function of the compiled step that Python calls, and its place in numba's cache.

A process that serves never compiles, it loads what another one (`python -m kernels.cpu compile`) has left in
the cache: what is compiled in place and what is loaded may differ in the last bits, and with some settings
LLVM ends the process that compiles.
"""

import hashlib
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path

from numba import njit, types
from numba.core import config
from numba.core.compiler import Compiler, CompilerBase

from kernels.cpu.machine import load_i64, look, peek, poke, relax
from kernels.cpu.program import EPOCH, FIRST_ASLEEP, MOST_THREADS, Field
from kernels.cpu.step import run

# What `work` is to do.
RUN, FOLLOW, ANNOUNCE, PARK, WAKE, DISMISS = range(6)

SIGNATURE = (types.int64,) * 5
_FOLDER = Path(__file__).parent
_log = logging.getLogger("fastpath.kernels")


class NotPreparedError(Exception):
    """Why there is no compiled step here."""


class _MissingError(Exception):
    """The cache does not have it."""


class _Loads(CompilerBase):  # type: ignore[misc, unused-ignore]
    """In place of numba's compiler where only what is in the cache is wanted."""

    def define_pipelines(self):
        raise _MissingError("what was compiled is not in numba's cache")


def _entry(sources: str, compiler: type[CompilerBase]):
    """sources: what the code was made of. numba looks at the changes of one file only; as part of the
    function's closure it is part of its name in the cache.
    """

    @njit(nogil=True, error_model="numpy", cache=True, pipeline_class=compiler)
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
            if look(epoch) == seen:
                return 1
            poke(asleep, 0)
        elif task == WAKE:
            if look(asleep) != 0:
                poke(asleep, 0)
                return 1
        else:
            poke(epoch, -1)
        return 0

    return work


def _sources() -> str:
    digest = hashlib.sha256()
    for file in sorted(_FOLDER.glob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def compile_here() -> None:
    """Compiles into numba's cache, unless it is there."""
    _entry(_sources(), Compiler).compile(SIGNATURE)


def _compile(environment: Mapping[str, str]) -> None:
    """`compile_here` in a process of its own, which ends with this one. Raises NotPreparedError."""
    paths = [str(_FOLDER.parents[1]), *filter(None, [environment.get("PYTHONPATH")])]
    with subprocess.Popen(
        [sys.executable, "-P", "-m", "kernels.cpu", "compile"],
        env={**environment, "PYTHONPATH": os.pathsep.join(paths)},
        stdin=subprocess.PIPE,  # open as long as this process lives
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        assert process.stdout is not None
        lines = process.stdout.read().split("\n")
    if process.returncode:
        said = [line.strip() for line in lines if line.strip()] or ["it said nothing"]
        raise NotPreparedError(f"compiling ended with {process.returncode}: {said[-1]}")


def _loaded():
    """Raises _MissingError; RuntimeError where numba finds no folder that it may write to."""
    work = _entry(_sources(), _Loads)
    try:
        work.compile(SIGNATURE)
    except _MissingError:
        raise
    except Exception as error:  # whatever unpickling makes of a damaged file
        _log.warning("numba's cache is damaged and made anew: %r", error)
        for file in Path(work.stats.cache_path).glob("entry.*.nb[ic]"):
            with suppress(OSError):
                file.unlink()
        raise _MissingError(f"numba's cache is damaged: {error!r}") from error
    return work


def _for_this_process():
    """Compiled, and kept no longer than until it is loaded."""
    with tempfile.TemporaryDirectory() as folder:
        _compile({**os.environ, "NUMBA_CACHE_DIR": folder})
        usual, config.CACHE_DIR = config.CACHE_DIR, folder
        try:
            return _loaded()
        finally:
            config.CACHE_DIR = usual


@cache
def prepared():
    """`work`, and the seconds that loading it took, with compiling where no earlier process had done it.

    Raises NotPreparedError with the reason.
    """
    started = time.perf_counter()
    if config.DISABLE_JIT:
        raise NotPreparedError("NUMBA_DISABLE_JIT is set")
    with suppress(_MissingError, RuntimeError):
        return _loaded(), time.perf_counter() - started
    # A warning, for that is what shows where nobody has set up logging.
    _log.warning("compiling the kernels for this processor, about 12 s, once")
    try:
        _compile(os.environ)
        return _loaded(), time.perf_counter() - started
    except Exception as error:
        _log.warning("what is compiled cannot be kept: %s", error)
    try:
        return _for_this_process(), time.perf_counter() - started
    except Exception as error:
        raise NotPreparedError(f"the kernels cannot be compiled: {error}") from error
