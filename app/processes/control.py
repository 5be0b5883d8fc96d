"""What the server's first process and its front ends tell each other (`--api-workers`), and how.

To a front end go `Begin`, then `Gather` and `Totals`, at the end `Drain` and `Leave`; back come `Opened`,
`Serving` or `Unable`, then `Closed`, `Ask` and `Report`, at the end `Drained`. `Cancel` and its `Found` go
both ways: to the first process from whoever does not know the answer, and from there to the others. `Poison`
goes both ways, too. A second socket carries the accepted connections.
"""

import asyncio
import itertools
import logging
from collections.abc import Callable
from typing import TypeVar, cast

import msgspec

from app.settings.config import Config
from app.telemetry.metrics import Counts
from engine.messages.wire import Unframer

log = logging.getLogger("fastpath")

REPORT_SECONDS = 1.0  # how often a front end tells its counts unasked: what is lost when it dies
GATHER_SECONDS = 0.5  # how long a scrape waits for the counts of the others


class Begin(msgspec.Struct, frozen=True, tag="begin"):
    """`serial` is new for every process; `engine` is the Unix socket on which the engine is found. `board` is
    the file on which the front ends count together, `row` what of it is this one's.
    """

    config: Config
    serial: int
    engine: str
    board: str
    row: int


class Gather(msgspec.Struct, frozen=True, tag="gather"):
    """Asks for a `Report`."""


class Totals(msgspec.Struct, frozen=True, tag="totals"):
    """Answers an `Ask` with the counts of all front ends, those included that have ended."""

    ask: int
    counts: Counts


class Drain(msgspec.Struct, frozen=True, tag="drain"):
    """No new requests after `delay` seconds; open answers get `timeout` seconds from then on. It goes on
    saying so to who connects.
    """

    timeout: float
    delay: float = 0.0


class Leave(msgspec.Struct, frozen=True, tag="leave"):
    """The process is to end; what is still open gets an error."""


class Opened(msgspec.Struct, frozen=True, tag="opened"):
    """HTTP is answered from now on, if only with 503."""


class Serving(msgspec.Struct, frozen=True, tag="serving"):
    """Requests are answered from now on."""


class Unable(msgspec.Struct, frozen=True, tag="unable"):
    """It never will serve; `exit_code` is what the server should end with."""

    message: str
    exit_code: int


class Drained(msgspec.Struct, frozen=True, tag="drained"):
    """No answer is open any more."""


class Closed(msgspec.Struct, frozen=True, tag="closed"):
    connections: int


class Ask(msgspec.Struct, frozen=True, tag="ask"):
    """Somebody wants to see the counts; here are the front end's own."""

    ask: int
    counts: Counts


class Report(msgspec.Struct, frozen=True, tag="report"):
    counts: Counts


class Cancel(msgspec.Struct, frozen=True, tag="cancel"):
    """The owner's open answer of this id is to end."""

    ask: int
    id: str
    owner: str


class Found(msgspec.Struct, frozen=True, tag="found"):
    """Answers a `Cancel`: whether it was there."""

    ask: int
    found: bool


class Poison(msgspec.Struct, frozen=True, tag="poison"):
    """Requests with this fingerprint are refused from now on (app/admission/replay.py). All get it."""

    fingerprint: bytes


ToFront = Begin | Gather | Totals | Drain | Leave | Cancel | Found | Poison
FromFront = Opened | Serving | Unable | Drained | Closed | Ask | Report | Cancel | Found | Poison

M = TypeVar("M")

_encoder = msgspec.msgpack.Encoder()
to_front: msgspec.msgpack.Decoder[ToFront] = msgspec.msgpack.Decoder(ToFront)
from_front: msgspec.msgpack.Decoder[FromFront] = msgspec.msgpack.Decoder(FromFront)


class Channel(asyncio.Protocol):
    """One end of the control socket. `receive` gets each message, `lost` is called once it is closed."""

    def __init__(
        self, decode: Callable[[bytes], M], receive: Callable[[M], None], lost: Callable[[], None]
    ) -> None:
        self._take: Callable[[bytes], None] = lambda body: receive(decode(body))
        self._lost = lost
        self._unframer = Unframer()
        self._transport: asyncio.WriteTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)

    def data_received(self, data: bytes) -> None:
        for body in self._unframer.feed(data):
            self._take(body)

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost()

    def send(self, message: ToFront | FromFront) -> None:
        if self._transport is not None and not self._transport.is_closing():
            body = _encoder.encode(message)
            self._transport.write(len(body).to_bytes(4, "little") + body)

    def close(self) -> None:
        """After what has been sent."""
        if self._transport is not None:
            self._transport.close()


class Cancelling:
    """What the other end has been asked to cancel, until it says whether it could."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._asks: dict[int, asyncio.Future[bool]] = {}
        self._ask = itertools.count(1)

    async def ask(self, id: str, owner: str, seconds: float) -> bool:
        """False, too, where no word comes in time."""
        ask = next(self._ask)
        answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._asks[ask] = answer
        self._channel.send(Cancel(ask, id, owner))
        try:
            async with asyncio.timeout(seconds):
                return await answer
        except TimeoutError:
            return False
        finally:
            del self._asks[ask]

    def take(self, message: Found) -> None:
        answer = self._asks.get(message.ask)
        if answer is not None and not answer.done():
            answer.set_result(message.found)
