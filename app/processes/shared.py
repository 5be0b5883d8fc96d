"""An engine that another process owns, reached through its Unix socket."""

import asyncio

from app.processes.enginelink import EngineLink, LinkedEngine
from app.processes.supervisor import Patience
from engine.messages import ModelInfo

SERIAL_BITS = 40  # a front end's stream ids begin at its serial times 2**40: no two processes share one


class SharedEngine(LinkedEngine):
    """An `EngineClient` that connects, and connects again to the engine that follows a dead one."""

    def __init__(self, path: str, serial: int, patience: Patience | None = None) -> None:
        patience = patience or Patience()
        super().__init__(patience.stale / patience.tick, first_id=serial << SERIAL_BITS)
        self._path = path
        self._tick = patience.tick
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._task = asyncio.create_task(self._stay_connected(), name="engine link")

    async def ready(self) -> ModelInfo:
        """Waits until the model has been loaded; whoever owns the engine knows whether that will happen."""
        await self._was_ready.wait()
        return self.info

    async def close(self) -> None:
        self._gone.set()
        if self._link is not None:
            self._link.close()
        self._router.fail_all("the server shut down")
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    async def _stay_connected(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            link = EngineLink(self)
            try:
                # Where the engine is being restarted, the connection waits for it in the socket's backlog.
                await loop.create_unix_connection(lambda link=link: link, self._path)  # type: ignore[misc]
            except OSError:
                await asyncio.sleep(self._tick)
                continue
            self._link = link
            lost = asyncio.ensure_future(link.lost.wait())
            try:
                while not lost.done():
                    await asyncio.wait({lost}, timeout=self._tick)
                    link.tick()
            finally:
                lost.cancel()
            self._bury("the engine process ended")
