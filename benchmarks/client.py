"""The load generator, a program of its own that shares no interpreter with a server: `client.py JSON`.

It reads its orders from the argument, prints "ready", and begins when a line comes in. What it prints in the
end is one JSON object: for every request its moments on the system's monotonic clock, and the processor time
that this process took. As in the field's load generators, TTFT ends with the first event that has a choice,
gaps are between two such events, and tokens are the server's own usage figure.

It imports nothing of this project, and looks at an event's bytes without parsing them: what it costs is the
server's gain, not its own, but it must never be what is measured.
"""

import asyncio
import json
import random
import sys
import time
from dataclasses import dataclass

Moments = dict[str, object]

NO_CHOICE, USAGE, ERROR = b'"choices":[]', b'"usage":{', b'"error":{'


@dataclass(frozen=True, slots=True)
class Orders:
    """What to ask for: `count` prompts of seed, low, high and vocabulary, of which this process takes every
    `parts`th beginning with `part`, `clients` at a time, `new` tokens each.
    """

    url: str
    clients: int
    new: int
    seed: int
    count: int
    low: int
    high: int
    vocabulary: int
    part: int = 0
    parts: int = 1


def prompts(seed: int, count: int, low: int, high: int, vocabulary: int) -> list[list[int]]:
    """Lengths uniform in low..high, ids uniform in 3..vocabulary - 1."""
    rng = random.Random(seed)
    return [[rng.randrange(3, vocabulary) for _ in range(rng.randint(low, high))] for _ in range(count)]


async def one(session: "aiohttp.ClientSession", url: str, prompt: list[int], new: int) -> Moments:
    """Streams one completion; an error is part of the result."""
    body = {
        "prompt": prompt,
        "max_tokens": new,
        "min_tokens": new,
        "ignore_eos": True,
        "temperature": 0.0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    started, stamps, tokens = time.monotonic(), [], 0
    buffer = b""
    try:
        async with session.post(f"{url}/v1/completions", json=body) as response:
            if response.status != 200:
                return {"error": f"{response.status} {(await response.text())[:200]}"}
            async for chunk in response.content.iter_any():
                now = time.monotonic()
                buffer += chunk
                *events, buffer = buffer.replace(b"\r\n", b"\n").split(b"\n\n")
                for event in events:
                    if not event.startswith(b"data: {"):
                        continue
                    if event.startswith(b"data: {" + ERROR):
                        return {"error": event[6:206].decode(errors="replace")}
                    if USAGE in event:
                        tokens = json.loads(event[6:])["usage"]["completion_tokens"]
                    if NO_CHOICE not in event:
                        stamps.append(now)
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}
    if not stamps:
        return {"error": "no event"}
    return {"started": started, "stamps": stamps, "tokens": tokens or len(stamps)}


async def run(orders: Orders) -> dict[str, object]:
    """Waits for the word to begin, then streams this process's share of the requests."""
    every = prompts(orders.seed, orders.count, orders.low, orders.high, orders.vocabulary)
    mine = every[orders.part :: orders.parts]
    turn = asyncio.Semaphore(orders.clients)
    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), timeout=timeout, read_bufsize=1 << 18
    ) as session:

        async def served(prompt: list[int]) -> Moments:
            async with turn:
                return await one(session, orders.url, prompt, orders.new)

        await asyncio.to_thread(_ready)
        began, cpu = time.monotonic(), time.process_time()
        results = await asyncio.gather(*(served(prompt) for prompt in mine))
        return {
            "began": began,
            "ended": time.monotonic(),
            "cpu": time.process_time() - cpu,
            "requests": results,
        }


def _ready() -> None:
    print("ready", flush=True)
    sys.stdin.readline()


def main() -> None:
    orders = Orders(**json.loads(sys.argv[1]))
    try:
        import uvloop

        result = uvloop.run(run(orders))
    except ImportError:
        result = asyncio.run(run(orders))
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    sys.path[:] = sys.path[1:]  # not this folder: a module here could be taken for somebody else's
    import aiohttp

    main()
