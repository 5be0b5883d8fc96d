"""Runs the server: the port, the engine, HTTP, signals, the drain.

The port is taken first, so that a busy one is told at once; HTTP answers while the model loads (`/health` is
200, `/ready` 503). The first SIGTERM or SIGINT drains, the second ends everything at once.
"""

import asyncio
import contextlib
import errno
import gc
import json
import logging
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable, Iterator

import uvicorn
import uvloop

from app.config import Config
from app.context import Context
from app.options import UsageError
from app.server import create_app
from app.supervisor import EngineFailed, ManagedEngine, ProcessEngine
from app.text import TextService
from engine.messages import ModelInfo

log = logging.getLogger("fastpath")

EXIT_OK = 0
EXIT_FAULT = 1
EXIT_USAGE = 2
EXIT_MODEL = 3
EXIT_PORT = 98
BACKLOG = 2048
OPEN_FILES = 65536
KEEP_ALIVE_SECONDS = 15
ECHO_SECONDS = 0.03  # timeout(1) and some init programs send a signal to the process and again to its group
CLOSE_SECONDS = 1  # for connections without an open answer, after the drain

MakeEngine = Callable[[Config], ManagedEngine]


class PortInUse(Exception):
    """Somebody else listens there."""


class HttpServer(uvicorn.Server):
    """uvicorn, with the signals left to us."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def make_engine(config: Config) -> ManagedEngine:
    """The engine that `--engine` asks for."""
    if config.server.engine == "inline":
        from app.inline import InlineEngine

        return InlineEngine(config.engine_config())
    return ProcessEngine(config.engine_config())


def run(config: Config, make_engine: MakeEngine = make_engine) -> int:
    """Serves until told to stop; returns the exit code. Raises UsageError for an address not to be had."""
    try:
        listener = listen(config.server.host, config.server.port)
    except PortInUse:
        print(
            f"Port {config.server.port} on {config.server.host} is in use by another program. "
            "Stop that one, or choose another port with --port (0 takes a free one).",
            file=sys.stderr,
        )
        return EXIT_PORT

    _allow_many_connections()

    async def serve() -> int:
        return await _Service(config, make_engine(config), listener).run()

    with listener, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(serve())


def _allow_many_connections() -> None:
    """Shells often allow 1,024 open files while the system would allow many more."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, OPEN_FILES)
    if resource.getrlimit(resource.RLIMIT_NOFILE)[0] < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    if wanted < BACKLOG:
        log.warning("only %d files may be open at once, and each connection is one (ulimit -n)", wanted)


def dry_run(config: Config, make_engine: MakeEngine = make_engine) -> int:
    """Loads the model, prints what would be served, and ends."""

    async def load() -> int:
        engine = make_engine(config)
        await engine.start()
        try:
            info = await engine.ready()
            await TextService().prepare(info)
        except (EngineFailed, ValueError, OSError) as error:
            return _complain(error)
        finally:
            await engine.close()
        say("\n".join(summary(info)))
        return EXIT_OK

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(load())


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises PortInUse, and UsageError for an address that this machine has not got."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, UnicodeError):
        raise UsageError(f"--host: {host!r} is not a name or an address that this machine knows") from None
    family, kind, protocol, _, address = found[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)  # now, because two sockets may be bound to one port but only one may listen
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise PortInUse from None
        flag = "--port" if isinstance(error, PermissionError) else "--host"
        raise UsageError(f"{flag}: cannot listen on {host} port {port}: {error.strerror}") from None
    return listener


def url_of(host: str, listener: socket.socket) -> str:
    """Where a browser on this machine finds the server."""
    port = listener.getsockname()[1]
    if host in ("0.0.0.0", "::", ""):
        host = "127.0.0.1" if host != "::" else "::1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def summary(info: ModelInfo) -> list[str]:
    """What people look for in the start-up lines."""
    tokens = info.num_blocks * info.block_size
    lines = [
        f"model {info.name} ({info.generation}, {info.parameters / 1e6:.1f} M parameters, {info.dtype}) "
        f"on {info.device}",
        f"KV cache: {tokens:,} tokens in {info.num_blocks} blocks of {info.block_size}, "
        f"{tokens / info.max_model_len:.1f} sequences of {info.max_model_len} tokens; {info.max_rows} rows",
    ]
    if info.features:
        rows = [("feature", "asked for", "used", "why"), *info.features]
        widths = [max(len(row[column]) for row in rows) for column in range(4)]
        for row in rows:
            lines.append("  ".join(map(str.ljust, row, widths)).rstrip())
    return lines


def say(text: str) -> None:
    """A line on standard output; a closed output is no reason to stop."""
    with contextlib.suppress(OSError, ValueError):
        print(text, flush=True)


def _complain(error: Exception) -> int:
    code = error.exit_code if isinstance(error, EngineFailed) else EXIT_MODEL
    what = {EXIT_MODEL: "The model cannot be served", EXIT_USAGE: "This cannot be had"}.get(code, "Stopping")
    with contextlib.suppress(OSError, ValueError):
        print(f"{what}: {error}", file=sys.stderr, flush=True)
    return code


class _Service:
    """One run of the server. `outcome` is its exit code, once something has decided it."""

    def __init__(self, config: Config, engine: ManagedEngine, listener: socket.socket) -> None:
        self.config = config
        self.engine = engine
        self.listener = listener
        self.text = TextService()
        self.outcome: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.drain: asyncio.Task[None] | None = None
        self.signalled = 0.0
        app = create_app(engine, self.text, config.http_settings())
        context = app.state.context
        assert isinstance(context, Context)
        self.lifecycle = context.lifecycle
        self.http = HttpServer(
            uvicorn.Config(
                app,
                http="httptools",
                ws="none",
                log_config=None,
                access_log=config.server.access_log,
                server_header=False,
                timeout_keep_alive=KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=CLOSE_SECONDS,
                backlog=BACKLOG,
            )
        )

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal)
        url = url_of(self.config.server.host, self.listener)
        log.info("listening on %s, loading the model", url)
        serving = asyncio.create_task(self.http.serve(sockets=[self.listener]), name="http")
        serving.add_done_callback(lambda _: self._decide(EXIT_FAULT))
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
        await self.engine.close()
        log.info("stopped")
        return code

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
            self._decide(_complain(error))
            return
        for line in summary(info):
            log.info("%s", line)
        gc.collect()
        gc.freeze()
        if self.config.server.log_format == "json":
            port = self.listener.getsockname()[1]
            say(json.dumps({"event": "ready", "port": port, "url": url, "model": info.name}))
        else:
            say(f"Ready: {info.name} at {url}")

    async def _mourn(self) -> None:
        """Ends the server when its engine is gone for good; a draining server ends by itself."""
        failure = await self.engine.failed()
        if self.drain is None:
            self._decide(_complain(failure))

    def _on_signal(self) -> None:
        now = asyncio.get_running_loop().time()
        if self.drain is None and not self.outcome.done():
            self.drain = asyncio.create_task(self._drain(), name="drain")
            self.signalled = now
            return
        if now - self.signalled < ECHO_SECONDS:
            return
        log.info("second signal: stopping at once")
        self.engine.kill()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(EXIT_OK)

    async def _drain(self) -> None:
        timeout = self.config.server.drain_timeout
        log.info("stopping: %d open answers get up to %g s", self.lifecycle.open_answers, timeout)
        self.engine.retire()
        try:
            await self.lifecycle.drain(timeout)
        finally:
            self._decide(EXIT_OK)
