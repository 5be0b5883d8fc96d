"""What becomes of requests that were in flight when the engine died.

A request whose client has been told nothing goes to the next engine, once, and its client never knows. One
that was in flight in two crashes may be their cause: it is refused, and so is whoever sends it again within
ten minutes.
"""

import asyncio
import hashlib
import time
from collections.abc import Callable, Iterable
from typing import Protocol

import msgspec

from app.http.errors import ApiError, EngineGone, PoisonRequest
from app.http.lifecycle import Lifecycle
from engine.messages import EngineClient, EngineState, ModelInfo, Request

POISON_SECONDS = 600.0
LOOK_SECONDS = 0.05  # how often the engine is looked at, while somebody waits for the next one


class Restartable(Protocol):
    """An answer that can begin again from nothing."""

    def resubmit(self) -> None: ...

    def interrupt(self, error: ApiError) -> None: ...


def fingerprint(request: Request) -> bytes:
    """The same for every attempt at a request: what is asked, without its id and its seed."""
    params = msgspec.structs.replace(request.params, seed=0)
    bare = msgspec.structs.replace(request, id=0, priority=0, params=params)
    return hashlib.blake2b(msgspec.msgpack.encode(bare), digest_size=16).digest()


class Suspects:
    """Fingerprints of requests that were in flight when an engine died, and of how many engines."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._crashes: dict[bytes, tuple[float, ModelInfo | None, int]] = {}  # when, which engine, how many

    def crashed(self, print: bytes, engine: ModelInfo | None) -> bool:
        """It was in flight when `engine` died; True when that happened before with another one."""
        self._forget()
        _, before, crashes = self._crashes.get(print, (0.0, None, 0))
        if before is None or before is not engine:
            crashes += 1
        self._crashes[print] = (self._clock(), engine, crashes)
        return crashes > 1

    def convict(self, print: bytes) -> None:
        """Another process has seen it in two crashes."""
        self._crashes[print] = (self._clock(), None, 2)

    def is_poison(self, request: Request) -> bool:
        """Costs nothing where no engine has died of late."""
        if not self._crashes:
            return False
        self._forget()
        return self._crashes.get(fingerprint(request), (0.0, None, 0))[2] > 1

    def _forget(self) -> None:
        limit = self._clock() - POISON_SECONDS
        self._crashes = {print: crash for print, crash in self._crashes.items() if crash[0] > limit}


class Replays:
    """Waits for the next engine on behalf of those that may begin again.

    `on_poison` is told the fingerprint of each request that is refused for good.
    """

    def __init__(self, client: EngineClient, lifecycle: Lifecycle) -> None:
        self.suspects = Suspects()
        self.on_poison: Callable[[bytes], None] | None = None
        self._client = client
        self._lifecycle = lifecycle
        self._waiting: dict[Restartable, None] = {}
        self._task: asyncio.Task[None] | None = None

    @property
    def possible(self) -> bool:
        """A server on its way out starts no further engine."""
        return not (self._lifecycle.leaving or self._lifecycle.draining)

    def check(self, request: Request) -> None:
        """Raises PoisonRequest."""
        if self.suspects.is_poison(request):
            raise PoisonRequest

    def caught(self, requests: Iterable[Request], engine: ModelInfo | None) -> bool:
        """They were in flight when `engine` died; whether one of them is poison. Each engine describes itself
        anew, so that object tells one from the next.
        """
        prints = {fingerprint(request) for request in requests}
        poison = [print for print in prints if self.suspects.crashed(print, engine)]
        if self.on_poison is not None:
            for print in poison:
                self.on_poison(print)
        return bool(poison)

    def later(self, answer: Restartable) -> None:
        """Has it submitted again when there is an engine, or interrupted when there will be none."""
        self._waiting[answer] = None
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._watch(), name="replays")

    def forget(self, answer: Restartable) -> None:
        self._waiting.pop(answer, None)

    async def _watch(self) -> None:
        while self._waiting:
            await asyncio.sleep(LOOK_SECONDS)
            if not self.possible:
                for answer in self._take():
                    answer.interrupt(EngineGone("The engine ended, and the server is shutting down."))
            elif self._client.state == EngineState.READY:
                for answer in self._take():
                    answer.resubmit()

    def _take(self) -> list[Restartable]:
        answers, self._waiting = list(self._waiting), {}
        return answers
