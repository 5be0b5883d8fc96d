"""An ASGI extension: body bytes that go to the connection without a coroutine.

`send` costs a stream's token five coroutine frames and two dictionaries, several times what it takes to make
the event. A server with the extension puts a function into the scope; the application may call it between
two body messages of an answer that it has started.
"""

from collections.abc import Callable
from functools import partial
from typing import cast

from starlette.types import Scope
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

EXTENSION = "fastpath.write"

# False: not now (the reader is behind, or the answer has no open chunked body); `send` will tell, or wait.
DirectWrite = Callable[[bytes], bool]


def direct_write(scope: Scope) -> DirectWrite | None:
    """The server's function, if it has one."""
    extensions = scope.get("extensions") or {}
    return cast("DirectWrite | None", extensions.get(EXTENSION))


class DirectHttpProtocol(HttpToolsProtocol):
    """uvicorn's HTTP/1.1 protocol with the extension."""

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        if self.cycle is not None and self.cycle.scope is self.scope:
            self.scope["extensions"] = {EXTENSION: partial(_write, self.cycle)}  # type: ignore[dict-item]


def _write(cycle: RequestResponseCycle, body: bytes) -> bool:
    """One chunk, exactly as `cycle.send` would write it."""
    if cycle.transport.is_closing():
        return True  # nobody reads it, which `receive` will tell
    if cycle.flow.write_paused or not cycle.chunked_encoding or cycle.response_complete:
        return False
    cycle.transport.write(b"%x\r\n%b\r\n" % (len(body), body))
    return True
