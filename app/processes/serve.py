"""Runs the server: the port, the engine, HTTP, signals, the drain.

The port is taken first, so that a busy one is told at once; HTTP answers while the model loads (`/health` is
200, `/ready` 503). The first SIGTERM or SIGINT drains, the second ends everything at once.
"""

import asyncio
import contextlib
import errno
import gc
import logging
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import uvloop

from app.processes.console import EXIT_FAULT, EXIT_OK, EXIT_PORT, announce, complain, say, summary
from app.processes.fleet import Fleet
from app.processes.httpserver import BACKLOG, allow_many_connections, http_server
from app.processes.notify import Notifier
from app.processes.scrape import MetricsPort
from app.processes.stdio import hold_standard_files
from app.processes.stopping import Stopping
from app.processes.supervisor import EngineFailed, ManagedEngine, Patience, ProcessEngine
from app.requests.text import TextService
from app.routes.context import Context
from app.routes.server import create_app
from app.settings.config import Config
from app.settings.options import UsageError
from app.telemetry.prometheus import Exporter, heartbeat_age
from engine.messages import ModelInfo

log = logging.getLogger("fastpath")


SEND_BUFFER = 128 * 1024

MakeEngine = Callable[[Config], ManagedEngine]


class PortInUse(Exception):
    """Somebody else listens there."""


def make_engine(config: Config) -> ManagedEngine:
    """The engine that `--engine` asks for."""
    if config.server.engine == "inline":
        from app.processes.inline import InlineEngine

        return InlineEngine(config.engine_config())
    server = config.server
    patience = Patience(hang=server.engine_hang_timeout, step=server.step_timeout)
    return ProcessEngine(config.engine_config(), patience=patience)


def run(config: Config, make_engine: MakeEngine = make_engine) -> int:
    """Serves until told to stop; returns the exit code. Raises UsageError for an address not to be had."""
    hold_standard_files()
    config = config.with_keys_read()
    uds = config.access.uds
    try:
        listener = listen_at(uds) if uds is not None else listen(config.server.host, config.server.port)
    except PortInUse:
        where = uds or f"Port {config.server.port} on {config.server.host}"
        print(
            f"{where} is in use by another program. Stop that one, or choose another "
            + ("path with --uds." if uds else "port with --port (0 takes a free one)."),
            file=sys.stderr,
        )
        return EXIT_PORT

    try:
        scraped = listen_for_scrapes(config)
    except PortInUse:
        listener.close()
        print(
            f"Port {config.server.metrics_port} on {config.server.host} is in use by another program. "
            "Choose another port with --metrics-port (0 takes a free one).",
            file=sys.stderr,
        )
        return EXIT_PORT

    allow_many_connections(config.connection_limits().connections)

    async def serve() -> int:
        engine = make_engine(config)
        if config.server.api_workers == 1:
            return await _Service(config, engine, listener, scraped).run()
        assert isinstance(engine, ProcessEngine)
        return await Fleet(config, engine, listener, url_of(config, listener), scraped).run()

    try:
        with (
            listener,
            scraped or contextlib.nullcontext(),
            asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
        ):
            return runner.run(serve())
    finally:
        if uds is not None:
            Path(uds).unlink(missing_ok=True)


def dry_run(config: Config, make_engine: MakeEngine = make_engine) -> int:
    """Loads the model, prints what would be served, and ends."""
    try:
        info = loaded(config, make_engine)
    except (EngineFailed, ValueError, OSError) as error:
        return complain(error)
    say("\n".join(summary(info)))
    return EXIT_OK


def loaded(config: Config, make_engine: MakeEngine = make_engine) -> ModelInfo:
    """What the engine says of itself once it has loaded; it is ended again.

    Raises EngineFailed, and ValueError or OSError for the tokenizer's files.
    """

    async def load() -> ModelInfo:
        engine = make_engine(config)
        await engine.start()
        try:
            info = await engine.ready()
            await TextService().prepare(info)
        finally:
            await engine.close()
        return info

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(load())


def listen(host: str, port: int, port_flag: str = "--port") -> socket.socket:
    """A listening socket. Raises PortInUse, and UsageError for an address that this machine has not got."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, UnicodeError):
        raise UsageError(f"--host: {host!r} is not a name or an address that this machine knows") from None
    family, kind, protocol, _, address = found[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Connections inherit it. Else the kernel takes megabytes for a reader that reads nothing.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        listener.bind(address)
        listener.listen(BACKLOG)  # now, because two sockets may be bound to one port but only one may listen
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise PortInUse from None
        flag = port_flag if isinstance(error, PermissionError) else "--host"
        raise UsageError(f"{flag}: cannot listen on {host} port {port}: {error.strerror}") from None
    return listener


def listen_for_scrapes(config: Config) -> socket.socket | None:
    """The socket of `--metrics-port`, if there is to be one. Raises PortInUse, UsageError."""
    port = config.server.metrics_port
    return None if port is None else listen(config.server.host, port, "--metrics-port")


def listen_at(path: str) -> socket.socket:
    """A listening Unix socket. What is left of a server that has ended is replaced. Raises PortInUse, and
    UsageError for a path that cannot be had.
    """
    listener = socket.socket(socket.AF_UNIX)
    try:
        if Path(path).is_socket():
            with socket.socket(socket.AF_UNIX) as other:
                if other.connect_ex(path) == 0:
                    raise PortInUse
            Path(path).unlink()
        listener.bind(path)
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except PortInUse:
        listener.close()
        raise
    except OSError as error:
        listener.close()
        raise UsageError(f"--uds: cannot listen at {path}: {error.strerror or error}") from None
    return listener


def url_of(config: Config, listener: socket.socket) -> str:
    """Where a browser on this machine finds the server; with --uds, the path."""
    if config.access.uds is not None:
        return f"unix:{config.access.uds}"
    host, port = config.server.host, port_of(listener)
    if host in ("0.0.0.0", "::", ""):
        host = "127.0.0.1" if host != "::" else "::1"
    scheme = "http" if config.access.ssl_certfile is None else "https"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def port_of(listener: socket.socket) -> int:
    """0 for a Unix socket."""
    return 0 if listener.family == socket.AF_UNIX else int(listener.getsockname()[1])


class _Service:
    """One run of the server. `outcome` is its exit code, once something has decided it."""

    def __init__(
        self,
        config: Config,
        engine: ManagedEngine,
        listener: socket.socket,
        scraped: socket.socket | None = None,
    ) -> None:
        self.config = config
        self.engine = engine
        self.listener = listener
        self.text = TextService()
        self.outcome: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.drain: asyncio.Task[None] | None = None
        self.stopping = Stopping(self._start_drain, engine.kill)
        app = create_app(engine, self.text, config.http_settings())
        context = app.state.context
        assert isinstance(context, Context)
        self.lifecycle = context.lifecycle
        self.context = context
        self.scraped = scraped
        self.notifier = Notifier(os.environ, lambda: heartbeat_age(engine))
        self.http = http_server(app, config)

    async def run(self) -> int:
        self.stopping.listen()
        url = url_of(self.config, self.listener)
        log.info("listening on %s, loading the model", url)
        serving = asyncio.create_task(self.http.serve(sockets=[self.listener]), name="http")
        serving.add_done_callback(lambda _: self._decide(EXIT_FAULT))
        metrics = self._open_metrics()
        await self.engine.start()
        others = [
            asyncio.create_task(self._announce(url), name="announce"),
            asyncio.create_task(self._mourn(), name="mourn"),
        ]
        code = await self.outcome
        self.lifecycle.start_draining()
        self.http.should_exit = True
        await asyncio.wait({serving})
        for task in others:
            task.cancel()
        self.notifier.close()
        if metrics is not None:
            await metrics.close()
        await self.engine.close()
        log.info("stopped")
        return code

    def _open_metrics(self) -> MetricsPort | None:
        if self.scraped is None:
            return None
        exporter = Exporter(self.engine, self.lifecycle)

        async def render() -> bytes:
            return exporter.render(await self.context.counts())

        log.info("metrics on port %d, without a key", self.scraped.getsockname()[1])
        return MetricsPort(self.scraped, self.config, render)

    def _decide(self, code: int) -> None:
        if not self.outcome.done():
            self.outcome.set_result(code)

    async def _announce(self, url: str) -> None:
        """Says that the server is ready, once it is."""
        try:
            info = await self.engine.ready()
            await self.text.prepare(info)
        except EngineFailed:
            return
        except (ValueError, OSError) as error:  # the tokenizer's files
            self._decide(complain(error))
            return
        gc.collect()
        gc.freeze()
        announce(self.config, info, url, port_of(self.listener))
        self.notifier.ready()

    async def _mourn(self) -> None:
        """Ends the server when its engine is gone for good; a draining server ends by itself."""
        failure = await self.engine.failed()
        if not self.stopping.asked:
            self._decide(complain(failure))

    def _start_drain(self) -> None:
        self.notifier.stopping()
        self.drain = asyncio.create_task(self._drain(), name="drain")

    async def _drain(self) -> None:
        server = self.config.server
        log.info(
            "stopping: %d open answers get up to %g s", self.lifecycle.open_answers, server.drain_timeout
        )
        self.engine.retire()
        try:
            await self.lifecycle.drain(server.drain_timeout, delay=server.drain_delay)
        finally:
            self._decide(EXIT_OK)
