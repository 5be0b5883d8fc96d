"""uvicorn, set up for this server."""

import contextlib
import logging
import resource
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import uvicorn
from starlette.types import ASGIApp

from app.http.connection import GuardedHttpProtocol
from app.settings.config import Config
from app.settings.http import ConnectionLimits

log = logging.getLogger("fastpath")

BACKLOG = 2048
OPEN_FILES = 65536
SPARE_FILES = 256  # for everything that is no connection of a client
CLOSE_SECONDS = 1  # for connections without an open answer, after the drain


class HttpServer(uvicorn.Server):
    """uvicorn, with the signals left to us."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def http_server(app: ASGIApp, config: Config) -> HttpServer:
    """One that answers for its share of the connections."""
    limits = connection_limits(config)
    return HttpServer(
        uvicorn.Config(
            app,
            http=partial(GuardedHttpProtocol, limits=limits),  # type: ignore[arg-type]  # it makes one, too
            ws="none",
            log_config=None,
            access_log=False,  # app/routes/observe.py knows more
            server_header=False,
            root_path=config.access.root_path,
            ssl_certfile=config.access.ssl_certfile,
            ssl_keyfile=config.access.ssl_keyfile,
            timeout_graceful_shutdown=CLOSE_SECONDS,
            backlog=BACKLOG,
        )
    )


def connection_limits(config: Config) -> ConnectionLimits:
    """Those of one process: no more connections than files may be open."""
    limits = config.connection_limits()
    return replace(limits, connections=min(limits.connections, _room_for_connections()))


def _room_for_connections() -> int:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return OPEN_FILES if soft == resource.RLIM_INFINITY else max(soft - SPARE_FILES, soft // 2)


def allow_many_connections(connections: int) -> None:
    """Shells often allow 1,024 open files while the system would allow many more."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, OPEN_FILES)
    if resource.getrlimit(resource.RLIMIT_NOFILE)[0] < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    if (room := _room_for_connections()) < connections:
        log.warning(
            "only %d files may be open at once, which leaves room for %d connections (ulimit -n)",
            wanted,
            room,
        )
