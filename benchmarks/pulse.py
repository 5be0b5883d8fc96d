"""An engine that is a clock: one token per stream and step, `--rate` steps a second, no model.

    python -m benchmarks.pulse --rate 157 -- --port 0 --api-workers 2      the real server over it

Step s is due at s / rate seconds of the system's monotonic clock, and its token says s modulo the alphabet's
length: who reads the stream on the same machine knows how late the token is. At most `--rows` streams are
stepped at a time, the others wait in order, so that rows x rate tokens a second is its capacity. A request
whose prompt begins with `IDLE` holds no row and never gets a token.
"""

import argparse
import asyncio
import socket
import string
import sys
import time
from collections.abc import Callable, Iterable

import uvloop

from app.__main__ import command_line
from app.processes.serve import run
from app.processes.supervisor import ProcessEngine
from app.settings.config import Config
from app.telemetry.logs import set_up_logging
from engine.links import Exchange, FirstLink
from engine.messages import EngineStats, Finish, Frame, ModelInfo, Request
from engine.messages.wire import HEARTBEAT_SECONDS
from tests.app.server_process import GOLDEN

ALPHABET = (string.digits + string.ascii_letters).encode()
CONTEXT = 1 << 20
ROWS = 1024
IDLE = 2  # first id of the prompt of a request that gets no tokens


class Pulse:
    """As much of an engine as an exchange uses."""

    def __init__(self, rate: float, rows: int = ROWS) -> None:
        self.rate = rate
        self.rows = rows
        self.on_frame: Callable[[Frame], None] | None = None
        self.info = ModelInfo(
            name="pulse",
            path=str(GOLDEN / "tokenizer"),
            generation="G1",
            vocab_size=512,
            max_model_len=CONTEXT,
            terminal_ids=[0],
            max_rows=rows,
            block_size=16,
            num_blocks=64,
            device="cpu",
            dtype="float32",
            parameters=0,
        )
        self._left: dict[int, int] = {}  # tokens that each stream still gets
        self._waiting: dict[int, int] = {}  # the same, of streams without a row
        self._steps = self._generated = 0

    def enqueue(self, request: Request) -> None:
        if request.prompt[0] == IDLE:
            return
        for k in range(request.n):
            self._waiting[request.id + k] = request.params.max_tokens
        self._admit()

    def abort(self, streams: Iterable[int]) -> None:
        for id in streams:
            if self._left.pop(id, None) is None:
                self._waiting.pop(id, None)
        self._admit()

    def stats(self) -> EngineStats:
        return EngineStats(
            running=len(self._left),
            waiting=len(self._waiting),
            steps=self._steps,
            generated_tokens=self._generated,
        )

    def _admit(self) -> None:
        while self._waiting and len(self._left) < self.rows:
            id = next(iter(self._waiting))
            self._left[id] = self._waiting.pop(id)

    async def beat(self) -> None:
        """Steps for ever; a step that comes late is not left out."""
        step = int(time.monotonic() * self.rate) + 1
        while True:
            await asyncio.sleep(max(step / self.rate - time.monotonic(), 0))
            if self._left:
                self._emit(ALPHABET[step % len(ALPHABET)])
                step += 1
            else:
                step = int(time.monotonic() * self.rate) + 1

    def _emit(self, token: int) -> None:
        self._steps += 1
        ids = list(self._left)
        self._generated += len(ids)
        ends = [id for id in ids if self._left[id] == 1]
        for id in ids:
            self._left[id] -= 1
        for id in ends:
            del self._left[id]
        self._admit()
        finished = [Finish(id, "length") for id in ends]
        if self.on_frame is not None:
            self.on_frame(Frame(ids, [token] * len(ids), [], [], finished, self.stats()))


async def engine(options: argparse.Namespace) -> int:
    """The engine process."""
    exchange, pulse = Exchange(), Pulse(options.rate, options.rows)
    first = FirstLink(exchange)
    loop = asyncio.get_running_loop()
    await loop.create_unix_connection(lambda: first, sock=socket.socket(fileno=options.fd))
    if options.listen is not None:
        await exchange.listen(socket.socket(fileno=options.listen))
    await first.config
    exchange.open(pulse)
    beating = asyncio.create_task(pulse.beat())
    while not first.gone.done():
        await asyncio.wait({first.gone, beating}, timeout=HEARTBEAT_SECONDS)
        exchange.beat()
    return 0


def server(rate: float, rows: int, flags: list[str]) -> int:
    """The real server, with this module as its engine."""
    config, _ = command_line().parse(flags, {})
    set_up_logging(config.server.log_level, config.server.log_format)
    command = [sys.executable, "-m", "benchmarks.pulse", "--rate", str(rate), "--rows", str(rows)]

    def make_engine(config: Config) -> ProcessEngine:
        return ProcessEngine(config.engine_config(), command=command)

    return run(config, make_engine)


def main() -> int:
    split = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    parser = argparse.ArgumentParser(description="a server over an engine that is a clock")
    parser.add_argument("--rate", type=float, required=True, help="steps per second")
    parser.add_argument("--rows", type=int, default=ROWS, help="streams that are stepped at a time")
    parser.add_argument("--fd", type=int)
    parser.add_argument("--listen", type=int)
    options = parser.parse_args(sys.argv[1:split])
    if options.fd is not None:
        return uvloop.run(engine(options))
    return server(options.rate, options.rows, sys.argv[split + 1 :])


if __name__ == "__main__":
    sys.exit(main())
