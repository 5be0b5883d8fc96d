"""A stand-in for the engine process: answers every request with its own prompt, without torch.

What a request's prompt begins with decides what happens to it, see `Echo.submit`; the flags change the start.
"""

import argparse
import asyncio
import os
import signal
import socket
import sys
from typing import cast

from engine.messages import (
    Abort,
    EngineConfig,
    EngineStats,
    Failed,
    Finish,
    Frame,
    ModelInfo,
    Ready,
    Request,
    Shutdown,
    Submit,
)
from engine.messages.wire import HEARTBEAT_SECONDS, Unframer, encode, to_engine

HOLD = 97  # one token, then nothing
CRASH = 98  # one token, then the process dies
FREEZE = 99  # one token, then the event loop stops
STUCK = 100  # one token, then steps stop while the heart beats on
SILENT = 101  # no token, ever
PACED = 102  # the rest of the prompt, a token every millisecond
FLOOD = 103  # more than the socket can take, and in the middle of it the event loop stops


class Link(asyncio.Protocol):
    """A socket to a front end; the first of them is the one that started the process."""

    def __init__(self, echo: "Echo") -> None:
        self.echo = echo
        self.unframer = Unframer()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.WriteTransport, transport)
        self.echo.links.append(self)
        self.echo.greet(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.echo.lose(self)

    def data_received(self, data: bytes) -> None:
        for body in self.unframer.feed(data):
            message = to_engine.decode(body)
            if isinstance(message, EngineConfig):
                self.echo.config.set_result(message)
            elif isinstance(message, Submit):
                self.echo.submit(self, message.request)
            elif isinstance(message, Abort):
                self.echo.abort(message.streams)
            elif isinstance(message, Shutdown):
                self.echo.gone.set()


class Echo:
    def __init__(self) -> None:
        self.links: list[Link] = []
        self.gone = asyncio.Event()
        self.config: asyncio.Future[EngineConfig] = asyncio.get_running_loop().create_future()
        self.open: dict[int, Link] = {}
        self.steps = 0
        self.ready = False
        self.server: asyncio.Server | None = None
        self.context = 1024
        self.tasks: set[asyncio.Task[None]] = set()

    def greet(self, link: Link) -> None:
        if self.ready:
            link.transport.write(encode(Ready(self.info(self.config.result()))))

    def lose(self, link: Link) -> None:
        if link is self.links[0]:
            self.gone.set()
            return
        self.links.remove(link)
        self.abort([id for id, owner in self.open.items() if owner is link])

    def abort(self, ids: list[int]) -> None:
        for id in ids:
            self.open.pop(id, None)
        self.beat()

    def frame(self, link: Link, streams: list[int], tokens: list[int], finished: list[Finish]) -> None:
        self.steps += bool(tokens)
        stats = EngineStats(running=len(self.open), steps=self.steps, blocks_total=64)
        link.transport.write(encode(Frame(streams, tokens, [], [], finished, stats)))

    def beat(self) -> None:
        for link in self.links:
            self.frame(link, [], [], [])

    def submit(self, link: Link, request: Request) -> None:
        first = request.prompt[0] if request.prompt else 0
        assert request.id not in self.open, "two front ends use one id"
        self.open[request.id] = link
        if first == SILENT:
            self.beat()
            return
        self.frame(link, [request.id], [first], [])
        if first == CRASH:
            os.kill(os.getpid(), signal.SIGKILL)
        elif first == FREEZE:
            os.kill(os.getpid(), signal.SIGSTOP)
        elif first == FLOOD:
            many = 1 << 20
            link.transport.write(encode(Frame([1 << 40] * many, [5] * many, [], [], [], EngineStats())))
            os.kill(os.getpid(), signal.SIGSTOP)
        elif first == PACED:
            task = asyncio.create_task(self.play(link, request))
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)
        elif first not in (HOLD, STUCK):
            self.open.pop(request.id)
            for token in request.prompt[1:]:
                self.frame(link, [request.id], [token], [])
            self.frame(link, [], [], [Finish(request.id, "stop")])

    async def play(self, link: Link, request: Request) -> None:
        for token in request.prompt[1 : request.params.max_tokens]:
            await asyncio.sleep(0.001)
            if request.id not in self.open:
                return
            self.frame(link, [request.id], [token], [])
        self.open.pop(request.id)
        self.frame(link, [], [], [Finish(request.id, "stop")])

    def info(self, config: EngineConfig) -> ModelInfo:
        return ModelInfo(
            name=config.served_name or "echo",
            path=config.model or "",
            generation="G1",
            vocab_size=512,
            max_model_len=self.context,
            terminal_ids=[0],
            max_rows=config.max_rows or 8,
            block_size=config.block_size or 16,
            num_blocks=64,
            device="cpu",
            dtype="float32",
            parameters=0,
        )


async def serve(options: argparse.Namespace) -> int:
    loop = asyncio.get_running_loop()
    echo = Echo()
    echo.context = options.context
    await loop.create_unix_connection(lambda: Link(echo), sock=socket.socket(fileno=options.fd))
    if options.listen is not None:
        listener = socket.socket(fileno=options.listen)
        echo.server = await loop.create_unix_server(lambda: Link(echo), sock=listener)
    await echo.config
    if options.fail:
        first = echo.links[0].transport
        first.write(encode(Failed(options.fail, 3)))
        first.close()
        await echo.gone.wait()
        return 3
    if options.die:
        return 9
    if options.once and not os.path.exists(options.once):
        with open(options.once, "w"):
            pass
    elif options.once:
        return 9
    if not options.never_ready:
        echo.ready = True
        for link in echo.links:
            echo.greet(link)
    while not echo.gone.is_set():
        if not options.never_ready:
            echo.beat()
        try:
            await asyncio.wait_for(echo.gone.wait(), HEARTBEAT_SECONDS)
        except TimeoutError:
            continue
    return 0


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--listen", type=int)
    parser.add_argument("--fail", help="the model cannot be loaded, with this message")
    parser.add_argument("--die", action="store_true", help="end while the model loads")
    parser.add_argument("--once", help="a file: only the first start works, and creates it")
    parser.add_argument("--never-ready", action="store_true", help="the model loads for ever")
    parser.add_argument("--context", type=int, default=1024, help="longest sequence")
    options = parser.parse_args()
    for ignored in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ignored, signal.SIG_IGN)
    sys.exit(asyncio.run(serve(options)))


if __name__ == "__main__":
    main()
