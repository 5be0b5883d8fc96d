"""/metrics on a port of its own (`--metrics-port`), for a scraper that gets no key.

It belongs to the first process, and answers for all.
"""

import asyncio
import socket
from collections.abc import Awaitable, Callable

from starlette.applications import Starlette
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route

from app.processes.httpserver import http_server
from app.settings.config import Config
from app.telemetry.prometheus import CONTENT_TYPE


class MetricsPort:
    """Serves GET /metrics, and nothing else, on a listening socket."""

    def __init__(
        self, listener: socket.socket, config: Config, render: Callable[[], Awaitable[bytes]]
    ) -> None:
        async def metrics(request: HttpRequest) -> Response:
            return Response(await render(), headers={"content-type": CONTENT_TYPE})

        self._http = http_server(Starlette(routes=[Route("/metrics", metrics)]), config)
        serving = self._http.serve(sockets=[listener])
        self._task = asyncio.create_task(serving, name="metrics port")

    async def close(self) -> None:
        self._http.should_exit = True
        await asyncio.wait({self._task})
