"""Row 39 of docs/faults.md: ten times more requests than can be served."""

import asyncio
import itertools
import json
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.engine.checkpoints import write_checkpoint
from tests.faults.harness import (
    COMPLETIONS,
    Reply,
    Service,
    check_form,
    launch,
    percentile,
    request_bytes,
    unharmed,
)

ROWS, QUEUE = 4, 8
TOKENS = 60  # of each answer
FLOOD = 10.0  # times the capacity
SLO_SLACK = 3.0


@pytest.fixture(scope="module")
def heavy_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """So large that the model, not HTTP, is what a small machine runs out of."""
    return write_checkpoint(
        tmp_path_factory.mktemp("heavy"),
        "G5",
        n_layer=12,
        n_embd=512,
        n_head=8,
        n_kv_head=4,
        sequence_len=512,
    )


@pytest.fixture(scope="module")
def limited(heavy_model: Path) -> Iterator[Service]:
    flags = ("--batch-size", str(ROWS), "--max-queue", str(QUEUE), "--no-enable-prefix-caching")
    with launch(heavy_model, *flags) as service:
        yield service


@dataclass(slots=True)
class Outcome:
    """What came of many requests: seconds and tokens of those accepted, status and wait of the others."""

    seconds: list[float] = field(default_factory=list)
    tokens: int = 0
    refused: list[Reply] = field(default_factory=list)
    lost: int = 0
    ends: list[tuple[float, int]] = field(default_factory=list)  # when, with how many tokens

    def goodput(self, since: float, until: float) -> float:
        """Accepted tokens per second whose answers ended in this span."""
        return sum(tokens for at, tokens in self.ends if since <= at < until) / (until - since)


class Clients:
    """Asks as cheaply as it can, so that the server keeps the machine."""

    def __init__(self, service: Service) -> None:
        self.port = service.port
        self.outcome = Outcome()
        self._numbers = itertools.count()

    async def ask(self) -> None:
        number = next(self._numbers)
        prompt = [1 + number % 500, 2 + number % 400, 3]
        body = {"prompt": prompt, "max_tokens": TOKENS, "ignore_eos": True, "temperature": 0}
        start = time.monotonic()
        outcome = self.outcome
        try:
            async with connection(self.port) as (reader, writer):
                writer.write(request_bytes(COMPLETIONS, body, "Connection: close"))
                answer = await reader.read()
        except OSError:
            outcome.lost += 1
            return
        head, _, content = answer.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        now = time.monotonic()
        reply = Reply(int(first.split()[1]), headers, content, now - start)
        if reply.status == 200:
            tokens = json.loads(content)["usage"]["completion_tokens"]
            outcome.seconds.append(reply.seconds)
            outcome.tokens += tokens
            outcome.ends.append((now, tokens))
        else:
            outcome.refused.append(reply)

    async def closed_loop(self, clients: int, seconds: float) -> None:
        """Each asks again as soon as it was answered."""
        end = time.monotonic() + seconds

        async def client() -> None:
            while time.monotonic() < end:
                await self.ask()

        await asyncio.gather(*(client() for _ in range(clients)))

    async def open_loop(self, rate: float, seconds: float) -> None:
        """So many requests a second, whatever becomes of them."""
        start = time.monotonic()
        tasks: list[asyncio.Task[None]] = []
        while (elapsed := time.monotonic() - start) < seconds:
            while len(tasks) < elapsed * rate:
                tasks.append(asyncio.create_task(self.ask()))
            await asyncio.sleep(0.01)
        await asyncio.gather(*tasks)


@asynccontextmanager
async def connection(port: int) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield reader, writer
    finally:
        writer.close()


def overload(service: Service, measured: float, seconds: float) -> None:
    """Capacity first, then ten times as much; what is refused is told so, what is accepted is served."""
    calm = Clients(service)
    start = time.monotonic()
    asyncio.run(calm.closed_loop(ROWS, measured))
    capacity = calm.outcome.goodput(start, start + measured)
    rate = FLOOD * capacity / TOKENS
    flood = Clients(service)
    start = time.monotonic()
    asyncio.run(flood.open_loop(rate, seconds))
    outcome = flood.outcome
    # Once the queue is full, and until the last arrival.
    goodput = outcome.goodput(start + 0.2 * seconds, start + seconds)
    usual = percentile(calm.outcome.seconds, 0.5)
    # Whoever is let in waits behind a full queue at worst, then runs as everybody does.
    slo = SLO_SLACK * usual * (1 + (QUEUE + ROWS) / ROWS)
    p99 = percentile(outcome.seconds, 0.99)
    print(
        f"capacity {capacity:.0f} tok/s, {rate:.0f} requests/s offered for {seconds:g} s: "
        f"{len(outcome.seconds)} accepted, {len(outcome.refused)} refused, {outcome.lost} lost, "
        f"goodput {goodput:.0f} tok/s, accepted p99 {p99:.2f} s (alone {usual:.2f} s)"
    )
    assert len(outcome.refused) > len(outcome.seconds), "the server was not overloaded"
    for reply in outcome.refused:
        check_form(reply, "a refused request")
        assert reply.status in (429, 503)
        assert 1 <= int(reply.headers["retry-after"]) <= 120
    assert {reply.error["code"] for reply in outcome.refused} <= {"overloaded", "queue_full"}
    assert outcome.lost == 0
    assert p99 < slo
    assert goodput > 0.9 * capacity


@pytest.mark.slow
def test_39_the_queue_is_full(limited: Service) -> None:
    """No more than the queue holds is let in, and every other request is told when to come again."""
    with unharmed(limited):
        clients = Clients(limited)

        async def burst() -> None:
            await asyncio.gather(*(clients.ask() for _ in range(10 * (ROWS + QUEUE))))

        asyncio.run(burst())
        outcome = clients.outcome
        assert ROWS <= len(outcome.seconds) <= 2 * (ROWS + QUEUE)
        assert len(outcome.seconds) + len(outcome.refused) == 10 * (ROWS + QUEUE)
        for reply in outcome.refused:
            check_form(reply, "a refused request")
            assert reply.status in (429, 503) and 1 <= int(reply.headers["retry-after"]) <= 120
        # A refusal is quick, whatever those that wait have to wait.
        assert percentile([reply.seconds for reply in outcome.refused], 0.5) < min(outcome.seconds)


@pytest.mark.slow
def test_39_ten_times_the_capacity_for_half_a_minute(limited: Service) -> None:
    with unharmed(limited):
        overload(limited, measured=10, seconds=30)
