"""The engine inside the server's own process: `--engine inline`.

For debuggers and places where a second process is unwelcome. A crash of the engine is then a crash of the
server, and a long garbage collection on one side is felt on the other. This is the only module of the front
end that reaches into the engine, and it does so only when it is asked to start one.
"""

import asyncio
import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING

from app.processes.supervisor import EXIT_FAULT, EngineFailed
from engine.messages import (
    EngineConfig,
    EngineState,
    EngineStats,
    EngineUnavailable,
    ModelInfo,
    Request,
    TokenStream,
)

if TYPE_CHECKING:
    from engine.async_engine import AsyncEngine

log = logging.getLogger("fastpath.engine")


class InlineEngine:
    """A `ManagedEngine` on the event loop that starts it."""

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        self._engine: AsyncEngine | None = None
        self._failure: EngineFailed | None = None
        self._task: asyncio.Task[None] | None = None
        self._ready = asyncio.Event()  # loaded, or failed
        self._gone = asyncio.Event()

    @property
    def state(self) -> EngineState:
        if self._gone.is_set():
            return EngineState.DEAD
        return EngineState.LOADING if self._engine is None else self._engine.state

    @property
    def info(self) -> ModelInfo:
        return self._running().info

    def next_id(self, n: int) -> int:
        return self._running().next_id(n)

    def submit(self, request: Request) -> list[TokenStream]:
        return self._running().submit(request)

    def abort(self, streams: Iterable[int]) -> None:
        if self._engine is not None:
            self._engine.abort(streams)

    def stats(self) -> EngineStats:
        return self._engine.stats() if self._engine is not None else EngineStats()

    async def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="inline engine")

    async def ready(self) -> ModelInfo:
        await self._ready.wait()
        if self._failure is not None:
            raise self._failure
        return self._running().info

    async def failed(self) -> EngineFailed:
        await self._gone.wait()
        return self._failure or EngineFailed("the engine was shut down", 0)

    def retire(self) -> None:
        """Nothing to do: an inline engine is never restarted."""

    def kill(self) -> None:
        """Nothing to do: it ends with this process."""

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
        if self._engine is not None:
            await self._engine.close()

    def _running(self) -> "AsyncEngine":
        if self._engine is None:
            raise EngineUnavailable("the model is still loading")
        return self._engine

    async def _run(self) -> None:
        try:
            engine = await asyncio.to_thread(_load, self._config)
            await engine.start()
        except Exception as error:
            from engine.worker import failure

            failed = failure(error)
            self._fail(failed.message, failed.exit_code)
            return
        self._engine = engine
        self._ready.set()
        try:
            await engine.wait_closed()
            self._fail("the engine stopped", EXIT_FAULT)
        except Exception as error:
            log.exception("the step loop failed")
            self._fail(f"the step loop failed: {error}", EXIT_FAULT)

    def _fail(self, message: str, exit_code: int) -> None:
        self._failure = EngineFailed(message, exit_code)
        self._gone.set()
        self._ready.set()


def _load(config: EngineConfig) -> "AsyncEngine":
    from engine.worker import load

    return load(config)
