"""What remains of a server's work when more is asked of it than it can do.

Requests come as a Poisson process, whatever has become of those before (an open loop: a closed one would slow
down with the server). Goodput counts what was answered in whole, with the first token within `TTFT` and the
others at a mean of `TPOT` or better. A server that queues without end has none beyond its capacity.
"""

import asyncio
import random

from benchmarks.events import serving
from benchmarks.http.wire import Client, percentile, post, processor_seconds, send

ROWS, RATE, TOKENS = 32, 100.0, 32  # of the fake engine: 3,200 tokens, 100 requests a second
CAPACITY = ROWS * RATE / TOKENS
TTFT, TPOT = 1.0, 0.05  # seconds: the loaded service level
FACTORS = (0.5, 0.8, 1.0, 1.5, 2.0, 3.0)


async def goodput(seconds: float, flags: list[str]) -> list[dict[str, object]]:
    """One row per factor of the capacity, each on a server of its own."""
    rows = []
    for factor in FACTORS:
        rows.append(await offered(factor, seconds, flags))
    best = max(float(str(row["goodput_per_second"])) for row in rows)
    for row in rows:
        row["share_of_best"] = float(str(row["goodput_per_second"])) / best
    return rows


async def offered(factor: float, seconds: float, flags: list[str]) -> dict[str, object]:
    """`factor` times the capacity, for `seconds`, on a server with `flags`."""
    with serving(RATE, rows=ROWS, flags=flags) as (port, fronts):
        return await _offered(port, fronts, factor, seconds) | {"flags": " ".join(flags)}


async def _offered(port: int, fronts: list[int], factor: float, seconds: float) -> dict[str, object]:
    rng = random.Random(7)
    loop = asyncio.get_running_loop()
    request = post({"prompt": [1], "stream": True, "max_tokens": TOKENS, "ignore_eos": True})
    clients: list[Client] = []
    opening: set[asyncio.Task[None]] = set()

    async def open_one() -> None:
        clients.append(await send(port, request))

    start = at = loop.time()
    cpu = processor_seconds(fronts)
    while at < start + seconds:
        at += rng.expovariate(factor * CAPACITY)
        await asyncio.sleep(max(at - loop.time(), 0))
        task = asyncio.create_task(open_one())
        opening.add(task)
        task.add_done_callback(opening.discard)
    await asyncio.gather(*opening)
    cpu = processor_seconds(fronts) - cpu
    seen = [await client.over for client in clients]
    # The first seconds fill an empty server, which is no steady state.
    seen = [one for one in seen if one.started - seen[0].started >= seconds / 4]
    window = seconds * 3 / 4
    whole = [one for one in seen if one.events == TOKENS and one.done]
    good = [
        one
        for one in whole
        if one.first - one.started <= TTFT and (one.last - one.first) / (TOKENS - 1) <= TPOT
    ]
    refused = [one for one in seen if one.status in (429, 503)]
    return {
        "case": "goodput",
        "offered": factor,
        "offered_per_second": len(seen) / window,
        "answered_per_second": len(whole) / window,
        "goodput_per_second": len(good) / window,
        "refused_per_second": len(refused) / window,
        "without_retry_after": sum(one.retry_after is None for one in refused),
        "broken": len(seen) - len(whole) - len(refused),
        "ttft_p50_ms": 1e3 * percentile([one.first - one.started for one in whole], 0.5),
        "ttft_p99_ms": 1e3 * percentile([one.first - one.started for one in whole], 0.99),
        "front_processor_share": cpu / seconds,
    }
