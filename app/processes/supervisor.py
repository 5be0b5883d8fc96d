"""Keeps an engine process running behind the engine's client interface.

The engine is dead when its process ends. It is not ready while its heartbeat is older than `Patience.stale`,
and it is killed when the heartbeat stays away or a step does not end. A long step is no such case: the
child's event loop beats on while a step runs in another thread.
"""

import asyncio
import contextlib
import logging
import socket
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from app.processes.child import ENGINE_COMMAND, Child
from app.processes.enginelink import LinkedEngine
from engine.messages import EngineClient, EngineConfig, ModelInfo, Shutdown

log = logging.getLogger("fastpath.engine")

EXIT_FAULT = 1
EXIT_MODEL = 3


class EngineFailed(Exception):
    """The engine cannot be had any more; `exit_code` is what the server should end with."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class ManagedEngine(EngineClient, Protocol):
    """An engine client that the server starts and ends."""

    async def start(self) -> None:
        """Begins to load the model, and returns."""
        ...

    async def ready(self) -> ModelInfo:
        """Waits until the model has been loaded. Raises EngineFailed when that will not happen any more."""
        ...

    async def failed(self) -> EngineFailed:
        """Waits until the engine is gone for good."""
        ...

    def retire(self) -> None:
        """The server drains: an engine that dies from now on is not restarted."""
        ...

    def kill(self) -> None:
        """Ends the engine at once, without a word."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """Times in seconds.

    tick: how often the child is looked at. All ages are counted in ticks, so that a pause of this process (a
    suspended laptop, a debugger) does not count as the child's silence.
    stale: silence after which the engine is not ready. hang: silence after which it is killed.
    step: how long one step may take. leave: how long a child may take to end when asked.
    backoff: waits before successive restarts, at most this many within `window`.
    """

    tick: float = 0.25
    stale: float = 1.5
    hang: float = 20.0
    step: float = 300.0
    leave: float = 1.0
    backoff: tuple[float, ...] = (0.1, 1.0, 5.0)
    window: float = 600.0


class Restarts:
    """How soon something that ended may be started again."""

    def __init__(self, patience: Patience) -> None:
        self._patience = patience
        self._ends: deque[float] = deque()

    @property
    def count(self) -> int:
        return len(self._ends)

    def delay(self) -> float | None:
        """Seconds until the next start, now that it has ended; None when it ended too often."""
        patience, ends = self._patience, self._ends
        now = time.monotonic()
        while ends and now - ends[0] > patience.window:
            ends.popleft()
        if len(ends) == len(patience.backoff):
            return None
        ends.append(now)
        return patience.backoff[len(ends) - 1]


class ProcessEngine(LinkedEngine):
    """A `ManagedEngine` in a child process.

    `command` starts the child; `--fd N` is appended to it, and `--listen N` where `share` was called.
    """

    def __init__(
        self,
        config: EngineConfig,
        *,
        command: Sequence[str] = ENGINE_COMMAND,
        patience: Patience = Patience(),
    ) -> None:
        super().__init__(patience.stale / patience.tick)
        self._config = config
        self._command = tuple(command)
        self._patience = patience
        self._shared: socket.socket | None = None
        self._child: Child | None = None
        self._task: asyncio.Task[None] | None = None
        self._closing = False
        self._failure: EngineFailed | None = None
        self._retired = asyncio.Event()
        self.restarts = 0

    @property
    def patience(self) -> Patience:
        return self._patience

    def share(self, listener: socket.socket) -> None:
        """Further front ends will find the engine, and each that follows it, on this Unix socket."""
        self._shared = listener

    @property
    def pid(self) -> int | None:
        """Process id of the running child."""
        return self._child.pid if self._child is not None else None

    async def close(self) -> None:
        """Ends the child: politely at first, by force after `Patience.leave`."""
        self._closing = True
        self._retired.set()
        self._router.fail_all("the server shut down")
        if self._task is None:
            return
        if self._child is not None:
            self._child.send(Shutdown())
        done, _ = await asyncio.wait({self._task}, timeout=self._patience.leave)
        if not done:
            self.kill()
            await asyncio.wait({self._task})

    # What the server needs beyond it.

    async def start(self) -> None:
        self._task = asyncio.create_task(self._supervise(), name="engine supervisor")

    async def ready(self) -> ModelInfo:
        waits = [asyncio.ensure_future(event.wait()) for event in (self._was_ready, self._gone)]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        if self._info is None:
            raise await self.failed()
        return self._info

    async def failed(self) -> EngineFailed:
        await self._gone.wait()
        return self._failure or EngineFailed("the engine was shut down", 0)

    def retire(self) -> None:
        self._retired.set()

    def kill(self) -> None:
        self._retired.set()
        if self._child is not None:
            self._child.kill()

    # The life of the child.

    async def _supervise(self) -> None:
        restarts = Restarts(self._patience)
        try:
            while True:
                self._failure = await self._run_child()
                self._bury(str(self._failure))
                if self._info is None or self._retired.is_set():
                    return
                delay = restarts.delay()
                if delay is None:
                    log.error("%s; it was restarted %d times, giving up", self._failure, restarts.count)
                    return
                log.error("%s; restarting it in %g s", self._failure, delay)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._retired.wait(), delay)
                    return
                self.restarts += 1
        except Exception as error:
            log.exception("the engine's supervisor failed")
            self._failure = EngineFailed(f"the engine's supervisor failed: {error}", EXIT_FAULT)
            self._bury(str(self._failure))
        finally:
            self._gone.set()

    def _bury(self, message: str) -> None:
        super()._bury(message)
        self._child = None

    async def _run_child(self) -> EngineFailed:
        """Runs one child to its end and says why it ended."""
        child = self._link = self._child = Child(self)
        try:
            await child.spawn(self._command, self._config, self._shared)
        except OSError as error:
            return EngineFailed(f"the engine process could not be started: {error}", EXIT_FAULT)
        if self._closing:  # it came while the process was being started
            child.send(Shutdown())
        ended = asyncio.ensure_future(child.wait())
        try:
            reason = await self._watch(child, ended)
            status = await ended
            with contextlib.suppress(TimeoutError):  # its last frames may still be on their way
                await asyncio.wait_for(child.lost.wait(), 0.5)
        finally:
            child.kill()
            child.close()
            ended.cancel()
        first = self._info is None
        if child.failure is not None:
            return EngineFailed(child.failure.message, child.failure.exit_code if first else EXIT_FAULT)
        code = EXIT_MODEL if first else EXIT_FAULT
        how = f"was ended by signal {-status}" if status < 0 else f"ended with exit code {status}"
        when = "" if child.was_ready else " while it loaded the model"
        return EngineFailed(reason or f"the engine process {how}{when}", code)

    async def _watch(self, child: Child, ended: "asyncio.Future[int]") -> str | None:
        """Looks at the child until its process has ended; the reason if it had to be killed."""
        patience = self._patience
        lost_ticks = 0
        while True:
            await asyncio.wait({ended}, timeout=patience.tick)
            if ended.done():
                return None
            child.tick()
            lost_ticks += child.lost.is_set()
            reason = None
            if lost_ticks * patience.tick > patience.leave:
                reason = "the engine process closed its socket and did not end"
            elif child.was_ready and child.silent_ticks * patience.tick > patience.hang:
                reason = f"the engine process has been silent for {patience.hang:g} s"
            elif child.was_ready and child.step_ticks * patience.tick > patience.step:
                reason = f"a step of the engine did not end within {patience.step:g} s"
            if reason is not None:
                child.dump_stacks()
                await asyncio.wait({ended}, timeout=patience.tick)
                child.kill()
                return reason
