"""Bytes on a socket, as no HTTP client would send them."""

import asyncio
import json
from dataclasses import dataclass

from tests.app.serving import Served

SECONDS = 10.0  # longer than any limit of the tests


@dataclass(frozen=True, slots=True)
class Reply:
    """Everything that came until the server closed the connection; status 0: nothing."""

    data: bytes

    @property
    def status(self) -> int:
        return int(self.data.split(b" ", 2)[1]) if self.data else 0

    @property
    def headers(self) -> dict[str, str]:
        lines = self.data.partition(b"\r\n\r\n")[0].decode("latin-1").split("\r\n")[1:]
        return {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}

    @property
    def error(self) -> dict[str, str | None]:
        body: dict[str, dict[str, str | None]] = json.loads(self.data.partition(b"\r\n\r\n")[2])
        return body["error"]


async def exchange(port: int, data: bytes) -> Reply:
    """Sends, and reads until the server closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        async with asyncio.timeout(SECONDS):
            writer.write(data)
            await writer.drain()
            return Reply(await reader.read())
    finally:
        writer.close()


async def is_well(served: Served) -> None:
    """A normal request is answered, and nothing is left of what came before."""
    reply = await served.complete(prompt="x")
    assert reply.status_code == 200, reply.text
    stats = (await served.http.get("/stats")).json()
    assert [stats[name] for name in ("running", "waiting", "open_answers", "open_choices")] == [0, 0, 0, 0]
    assert served.engine.open_streams == 0
    assert is_empty(served)


def is_empty(served: Served) -> bool:
    """Whether no request has a place any more."""
    board = served.context.gate.board
    keys = len(served.context.settings.access.keys)
    return all(board.total(column) == 0 for column in range(4 + 2 * keys))
