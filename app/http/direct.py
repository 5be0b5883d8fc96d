"""ASGI extensions: body bytes that go to the connection without a coroutine, and its end at once.

`send` costs a stream's token five coroutine frames and two dictionaries, several times what it takes to make
the event. A server with the extension puts a function into the scope; the application may call it between
two body messages of an answer that it has started.
"""

import contextlib
import socket
import struct
from collections.abc import Callable
from functools import partial
from typing import cast

from starlette.types import Scope
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

EXTENSION = "fastpath.write"
CUT = "fastpath.cut"

# False: not now (the reader is behind, or the answer has no open chunked body); `send` will tell, or wait.
DirectWrite = Callable[[bytes], bool]


def direct_write(scope: Scope) -> DirectWrite | None:
    """The server's function, if it has one."""
    extensions = scope.get("extensions") or {}
    return cast("DirectWrite | None", extensions.get(EXTENSION))


def cut(scope: Scope) -> None:
    """Ends a connection whose reader takes nothing, with all that waits for it; nothing on other servers."""
    extensions = scope.get("extensions") or {}
    end = cast("Callable[[], None] | None", extensions.get(CUT))
    if end is not None:
        end()


class DirectHttpProtocol(HttpToolsProtocol):
    """uvicorn's HTTP/1.1 protocol with the extensions."""

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        if self.cycle is not None and self.cycle.scope is self.scope:
            cycle = self.cycle
            extensions: dict[str, object] = {EXTENSION: partial(_write, cycle), CUT: partial(_cut, cycle)}
            self.scope["extensions"] = extensions  # type: ignore[typeddict-item]


def _write(cycle: RequestResponseCycle, body: bytes) -> bool:
    """One chunk, exactly as `cycle.send` would write it."""
    if cycle.transport.is_closing():
        return True  # nobody reads it, which `receive` will tell
    if cycle.flow.write_paused or not cycle.chunked_encoding or cycle.response_complete:
        return False
    cycle.transport.write(b"%x\r\n%b\r\n" % (len(body), body))
    return True


def _cut(cycle: RequestResponseCycle) -> None:
    """Without lingering: what the kernel holds for the reader goes, too."""
    sock = cycle.transport.get_extra_info("socket")
    if sock is not None:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    cycle.transport.abort()
