"""The engine process: `python -m engine.worker --fd N`, started by the front end.

It reads its configuration from the socket N, loads the model, and runs an `AsyncEngine` until the socket
closes or a `Shutdown` arrives, at any time, also while the model loads. Signals are the front end's business.
The step loop never waits for the socket: while that is full, frames are merged.
"""

import argparse
import asyncio
import contextlib
import ctypes
import faulthandler
import gc
import logging
import os
import signal
import socket
import sys
from typing import TYPE_CHECKING, NoReturn, TypeVar, cast

import msgspec

from engine.messages import (
    Abort,
    EngineConfig,
    EngineStats,
    Failed,
    Finish,
    Frame,
    Ready,
    Request,
    Submit,
    TokenLogprobs,
)
from engine.messages.wire import HEARTBEAT_SECONDS, ToEngine, Unframer, encode, to_engine

if TYPE_CHECKING:
    from engine.async_engine import AsyncEngine

T = TypeVar("T")

PR_SET_PDEATHSIG = 1
EXIT_FAULT = 1
EXIT_USAGE = 2
EXIT_MODEL = 3
FAREWELL_SECONDS = 2.0


class Outbox:
    """Frames on their way to the front end; those that meet a full socket are merged into one."""

    def __init__(self, transport: asyncio.WriteTransport) -> None:
        self._transport = transport
        self._full = False
        self._held: Frame | None = None
        self.sent = 0  # frames written or held since the last heartbeat

    def push(self, frame: Frame) -> None:
        self.sent += 1
        if not self._full:
            self._transport.write(encode(frame))
        elif self._held is None:
            self._held = frame
        else:
            self._held = merge(self._held, frame)

    def pause(self) -> None:
        self._full = True

    def resume(self) -> None:
        self._full = False
        held, self._held = self._held, None
        if held is not None:
            self._transport.write(encode(held))


def merge(first: Frame, second: Frame) -> Frame:
    """Both frames as one; extends the lists of `first`."""
    shift = len(first.tokens)
    first.streams.extend(second.streams)
    first.tokens.extend(second.tokens)
    first.forced.extend(index + shift for index in second.forced)
    first.logprobs.extend(
        TokenLogprobs(item.index + shift, item.logprob, item.top_ids, item.top_logprobs)
        for item in second.logprobs
    )
    first.finished.extend(second.finished)
    return Frame(first.streams, first.tokens, first.forced, first.logprobs, first.finished, second.stats)


class Link(asyncio.Protocol):
    """The socket to the front end."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self._unframer = Unframer()
        self.config: asyncio.Future[EngineConfig] = loop.create_future()
        self.gone: asyncio.Future[None] = loop.create_future()  # nobody wants this engine any more
        self.closed = asyncio.Event()  # nothing can be sent any more
        self.engine: AsyncEngine | None = None
        self.outbox: Outbox

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.WriteTransport, transport)  # uvloop's is no subclass
        self.outbox = Outbox(self.transport)

    def leave(self) -> None:
        if not self.gone.done():
            self.gone.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self.leave()
        self.closed.set()

    def pause_writing(self) -> None:
        self.outbox.pause()

    def resume_writing(self) -> None:
        self.outbox.resume()

    def data_received(self, data: bytes) -> None:
        for body in self._unframer.feed(data):
            self._take(to_engine.decode(body))

    def _take(self, message: ToEngine) -> None:
        if isinstance(message, EngineConfig):
            self.config.set_result(message)
        elif isinstance(message, Submit):
            self._submit(message.request)
        elif isinstance(message, Abort):
            if self.engine is not None:
                self.engine.abort(message.streams)
        else:
            self.leave()

    def _submit(self, request: Request) -> None:
        """A request that the engine cannot take fails alone."""
        engine = self.engine
        try:
            if engine is None:
                raise RuntimeError("the model is still loading")
            engine.enqueue(request)
        except Exception as error:
            message = f"{type(error).__name__}: {error}"
            finished = [Finish(request.id + k, "error", message=message) for k in range(request.n)]
            stats = engine.stats() if engine is not None else EngineStats()
            self.outbox.push(Frame([], [], [], [], finished, stats))

    async def hang_up(self) -> None:
        """Sends what is still unsent, then closes the socket."""
        self.outbox.resume()
        self.transport.close()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.closed.wait(), FAREWELL_SECONDS)


class DeviceMissing(ValueError):
    """The device asked for is not there."""


def load(config: EngineConfig) -> "AsyncEngine":
    """Loads the model and builds the engine around it; torch is imported here, not before.

    Raises DeviceMissing, and ValueError or OSError for a model that cannot be loaded.
    """
    if config.threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(config.threads)
    import torch

    from engine.async_engine import AsyncEngine
    from engine.loader import load_model

    # Loading on one thread leaves the machine's threads to the step thread alone (engine/runner.py).
    config = msgspec.structs.replace(config, threads=config.threads or torch.get_num_threads())
    torch.set_num_threads(1)
    model, tokenizer, meta = load_model(
        config.model,
        device=choose_device(config.device),
        dtype=config.dtype,
        source=config.source,
        tag=config.tag,
        step=config.step,
        overrides=dict(config.overrides),
    )
    return AsyncEngine(model, tokenizer, config, meta)


def choose_device(name: str) -> str:
    """The device to use: the one asked for, if it is there; for "auto" cuda where there is one, else cpu.

    Never mps, which has no float64: sampling draws in it.
    """
    import torch

    found = {"cuda": torch.cuda.is_available(), "cpu": True}
    if name == "auto":
        return next(kind for kind, is_there in found.items() if is_there)
    if name == "mps":
        raise DeviceMissing("--device mps has no float64, which sampling needs; use cpu")
    kind, _, index = name.partition(":")
    if not found.get(kind, False) or (index and int(index) >= torch.cuda.device_count()):
        raise DeviceMissing(f"--device {name}: torch {torch.__version__} sees no such device here")
    return name


async def serve(sock: socket.socket) -> int:
    """Loads the model and serves the socket; returns the exit code."""
    link = Link()
    await asyncio.get_running_loop().create_unix_connection(lambda: link, sock=sock)
    gone = link.gone
    await either(gone, link.config)
    if gone.done():
        return 0
    # In a thread, so that the front end can leave at any time: a load under way then ends with the process.
    loading = asyncio.ensure_future(asyncio.to_thread(load, link.config.result()))
    await either(gone, loading)
    if gone.done():
        return 0
    try:
        engine = loading.result()
        engine.on_frame = link.outbox.push
        await engine.start()
    except Exception as error:
        failed = failure(error)
        link.transport.write(encode(failed))
        await link.hang_up()
        return failed.exit_code
    gc.collect()
    gc.freeze()
    link.engine = engine
    link.transport.write(encode(Ready(engine.info)))
    ended = asyncio.ensure_future(engine.wait_closed())
    await _beat(engine, link, ended)
    code = 0
    if not gone.done():
        code = EXIT_FAULT
        logging.getLogger("fastpath.engine").error("the step loop ended", exc_info=ended.exception())
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(engine.close(), FAREWELL_SECONDS)
    await link.hang_up()
    return code


async def either(first: "asyncio.Future[None]", second: "asyncio.Future[T]") -> None:
    """Waits until one of the two is done."""
    waits: set[asyncio.Future[None] | asyncio.Future[T]] = {first, second}
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)


async def _beat(engine: "AsyncEngine", link: Link, ended: "asyncio.Future[None]") -> None:
    """Sends a frame when none went out for a heartbeat, until the front end leaves or the step loop ends."""
    waits = {link.gone, ended}
    while not (link.gone.done() or ended.done()):
        link.outbox.sent = 0
        await asyncio.wait(waits, timeout=HEARTBEAT_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        if not link.outbox.sent:
            link.outbox.push(Frame([], [], [], [], [], engine.stats()))


def failure(error: Exception) -> Failed:
    """Why the engine could not start, in one line. Errors that are raised on purpose speak for themselves."""
    text = " ".join(str(error).split())
    if not (isinstance(error, OSError | ValueError) and text):
        text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return Failed(text, EXIT_USAGE if isinstance(error, DeviceMissing) else EXIT_MODEL)


def die_with_parent() -> None:
    """On Linux the system ends this process with its parent; elsewhere the closed socket does."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def main(argv: list[str] | None = None) -> NoReturn:
    """Runs the engine process; never returns, so that no thread can hold it."""
    parser = argparse.ArgumentParser(prog="python -m engine.worker", description="for the server only")
    parser.add_argument("--fd", type=int, required=True)
    fd = parser.parse_args(argv).fd
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    for ignored in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ignored, signal.SIG_IGN)
    die_with_parent()
    os.set_inheritable(fd, False)
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        code = runner.run(serve(socket.socket(fileno=fd)))
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def new_event_loop() -> asyncio.AbstractEventLoop:
    """uvloop where it is installed."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


if __name__ == "__main__":
    main()
