"""Row 46 of docs/faults.md, bounded: a server at work for a minute is what it was at the start."""

import asyncio
import contextlib
import itertools
import json
import random
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.faults.harness import (
    COMPLETIONS,
    Service,
    launch,
    percentile,
    request_bytes,
    rss,
    unharmed,
)
from tests.faults.test_overload import connection

ROWS = 4
BLOCKS = 96  # of 16 tokens
STEP = 16  # tokens
SECONDS = 75.0
WARM = 10.0  # what is allocated once is there after so many seconds
LOAD = 0.8  # of the time
ABORTS = 0.05
TOKENS = (20, 60)
TICK = 0.5
SLOPE = 20_000  # bytes a second, about what the allocator's own noise comes to over a minute


@dataclass(slots=True)
class Soak:
    """Requests of a fixed seed, every twentieth of them given up half-way."""

    service: Service
    draw: random.Random = field(default_factory=lambda: random.Random(46))
    seconds: list[tuple[float, float]] = field(default_factory=list)  # (when it ended, how long it took)
    left: int = 0
    wrong: list[bytes] = field(default_factory=list)

    async def ask(self, leaves: bool) -> None:
        most = self.draw.randint(*TOKENS)
        body: dict[str, object] = {
            "prompt": self.draw.choices(range(500), k=self.draw.randint(3, 60)),
            "max_tokens": most,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        start = time.monotonic()
        async with connection(self.service.port) as (reader, writer):
            writer.write(request_bytes(COMPLETIONS, body, "Connection: close"))
            if leaves:
                with contextlib.suppress(asyncio.IncompleteReadError):
                    await reader.readuntil(b"data: ")
                self.left += 1
                return
            answer = await reader.read()
        used = b'"completion_tokens":%d' % most
        if b"data: [DONE]" not in answer or used not in answer:
            self.wrong.append(answer[-500:])
        now = time.monotonic()
        self.seconds.append((now, now - start))

    async def run(self, seconds: float) -> None:
        """As many clients as rows, each of which asks four fifths of the time: whatever else this machine
        does, the load stays what it is.
        """
        end = time.monotonic() + seconds
        numbers = itertools.count(1)

        async def client() -> None:
            while (start := time.monotonic()) < end:
                await self.ask(next(numbers) % round(1 / ABORTS) == 0)
                took = time.monotonic() - start
                await asyncio.sleep(took * (1 / LOAD - 1) * self.draw.expovariate(1))

        await asyncio.gather(*(client() for _ in range(ROWS)))


def slope(points: list[tuple[float, float]]) -> float:
    """Of the straight line through the points that is least wrong."""
    mean_x = sum(x for x, _ in points) / len(points)
    mean_y = sum(y for _, y in points) / len(points)
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / sum((x - mean_x) ** 2 for x, _ in points)


@pytest.mark.slow
def test_46_a_minute_at_work(steady_model: Path) -> None:
    # A pool so small that all of it has been used, and steps of so few sizes that each has been met, before
    # anything is measured: what is made for a size of steps is kept.
    flags = ("--batch-size", str(ROWS), "--num-blocks", str(BLOCKS), "--max-num-batched-tokens", str(STEP))
    with launch(steady_model, *flags) as service, unharmed(service):
        (engine,) = service.children()
        soak = Soak(service)
        samples: list[tuple[float, int, int, int, int]] = []

        async def watch(start: float) -> None:
            while True:
                await asyncio.sleep(TICK)
                at = time.monotonic() - start
                threads = len(list(Path(f"/proc/{service.process.pid}/task").iterdir()))
                samples.append((at, service.rss(), rss(engine), service.open_files(), threads))

        async def work() -> None:
            await soak.run(WARM)
            soak.seconds.clear()
            soak.left = 0
            watcher = asyncio.create_task(watch(time.monotonic()))
            await soak.run(SECONDS)
            watcher.cancel()

        before = service.open_files()
        start_stats = json.loads(service.get("/stats").body)
        asyncio.run(work())
        service.until_stats(lambda stats: stats["open_answers"] == 0)
        stats = json.loads(service.get("/stats").body)
        half = samples[len(samples) // 2][0]
        # Allocators still find their size at first; slopes are those of the second half.
        late = [sample for sample in samples if sample[0] >= half]
        slopes = {
            "server": slope([(at, float(size)) for at, size, *_ in late]),
            "engine": slope([(at, float(size)) for at, _, size, *_ in late]),
        }
        middle = soak.seconds[len(soak.seconds) // 2][0]
        first, second = (
            percentile([took for at, took in soak.seconds if (at < middle) == early], 0.99)
            for early in (True, False)
        )
        print(
            f"{SECONDS:g} s at {LOAD:.0%}: {len(soak.seconds)} answered, {soak.left} left early; "
            f"RSS slope {slopes['server'] / 1000:.1f} kB/s server, "
            f"{slopes['engine'] / 1000:.1f} kB/s engine; "
            f"files {before} -> {service.open_files()}, threads {samples[0][4]} -> {samples[-1][4]}; "
            f"blocks used {start_stats['blocks_used']} -> {stats['blocks_used']}; "
            f"p99 {first * 1000:.0f} -> {second * 1000:.0f} ms"
        )
        assert soak.wrong == []
        assert soak.left > 0.5 * ABORTS * len(soak.seconds)
        assert all(value < SLOPE for value in slopes.values()), slopes
        assert abs(service.open_files() - before) <= 3
        assert samples[-1][4] <= samples[0][4] + 1
        assert stats["blocks_used"] == start_stats["blocks_used"] == 0
        assert second < 2 * first + 0.05
