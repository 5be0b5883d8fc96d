"""How soon /health of the real server answers while the real model is busy with long prompts."""

import asyncio
import random

from benchmarks.http.wire import get, percentile, post, send
from benchmarks.server import server

PAUSE = 0.01


async def health(model: str, seconds: float, prompt_tokens: int = 1000) -> dict[str, object]:
    """Prompts of `prompt_tokens` ids are prefilled one after the other meanwhile, each another one."""
    async with server(model, ["--no-enable-prefix-caching"]) as running:
        port = int(running.url.rsplit(":", 1)[1])
        quiet = await _asked(port, seconds / 2)
        stop = asyncio.Event()
        prefilling = asyncio.create_task(_prefill(port, prompt_tokens, stop))
        busy = await _asked(port, seconds)
        stop.set()
        prompts = await prefilling
    row: dict[str, object] = {"case": "health", "prompt_tokens": prompt_tokens, "prompts": prompts}
    for name, times in (("quiet", quiet), ("prefill", busy)):
        row[f"{name}_p50_ms"] = 1e3 * percentile(times, 0.5)
        row[f"{name}_p99_ms"] = 1e3 * percentile(times, 0.99)
        row[f"{name}_max_ms"] = 1e3 * max(times)
    return row


async def _asked(port: int, seconds: float) -> list[float]:
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    times = []
    while loop.time() < end:
        times.append(await get(port, "/health"))
        await asyncio.sleep(PAUSE)
    return times


async def _prefill(port: int, tokens: int, stop: asyncio.Event) -> int:
    rng = random.Random(1)
    done = 0
    while not stop.is_set():
        prompt = [rng.randrange(300, 500) for _ in range(tokens)]
        client = await send(port, post({"prompt": prompt, "stream": True, "max_tokens": 1}))
        await client.over
        done += 1
    return done
