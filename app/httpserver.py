"""uvicorn, set up for this server."""

import contextlib
import logging
import resource
from collections.abc import Iterator

import uvicorn
from starlette.types import ASGIApp

from app.config import Server
from app.direct import DirectHttpProtocol

log = logging.getLogger("fastpath")

BACKLOG = 2048
OPEN_FILES = 65536
KEEP_ALIVE_SECONDS = 15
CLOSE_SECONDS = 1  # for connections without an open answer, after the drain


class HttpServer(uvicorn.Server):
    """uvicorn, with the signals left to us."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def http_server(app: ASGIApp, config: Server) -> HttpServer:
    return HttpServer(
        uvicorn.Config(
            app,
            http=DirectHttpProtocol,
            ws="none",
            log_config=None,
            access_log=False,  # app/observe.py knows more
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=CLOSE_SECONDS,
            backlog=BACKLOG,
        )
    )


def allow_many_connections() -> None:
    """Shells often allow 1,024 open files while the system would allow many more."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, OPEN_FILES)
    if resource.getrlimit(resource.RLIMIT_NOFILE)[0] < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    if wanted < BACKLOG:
        log.warning("only %d files may be open at once, and each connection is one (ulimit -n)", wanted)
