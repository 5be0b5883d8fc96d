"""Several front-end processes on one port and one engine: `--api-workers N`.

    this process       the port, the signals, the engine's life, the front ends' lives; no HTTP
    front ends         HTTP and streams (app/processes/front.py); each has its own socket to the engine

This process accepts, and hands each connection to the front end that has the fewest: streams are few and
long, so both ways in which the kernel could spread them do badly. SO_REUSEPORT draws lots, and with a
listening socket shared by all, the first event loop to wake takes all that wait. Also, no connection is lost
that waited in the queue of a front end that died.
"""

import asyncio
import contextlib
import itertools
import logging
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Coroutine
from pathlib import Path

from app.admission.board import Board
from app.admission.gate import columns
from app.http.lifecycle import Lifecycle
from app.processes.child import environment
from app.processes.console import EXIT_FAULT, EXIT_OK, announce, complain
from app.processes.control import (
    GATHER_SECONDS,
    Ask,
    Begin,
    Cancel,
    Cancelling,
    Channel,
    Closed,
    Drain,
    Drained,
    Found,
    FromFront,
    Gather,
    Leave,
    Opened,
    Poison,
    Report,
    Serving,
    Totals,
    Unable,
    from_front,
)
from app.processes.notify import Notifier
from app.processes.scrape import MetricsPort
from app.processes.stopping import Stopping
from app.processes.supervisor import EngineFailed, Patience, ProcessEngine, Restarts
from app.settings.config import Config
from app.telemetry.metrics import Counts
from app.telemetry.prometheus import Exporter

log = logging.getLogger("fastpath")

FRONT_COMMAND = (sys.executable, "-P", "-m", "app.processes.front")
ENGINE_BACKLOG = 128
ACCEPTS_PER_TURN = 64
PAUSE_SECONDS = 0.1  # after an accept that failed: no file descriptors left, for instance
LATE_SECONDS = 5.0  # for a front end to leave after its deadline


class FrontProcess:
    """One front-end process as its parent sees it."""

    def __init__(self, number: int, receive: Callable[["FrontProcess", FromFront], None]) -> None:
        def heard(message: FromFront) -> None:
            self._silent_ticks = 0
            receive(self, message)

        self.number = number
        self.counts = Counts()
        self.connections = 0
        self.taken = 0  # connections, ever
        self.open = False  # takes connections
        self.serving = False
        self.drained = False
        self.reported = asyncio.Event()
        self._process: asyncio.subprocess.Process | None = None
        self._handover: socket.socket | None = None
        self._silent_ticks = 0
        self._lost = asyncio.Event()
        self._channel = Channel(from_front.decode, heard, self._on_lost)
        self.cancelling = Cancelling(self._channel)

    async def spawn(self, begin: Begin) -> None:
        """Raises OSError."""
        control, their_control = socket.socketpair()
        self._handover, their_handover = socket.socketpair()
        self._handover.setblocking(False)
        try:
            with their_control, their_handover:
                fds = [their_control.fileno(), their_handover.fileno()]
                self._process = await asyncio.create_subprocess_exec(
                    *FRONT_COMMAND,
                    *("--control", str(fds[0]), "--connections", str(fds[1])),
                    pass_fds=fds,
                    stdin=asyncio.subprocess.DEVNULL,
                    env=environment(),
                    start_new_session=True,  # Ctrl-C in a terminal is for the first process only
                )
            loop = asyncio.get_running_loop()
            await loop.create_unix_connection(lambda: self._channel, sock=control)
        except BaseException:
            control.close()
            self.kill()
            raise
        self._channel.send(begin)

    async def wait(self, patience: Patience) -> int:
        """The exit status, once everything that it said has been read. One that is silent is killed."""
        assert self._process is not None
        ended = asyncio.ensure_future(self._process.wait())
        while not ended.done():
            await asyncio.wait({ended}, timeout=patience.tick)
            self._silent_ticks += 1  # not seconds: a pause of this process is no silence of that one
            if self._silent_ticks * patience.tick > patience.hang:
                log.error("front end %d has been silent for %g s", self.number, patience.hang)
                self.kill()
                await ended
        status = ended.result()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._lost.wait(), GATHER_SECONDS)
        self.open = self.serving = False
        self._channel.close()
        if self._handover is not None:
            self._handover.close()
        return status

    def _on_lost(self) -> None:
        self.open = False
        self._lost.set()

    def hand_over(self, connection: socket.socket) -> bool:
        """Gives it an accepted connection; False when it cannot take one now."""
        if self._handover is None or not self.open:
            return False
        try:
            socket.send_fds(self._handover, [b"c"], [connection.fileno()])
        except OSError:
            return False
        self.connections += 1
        self.taken += 1
        return True

    def ask_for_counts(self) -> None:
        self.reported.clear()
        self._channel.send(Gather())

    def send(self, message: Totals | Found) -> None:
        self._channel.send(message)

    def tell(self, message: Poison | Drain) -> None:
        self._channel.send(message)

    def leave(self) -> None:
        self._channel.send(Leave())

    def kill(self) -> None:
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()


class Dispatcher:
    """Accepts connections while a front end is there to take them; until then they wait in the backlog."""

    def __init__(self, listener: socket.socket, fronts: Callable[[], list[FrontProcess]]) -> None:
        self._listener = listener
        self._fronts = fronts
        self._loop = asyncio.get_running_loop()
        self._reading = False
        self._closed = False
        self._held: socket.socket | None = None  # accepted, and nobody could take it

    def update(self) -> None:
        """Call it when a front end has opened or gone."""
        wanted = bool(self._fronts()) and not self._closed
        if wanted and not self._reading:
            self._reading = True
            self._loop.add_reader(self._listener, self._accept)
            if self._held is not None:
                held, self._held = self._held, None
                self._hand_over(held)
        elif not wanted and self._reading:
            self._reading = False
            self._loop.remove_reader(self._listener)

    def close(self) -> None:
        self._closed = True
        self.update()
        self._listener.close()
        if self._held is not None:
            self._held.close()

    def _accept(self) -> None:
        for _ in range(ACCEPTS_PER_TURN):
            if not self._reading:
                return
            try:
                connection, _ = self._listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                log.error("a connection could not be accepted: %s", error)
                self._pause()
                return
            self._hand_over(connection)

    def _hand_over(self, connection: socket.socket) -> None:
        for front in sorted(self._fronts(), key=lambda front: (front.connections, front.taken)):
            if front.hand_over(connection):
                connection.close()  # ours; the front end has its own
                return
        self._held = connection
        self._pause()

    def _pause(self) -> None:
        if self._reading:
            self._reading = False
            self._loop.remove_reader(self._listener)
            self._loop.call_later(PAUSE_SECONDS, self.update)


class Fleet:
    """One run of a server with several front ends. `outcome` is its exit code, once something decided it."""

    def __init__(
        self,
        config: Config,
        engine: ProcessEngine,
        listener: socket.socket,
        url: str,
        scraped: socket.socket | None = None,
    ) -> None:
        self.config = config
        self.engine = engine
        self.url = url
        self.port: int = 0 if listener.family == socket.AF_UNIX else listener.getsockname()[1]
        self.fronts: dict[int, FrontProcess] = {}  # by number
        self.past = Counts()  # of processes that have ended
        self.dispatcher = Dispatcher(listener, self._open_fronts)
        self.outcome: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.all_serving = asyncio.Event()
        self.serials = itertools.count(1)
        self.stopping = Stopping(self._drain, self._end_at_once)
        self.folder = Path(tempfile.mkdtemp(prefix="fastpath-"))  # only this user can enter it
        self.tasks: set[asyncio.Task[None]] = set()
        self.scraped = scraped
        self.lifecycle = Lifecycle()  # only to tell that the server drains
        self.notifier = Notifier(os.environ, lambda: engine.heartbeat_age)
        self._board_path = self.folder / "board"

    async def run(self) -> int:
        self.stopping.listen()
        log.info("listening on %s, loading the model", self.url)
        metrics = self._open_metrics()
        path = self.folder / "engine"
        width, workers = columns(len(self.config.access.api_key)), self.config.server.api_workers
        try:
            Board.create(self._board_path, width, workers)
            self.board = Board(width, rows=workers, path=self._board_path)
            with socket.socket(socket.AF_UNIX) as found:
                found.bind(str(path))
                found.listen(ENGINE_BACKLOG)
                self.engine.share(found)
                await self.engine.start()
                keepers = [
                    asyncio.create_task(self._keep(number, str(path)), name=f"front end {number}")
                    for number in range(1, self.config.server.api_workers + 1)
                ]
                for keeper in keepers:
                    keeper.add_done_callback(self._on_keeper_done)
                others = [asyncio.create_task(self._announce()), asyncio.create_task(self._mourn())]
                code = await self.outcome
                self.dispatcher.close()
                await self._dismiss(keepers)
                for task in (*others, *self.tasks):
                    task.cancel()
                self.notifier.close()
                if metrics is not None:
                    await metrics.close()
                await self.engine.close()
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)
        log.info("stopped")
        return code

    async def _dismiss(self, keepers: list[asyncio.Task[None]]) -> None:
        """Ends the front ends: what is open gets an error, and who does not go is killed."""
        for front in self.fronts.values():
            front.leave()
        _, late = await asyncio.wait(keepers, timeout=LATE_SECONDS)
        if late:
            for front in self.fronts.values():
                front.kill()
            await asyncio.wait(keepers)

    def _decide(self, code: int) -> None:
        if not self.outcome.done():
            self.outcome.set_result(code)

    @property
    def _ending(self) -> bool:
        return self.stopping.asked or self.outcome.done()

    def _open_fronts(self) -> list[FrontProcess]:
        return [front for front in self.fronts.values() if front.open]

    async def _keep(self, number: int, path: str) -> None:
        """Runs front end `number`, and another in its place when it dies."""
        restarts = Restarts(self.engine.patience)
        while not self._ending:
            front = FrontProcess(number, self._on_message)
            try:
                board = str(self._board_path)
                await front.spawn(Begin(self.config, next(self.serials), path, board, number - 1))
            except OSError as error:
                self._fail(f"a front end could not be started: {error}", EXIT_FAULT)
                return
            self.fronts[number] = front
            if self.stopping.asked:
                front.tell(Drain(self.config.server.drain_timeout))
            status = await front.wait(self.engine.patience)
            del self.fronts[number]
            self.board.clear(number - 1)
            self.past = self.past.plus(front.counts.past())
            self.dispatcher.update()
            if self._ending:
                break
            how = f"was ended by signal {-status}" if status < 0 else f"ended with exit code {status}"
            delay = restarts.delay()
            if delay is None:
                self._fail(f"front end {number} {how} again and again", EXIT_FAULT)
                return
            log.error("front end %d %s; restarting it in %g s", number, how, delay)
            await asyncio.wait({self.outcome}, timeout=delay)
        self._end_if_drained()

    def _on_keeper_done(self, keeper: "asyncio.Task[None]") -> None:
        if not keeper.cancelled() and (error := keeper.exception()) is not None:
            log.error("%s failed", keeper.get_name(), exc_info=error)
            self._decide(EXIT_FAULT)

    def _on_message(self, front: FrontProcess, message: FromFront) -> None:
        if isinstance(message, Closed):
            front.connections -= message.connections
        elif isinstance(message, Report):
            front.counts = message.counts
            front.reported.set()
        elif isinstance(message, Ask):
            front.counts = message.counts
            self._begin(self._answer(front, message.ask))
        elif isinstance(message, Cancel):
            self._begin(self._cancel(front, message))
        elif isinstance(message, Found):
            front.cancelling.take(message)
        elif isinstance(message, Opened):
            front.open = True
            self.dispatcher.update()
        elif isinstance(message, Drained):
            front.drained = True
            self._end_if_drained()
        elif isinstance(message, Serving):
            front.serving = True
            serving = sum(front.serving for front in self.fronts.values())
            if serving == self.config.server.api_workers:
                self.all_serving.set()
        elif isinstance(message, Poison):
            for other in self.fronts.values():
                if other is not front:
                    other.tell(message)
        elif isinstance(message, Unable):
            self._fail(f"The model cannot be served: {message.message}", message.exit_code)

    def _begin(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    def _open_metrics(self) -> MetricsPort | None:
        if self.scraped is None:
            return None
        exporter = Exporter(self.engine, self.lifecycle)

        async def render() -> bytes:
            return exporter.render(await self._totals(None))

        log.info("metrics on port %d, without a key", self.scraped.getsockname()[1])
        return MetricsPort(self.scraped, self.config, render)

    async def _answer(self, front: FrontProcess, ask: int) -> None:
        front.send(Totals(ask, await self._totals(front)))

    async def _totals(self, front: FrontProcess | None) -> Counts:
        """Adds up what all have counted; one that does not answer in time counts as it last did. `front` has
        just told its own.
        """
        others = [other for other in self.fronts.values() if other is not front]
        for other in others:
            other.ask_for_counts()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(GATHER_SECONDS):
                for other in others:
                    await other.reported.wait()
        total = self.past
        for each in others if front is None else (front, *others):
            total = total.plus(each.counts)
        return total

    async def _cancel(self, front: FrontProcess, message: Cancel) -> None:
        """Asks the others for an answer that `front` does not have."""
        others = [other for other in self.fronts.values() if other is not front]
        asked = [other.cancelling.ask(message.id, message.owner, GATHER_SECONDS) for other in others]
        front.send(Found(message.ask, any(await asyncio.gather(*asked))))

    async def _announce(self) -> None:
        """Says that the server is ready, once all front ends are."""
        try:
            info = await self.engine.ready()
        except EngineFailed:
            return
        await self.all_serving.wait()
        announce(self.config, info, self.url, self.port)
        self.notifier.ready()

    async def _mourn(self) -> None:
        """Ends the server when its engine is gone for good; a draining server ends by itself."""
        failure = await self.engine.failed()
        if not self.stopping.asked:
            self._decide(complain(failure))

    def _fail(self, message: str, code: int) -> None:
        if not self._ending:
            with contextlib.suppress(OSError, ValueError):
                print(message, file=sys.stderr, flush=True)
            self._decide(code)

    def _drain(self) -> None:
        server = self.config.server
        self.notifier.stopping()
        self.lifecycle.start_draining()
        log.info("stopping: open answers get up to %g s", server.drain_timeout)
        self.engine.retire()
        for front in self.fronts.values():
            front.tell(Drain(server.drain_timeout, server.drain_delay))
        latest = server.drain_delay + server.drain_timeout + LATE_SECONDS
        asyncio.get_running_loop().call_later(latest, self._decide, EXIT_OK)

    def _end_if_drained(self) -> None:
        """Only all together, so that whoever connects meanwhile is told that the server is on its way out."""
        if self.stopping.asked and all(front.drained for front in self.fronts.values()):
            self._decide(EXIT_OK)

    def _end_at_once(self) -> None:
        for front in self.fronts.values():
            front.kill()
        self.engine.kill()
        shutil.rmtree(self.folder, ignore_errors=True)
