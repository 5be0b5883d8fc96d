"""A server in a thread of its own, for clients that block: it says the same to everybody."""

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import httpx

from app.settings.http import HttpSettings
from tests.app.scripted_engine import ScriptedEngine, says
from tests.app.server_process import DEADLINE
from tests.app.serving import served

SAID = "hé 🌤️ <b>\n"


@dataclass
class Contract:
    url: str
    document: dict[str, dict[str, dict[str, object]]]


@contextlib.contextmanager
def contract_server(settings: HttpSettings | None = None, said: str = SAID) -> Iterator[Contract]:
    """An engine that says `said`, behind the real application and HTTP server."""
    ready = threading.Event()
    ways: list[tuple[asyncio.AbstractEventLoop, asyncio.Event, str]] = []

    async def run() -> None:
        async with served(ScriptedEngine(says(said)), settings) as s:
            end = asyncio.Event()
            ways.append((asyncio.get_running_loop(), end, s.url))
            ready.set()
            await end.wait()

    thread = threading.Thread(target=asyncio.run, args=(run(),))
    thread.start()
    assert ready.wait(DEADLINE)
    ((loop, end, url),) = ways
    try:
        yield Contract(url, httpx.get(url + "/openapi.json").json())
    finally:
        loop.call_soon_threadsafe(end.set)
        thread.join()
