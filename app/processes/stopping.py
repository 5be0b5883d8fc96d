"""Signals: the first asks the server to drain, the second ends it at once."""

import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import Callable

log = logging.getLogger("fastpath")

ECHO_SECONDS = 0.03  # timeout(1) and some init programs send a signal to the process and again to its group


class Stopping:
    """`drain` begins the orderly end and returns; `kill` ends all other processes. `asked`: it has begun."""

    def __init__(self, drain: Callable[[], None], kill: Callable[[], None]) -> None:
        self.asked = False
        self._drain = drain
        self._kill = kill
        self._signalled = 0.0

    def listen(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal)

    def _on_signal(self) -> None:
        now = asyncio.get_running_loop().time()
        if not self.asked:
            self.asked = True
            self._signalled = now
            self._drain()
            return
        if now - self._signalled < ECHO_SECONDS:
            return
        log.info("second signal: stopping at once")
        self._kill()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(0)
