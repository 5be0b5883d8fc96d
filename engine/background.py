"""An AsyncEngine on an event loop in a thread of its own, for callers that have no loop or may not wait in
theirs.
"""

import asyncio
import atexit
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from engine.async_engine import AsyncEngine

EXIT_SECONDS = 10.0  # longest that the end of a script waits for a step under way

T = TypeVar("T")


class BackgroundLoop:
    """Owns the thread. Everything that touches the engine while it runs happens there.

    All methods may be called from any thread; `call`, `start` and `close` wait, the others do not.
    """

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._lock = threading.Lock()  # guards the fields below
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ending = asyncio.Event()
        self._closed = False

    @property
    def running(self) -> bool:
        return self._loop is not None and not self._closed

    def start(self) -> None:
        """Starts thread and engine, unless they run. Raises RuntimeError when they were closed."""
        with self._lock:
            if self._closed:
                raise RuntimeError("the engine is closed")
            if self._thread is not None:
                return
            started: Future[asyncio.AbstractEventLoop] = Future()
            # A daemon: a script's end does not wait for it, but for `_close_at_exit`.
            self._thread = threading.Thread(
                target=self._run, args=(started,), name="engine loop", daemon=True
            )
            self._thread.start()
            self._loop = started.result()
        _close_at_exit(self)

    def call(self, function: Callable[[], T]) -> T:
        """Runs a function on the loop and returns what it returns, or raises what it raises."""
        result: Future[T] = Future()

        def run() -> None:
            try:
                result.set_result(function())
            except BaseException as error:
                result.set_exception(error)

        # Under the lock: what is queued before the loop is told to end runs before it ends.
        with self._lock:
            if self._loop is None or self._closed:
                raise RuntimeError("the engine is closed")
            self._loop.call_soon_threadsafe(run)
        return result.result()

    def post(self, function: Callable[[], None]) -> None:
        """Has a function run on the loop, before whatever this thread calls or posts next. Not waiting for
        it nor for a lock, so that it may be called wherever garbage is collected; without effect at the end.
        """
        loop = self._loop
        if loop is not None and not loop.is_closed():
            try:
                loop.call_soon_threadsafe(function)
            except RuntimeError:  # closed just now
                return

    def end(self) -> None:
        """Has engine and thread end soon. Like `post`, it may be called where garbage is collected."""
        self._closed = True
        self.post(self._ending.set)

    def close(self, timeout: float | None = None) -> None:
        """Ends the engine and waits for its thread, at most so many seconds. Repeating it changes nothing."""
        with self._lock:
            self._closed = True
            if self._thread is None:  # never started, and yet it holds threads and files
                self._ending.set()
                self._thread = threading.Thread(target=self._run, args=(Future(),), daemon=True)
                self._thread.start()
        self.post(self._ending.set)
        self._thread.join(timeout)

    def _run(self, started: Future[asyncio.AbstractEventLoop]) -> None:
        """The thread's work."""
        try:
            asyncio.run(self._serve(started))
        except BaseException as error:
            if started.done():
                raise
            started.set_exception(error)

    async def _serve(self, started: Future[asyncio.AbstractEventLoop]) -> None:
        await self._engine.start()
        started.set_result(asyncio.get_running_loop())
        await self._ending.wait()
        await self._engine.close()
        await asyncio.sleep(0)  # streams that were open are told now


def _close_at_exit(background: BackgroundLoop) -> None:
    """Closes it when the interpreter ends, if it still exists."""
    method = weakref.WeakMethod(background.close)

    def close() -> None:
        close_now = method()
        if close_now is not None:
            close_now(EXIT_SECONDS)

    # `atexit` is too late: by then Python has shut down all thread pools, the engine's step thread with them,
    # and a request under way would fail loudly. The hook that those pools use has no public name.
    register = getattr(threading, "_register_atexit", None)
    if register is None:
        atexit.register(close)
    else:
        register(close)
