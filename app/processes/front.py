"""A front-end process: `python -m app.processes.front --control N --connections M`.

app/processes/fleet.py starts it. It serves the connections that come through the socket M; what to do, and
when to end, it hears through the socket N, and it ends when that closes. Signals are the first process's
business.
"""

import argparse
import asyncio
import contextlib
import gc
import itertools
import logging
import os
import shutil
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import uvloop

from app.admission.board import Board
from app.admission.gate import columns
from app.http.connection import GuardedHttpProtocol
from app.processes.console import EXIT_FAULT, EXIT_MODEL, EXIT_OK
from app.processes.control import (
    GATHER_SECONDS,
    REPORT_SECONDS,
    Ask,
    Begin,
    Cancel,
    Cancelling,
    Channel,
    Closed,
    Drain,
    Drained,
    Found,
    Gather,
    Leave,
    Opened,
    Poison,
    Report,
    Serving,
    ToFront,
    Totals,
    Unable,
    to_front,
)
from app.processes.httpserver import HttpServer, allow_many_connections, connection_limits, http_server
from app.processes.shared import SharedEngine
from app.requests.text import TextService
from app.routes.context import Context
from app.routes.server import create_app
from app.telemetry.logs import set_up_logging
from app.telemetry.metrics import Counts

log = logging.getLogger("fastpath")

FDS_PER_READ = 64
FAREWELL_SECONDS = 1.0


class CountedHttpProtocol(GuardedHttpProtocol):
    """Tells when its connection has ended."""

    ended: Callable[[], None]

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.ended()


class Front:
    """One front end, from its `Begin` to its end."""

    def __init__(self, begin: Begin, channel: Channel, connections: socket.socket) -> None:
        self._channel = channel
        self._connections = connections
        self._text = TextService()
        self._engine = SharedEngine(begin.engine, begin.serial)
        settings = begin.config.http_settings()
        workers = begin.config.server.api_workers
        width = columns(len(settings.access.keys))
        board = Board(width, rows=workers, row=begin.row, path=Path(begin.board))
        self._app = create_app(self._engine, self._text, settings, board)
        context = self._app.state.context
        assert isinstance(context, Context)
        context.gather = self._gather
        context.cancel_elsewhere = self._cancel_elsewhere
        context.replays.on_poison = lambda print: channel.send(Poison(print))
        self._context = context
        self._cancelling = Cancelling(channel)
        self._http: HttpServer = http_server(self._app, begin.config)
        self._limits = connection_limits(begin.config)
        self._asks: dict[int, asyncio.Future[Counts]] = {}
        self._ask = itertools.count(1)
        self._closed = 0  # connections that ended and have not been reported
        self._opening: set[asyncio.Task[object]] = set()
        self._ending: list[asyncio.Task[None]] = []

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        serving = asyncio.create_task(self._http.serve(sockets=[]), name="http")
        while not self._http.started and not serving.done():
            await asyncio.sleep(0)
        loop.add_reader(self._connections, self._accept)
        await self._engine.start()
        self._channel.send(Opened())
        others = [asyncio.create_task(self._announce()), asyncio.create_task(self._report())]
        await asyncio.wait({serving})
        loop.remove_reader(self._connections)
        for task in others:
            task.cancel()
        self._channel.send(Report(self._counts()))
        await self._engine.close()
        return EXIT_OK if self._ending else EXIT_FAULT

    def take(self, message: ToFront) -> None:
        if isinstance(message, Gather):
            self._channel.send(Report(self._counts()))
        elif isinstance(message, Totals):
            waiting = self._asks.pop(message.ask, None)
            if waiting is not None and not waiting.done():
                waiting.set_result(message.counts)
        elif isinstance(message, Cancel):
            found = self._context.lifecycle.cancel(message.id, message.owner)
            self._channel.send(Found(message.ask, found))
        elif isinstance(message, Found):
            self._cancelling.take(message)
        elif isinstance(message, Drain):
            self._ending.append(asyncio.create_task(self._drain(message), name="drain"))
        elif isinstance(message, Poison):
            self._context.replays.suspects.convict(message.fingerprint)
        elif isinstance(message, Leave):
            self._ending.append(asyncio.create_task(self._leave(), name="leave"))

    def _counts(self) -> Counts:
        return self._context.metrics.counts(self._context.lifecycle)

    async def _gather(self, own: Counts) -> Counts:
        """The counts of all front ends; only one's own where the first process does not answer."""
        ask = next(self._ask)
        answer: asyncio.Future[Counts] = asyncio.get_running_loop().create_future()
        self._asks[ask] = answer
        self._channel.send(Ask(ask, own))
        try:
            async with asyncio.timeout(2 * GATHER_SECONDS):
                return await answer
        except TimeoutError:
            return own
        finally:
            self._asks.pop(ask, None)

    async def _cancel_elsewhere(self, id: str, owner: str) -> bool:
        return await self._cancelling.ask(id, owner, 2 * GATHER_SECONDS)

    def _accept(self) -> None:
        """Takes over connections that the first process has accepted."""
        try:
            data, fds, _, _ = socket.recv_fds(self._connections, FDS_PER_READ, FDS_PER_READ)
        except BlockingIOError:
            return
        except OSError:
            data, fds = b"", []
        if not data:  # the first process is gone; the control socket says so, too
            asyncio.get_running_loop().remove_reader(self._connections)
        for _ in range(len(data) - len(fds)):  # one byte comes with each
            log.error("a connection was lost: no file descriptor is left for it")
            self._one_ended()
        for fd in fds:
            connection = socket.socket(fileno=fd)
            connection.setblocking(False)
            with contextlib.suppress(OSError):
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            task: asyncio.Task[object] = asyncio.ensure_future(self._open(connection))
            self._opening.add(task)
            task.add_done_callback(self._opening.discard)

    async def _open(self, connection: socket.socket) -> None:
        try:
            loop = asyncio.get_running_loop()
            await loop.connect_accepted_socket(self._protocol, connection, ssl=self._http.config.ssl)
        except OSError:  # it ended meanwhile
            connection.close()
            self._one_ended()

    def _protocol(self) -> CountedHttpProtocol:
        http = self._http
        protocol = CountedHttpProtocol(
            http.config, http.server_state, http.lifespan.state, limits=self._limits
        )
        protocol.ended = self._one_ended
        return protocol

    def _one_ended(self) -> None:
        if not self._closed:
            asyncio.get_running_loop().call_soon(self._tell_closed)
        self._closed += 1

    def _tell_closed(self) -> None:
        self._channel.send(Closed(self._closed))
        self._closed = 0

    async def _announce(self) -> None:
        """Says when requests are answered."""
        info = await self._engine.ready()
        try:
            await self._text.prepare(info)
        except (ValueError, OSError) as error:  # the tokenizer's files
            self._channel.send(Unable(str(error), EXIT_MODEL))
            return
        gc.collect()
        gc.freeze()
        self._channel.send(Serving())

    async def _report(self) -> None:
        while True:
            await asyncio.sleep(REPORT_SECONDS)
            self._channel.send(Report(self._counts()))

    async def _drain(self, drain: Drain) -> None:
        await self._context.lifecycle.drain(drain.timeout, delay=drain.delay)
        self._channel.send(Drained())

    async def _leave(self) -> None:
        await self._context.lifecycle.drain(0.0)
        self._http.should_exit = True


async def serve(control: socket.socket, connections: socket.socket) -> int:
    """Runs one front end; returns its exit code."""
    begun: asyncio.Future[Begin] = asyncio.get_running_loop().create_future()
    front: Front | None = None
    early: list[ToFront] = []
    code: int | None = None
    ended = asyncio.Event()

    def receive(message: ToFront) -> None:
        if isinstance(message, Begin):
            begun.set_result(message)
        elif front is not None:
            front.take(message)
        else:
            early.append(message)

    def lost() -> None:
        ended.set()
        if code is None:  # the first process died, and with it the reason to be
            if begun.done():
                shutil.rmtree(Path(begun.result().engine).parent, ignore_errors=True)
            os._exit(EXIT_OK)

    channel = Channel(to_front.decode, receive, lost)
    await asyncio.get_running_loop().create_unix_connection(lambda: channel, sock=control)
    begin = await begun
    set_up_logging(begin.config.server.log_level, begin.config.server.log_format)
    allow_many_connections(begin.config.connection_limits().connections)
    front = Front(begin, channel, connections)
    for message in early:
        front.take(message)
    code = await front.run()
    channel.close()
    with contextlib.suppress(TimeoutError):  # what it said last
        await asyncio.wait_for(ended.wait(), FAREWELL_SECONDS)
    return code


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m app.processes.front", description="for the server only")
    parser.add_argument("--control", type=int, required=True)
    parser.add_argument("--connections", type=int, required=True)
    options = parser.parse_args()
    for ignored in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ignored, signal.SIG_IGN)
    control = socket.socket(fileno=options.control)
    connections = socket.socket(fileno=options.connections)
    for sock in (control, connections):
        sock.set_inheritable(False)
        sock.setblocking(False)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        sys.exit(runner.run(serve(control, connections)))


if __name__ == "__main__":
    main()
