"""The engine process: `python -m engine.worker --fd N [--listen M]`, started by the front end.

It reads its configuration from the socket N, loads the model, and runs an `AsyncEngine` until the socket
closes or a `Shutdown` arrives, at any time, also while the model loads. Signals are the front end's business.
Further front ends may connect to the listening socket M (engine/links.py).
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
import time
from typing import TYPE_CHECKING, NoReturn, TypeVar

from engine.links import FAREWELL_SECONDS, Exchange, FirstLink
from engine.messages import EngineConfig, Failed
from engine.messages.resident import resident_bytes
from engine.messages.wire import HEARTBEAT_SECONDS, encode

if TYPE_CHECKING:
    from engine.async_engine import AsyncEngine

T = TypeVar("T")

PR_SET_PDEATHSIG = 1
EXIT_FAULT = 1
EXIT_USAGE = 2
EXIT_MODEL = 3


class DeviceMissing(ValueError):
    """The device asked for is not there."""


def load(config: EngineConfig) -> "AsyncEngine":
    """Loads the model and builds the engine around it; torch is imported here, not before.

    Raises DeviceMissing, and ValueError or OSError for a model that cannot be loaded.
    """
    if config.threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(config.threads)
    begun = time.perf_counter()
    import torch

    from engine.async_engine import AsyncEngine
    from engine.loader import load_model

    # Loading on one thread leaves the machine's threads to the step thread alone (engine/runner.py).
    torch.set_num_threads(1)
    imported = time.perf_counter()
    model, tokenizer, meta = load_model(
        config.model,
        device=choose_device(config.device),
        dtype=config.dtype,
        source=config.source,
        tag=config.tag,
        step=config.step,
        overrides=dict(config.overrides),
        load_format=config.load_format,
    )
    read = time.perf_counter()
    engine = AsyncEngine(model, tokenizer, config, meta, consume=True)
    took = f"imports {imported - begun:.1f} s, model {read - imported:.1f} s"
    engine.info.features.append(("load", "", f"{took}, engine {time.perf_counter() - read:.1f} s", ""))
    return engine


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


async def serve(sock: socket.socket, listener: socket.socket | None = None) -> int:
    """Loads the model and serves the socket, and all that connect to `listener`; returns the exit code."""
    exchange = Exchange()
    first = FirstLink(exchange)
    await asyncio.get_running_loop().create_unix_connection(lambda: first, sock=sock)
    if listener is not None:
        await exchange.listen(listener)
    gone = first.gone
    await either(gone, first.config)
    if gone.done():
        return 0
    # In a thread, so that the front end can leave at any time: a load under way then ends with the process.
    loading = asyncio.ensure_future(asyncio.to_thread(load, first.config.result()))
    await either(gone, loading)
    if gone.done():
        return 0
    try:
        engine = loading.result()
        await engine.start()
    except Exception as error:
        failed = failure(error)
        first.transport.write(encode(failed))
        await first.hang_up()
        return failed.exit_code
    gc.collect()
    gc.freeze()
    exchange.open(engine)
    ended = asyncio.ensure_future(engine.wait_closed())
    engine.core.resident_bytes = resident_bytes()
    while not (gone.done() or ended.done()):
        await asyncio.wait({gone, ended}, timeout=HEARTBEAT_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        engine.core.resident_bytes = resident_bytes()
        exchange.beat()
    code = 0
    if not gone.done():
        code = EXIT_FAULT
        logging.getLogger("fastpath.engine").error("the step loop ended", exc_info=ended.exception())
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(engine.close(), FAREWELL_SECONDS)
    await asyncio.gather(*(link.hang_up() for link in exchange.links))
    return code


async def either(first: "asyncio.Future[None]", second: "asyncio.Future[T]") -> None:
    """Waits until one of the two is done."""
    waits: set[asyncio.Future[None] | asyncio.Future[T]] = {first, second}
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)


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
    parser.add_argument("--listen", type=int, help="a listening Unix socket for further front ends")
    options = parser.parse_args(argv)
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    for ignored in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ignored, signal.SIG_IGN)
    die_with_parent()
    sock = socket.socket(fileno=options.fd)
    listener = None if options.listen is None else socket.socket(fileno=options.listen)
    for opened in (sock, listener):
        if opened is not None:
            opened.set_inheritable(False)
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        code = runner.run(serve(sock, listener))
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
