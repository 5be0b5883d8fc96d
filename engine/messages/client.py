"""The interface of an engine, whichever side of a process border it runs on."""

from collections.abc import Iterable
from enum import StrEnum
from typing import Protocol

from engine.messages.streams import TokenStream
from engine.messages.wire import EngineStats, ModelInfo, Request


class EngineState(StrEnum):
    LOADING = "loading"
    READY = "ready"
    DEAD = "dead"  # the process ended or its heartbeat stopped; a restart may be under way


class EngineUnavailable(Exception):
    """The engine cannot take a request now."""


class EngineClient(Protocol):
    """All methods are called on one event loop and none of them blocks it."""

    @property
    def state(self) -> EngineState: ...

    @property
    def info(self) -> ModelInfo:
        """Raises EngineUnavailable until the model has been loaded once."""
        ...

    def next_id(self, n: int) -> int:
        """Reserves `n` consecutive stream ids and returns the first."""
        ...

    def submit(self, request: Request) -> list[TokenStream]:
        """Queues a request; one stream per choice. Raises EngineUnavailable when the engine is not ready.

        An engine in this process raises ValueError for a request that it can never serve; behind a process
        border such a request's streams end with an error.
        """
        ...

    def abort(self, streams: Iterable[int]) -> None:
        """Ends streams and forgets them; idempotent, also for unknown ids. Nothing more arrives on them."""
        ...

    def stats(self) -> EngineStats: ...

    async def close(self) -> None: ...
