"""What 1,000 silent streams cost: memory of the front end for each, and time of the streams that flow."""

import asyncio
from itertools import pairwise

from benchmarks.events import serving
from benchmarks.http.wire import Client, percentile, post, processor_seconds, resident_bytes, send
from benchmarks.pulse import CONTEXT, IDLE

BUSY = 32
RATE = 100.0  # steps a second
AT_ONCE = 64  # connections opened together: no more than the queue of a listening socket holds


async def idle(streams: int, seconds: float) -> dict[str, object]:
    """`BUSY` streams flow before and while `streams` others are open and get nothing but pings."""
    with serving(RATE) as (port, fronts):
        busy = [
            await send(port, post({"prompt": [1], "stream": True, "max_tokens": CONTEXT - 16}))
            for _ in range(BUSY)
        ]
        while not all(client.seen.events for client in busy):
            await asyncio.sleep(0.01)
        await asyncio.sleep(1.0)
        before, cpu_before = await _gaps(busy, seconds, fronts)
        memory = sum(map(resident_bytes, fronts))
        request = post({"prompt": [IDLE], "stream": True, "max_tokens": 64})
        silent: list[Client] = []
        while len(silent) < streams:
            silent += await asyncio.gather(*(send(port, request) for _ in range(AT_ONCE)))
        while not all(client.seen.status == 200 for client in silent):  # headers leave after a grace time
            await asyncio.sleep(0.05)
        grown = sum(map(resident_bytes, fronts)) - memory
        during, cpu_during = await _gaps(busy, seconds, fronts)
        for client in (*busy, *silent):
            client.transport.close()
        await asyncio.gather(*(client.over for client in (*busy, *silent)))
    return {
        "case": "idle streams",
        "idle_streams": len(silent),
        "busy_streams": BUSY,
        "kib_per_idle_stream": grown / len(silent) / 1024,
        "itl_p99_ms_without": 1e3 * percentile(before, 0.99),
        "itl_p99_ms_with": 1e3 * percentile(during, 0.99),
        "processor_share_without": cpu_before,
        "processor_share_with": cpu_during,
    }


async def _gaps(clients: list[Client], seconds: float, fronts: list[int]) -> tuple[list[float], float]:
    """Gaps between reads of the streams within the next `seconds`, and the cores that the front end took."""
    for client in clients:
        client.seen.stamps = []
    cpu = processor_seconds(fronts)
    await asyncio.sleep(seconds)
    cpu = processor_seconds(fronts) - cpu
    gaps: list[float] = []
    for client in clients:
        gaps += [b - a for a, b in pairwise(client.seen.stamps)]
    return gaps, cpu / seconds
