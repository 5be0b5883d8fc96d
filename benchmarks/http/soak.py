"""Minutes of mixed load on the real server, and what is left of it afterwards.

Clients of all sorts at about 80 % of what the rows can take: streamed and plain, chats and completions, n,
logprobs, stop strings, bad requests; one in twenty leaves in the middle. Memory, open files, blocks and tasks
are looked at once a second; the rows of the result say what they were in each part of the run.
"""

import asyncio
import json
import random
import time
import urllib.request

from benchmarks.http.wire import family, open_files, percentile, post, resident_bytes, send
from benchmarks.server import Server, server

CLIENTS = 6  # for 8 rows
ABORTS = 0.05
PARTS = 6


async def soak(model: str, seconds: float) -> list[dict[str, object]]:
    """One row per sixth of the run, then one for the quiet server before and after it."""
    async with server(model, ["--batch-size", "8"]) as running:
        port = int(running.url.rsplit(":", 1)[1])
        await _load(port, 5.0, seed=0)  # what is allocated once is not a leak
        before = await _quiet(running)
        rows = []
        for part in range(PARTS):
            seen = await _load(port, seconds / PARTS, seed=part + 1)
            rows.append({"case": "soak", "part": part + 1} | seen | _facts(running))
        after = await _quiet(running)
    pids = sorted(before)
    rows.append({"case": "soak, quiet before", **{str(pid): before[pid] for pid in pids}})
    rows.append({"case": "soak, quiet after", **{str(pid): after[pid] for pid in pids}})
    return rows


async def _load(port: int, seconds: float, seed: int) -> dict[str, object]:
    rng = random.Random(seed)
    end = time.monotonic() + seconds
    counts = {"answered": 0, "left": 0, "refused": 0}
    firsts: list[float] = []

    async def client() -> None:
        while time.monotonic() < end:
            request, leaves = _request(rng)
            one = await send(port, request)
            if leaves:
                await asyncio.wait({one.over}, timeout=rng.uniform(0, 0.2))
                one.transport.abort() if rng.random() < 0.5 else one.transport.close()
                counts["left"] += 1
                await one.over
                continue
            seen = await one.over
            counts["answered" if seen.status == 200 else "refused"] += 1
            if seen.first:
                firsts.append(seen.first - seen.started)

    await asyncio.gather(*(client() for _ in range(CLIENTS)))
    return counts | {"ttft_p99_ms": 1e3 * percentile(firsts, 0.99)}


def _request(rng: random.Random) -> tuple[bytes, bool]:
    body: dict[str, object] = {"max_tokens": rng.randint(1, 120), "stream": rng.random() < 0.7}
    body["temperature"] = rng.choice((0, 0.7, 1.0))
    kind = rng.randrange(8)
    if kind == 0:
        body["logprobs"] = 3
    elif kind == 1:
        body["n"] = 2
    elif kind == 2:
        body["stop"] = ["the", "\n\n"]
    elif kind == 3:
        body["temperature"] = "warm"  # refused
    if rng.random() < 0.5:
        body.pop("logprobs", None)
        words = " ".join(rng.choice(("tell", "a", "story", "fox", "why", "sun")) for _ in range(20))
        messages = [{"role": "user", "content": words}]
        return post(body | {"messages": messages}, "/v1/chat/completions"), rng.random() < ABORTS
    prompt = [rng.randrange(300, 500) for _ in range(rng.randint(1, 300))]
    return post(body | {"prompt": prompt}), rng.random() < ABORTS


def _facts(running: Server) -> dict[str, object]:
    processes = family(running.process.pid)
    facts: dict[str, object] = {}
    for pid, kind in processes.items():
        facts[f"{kind}_mib"] = resident_bytes(pid) / 2**20
        facts[f"{kind}_files"] = open_files(pid)
    return facts


async def _quiet(running: Server) -> dict[str, object]:
    """Facts of the server when nothing is under way."""
    while True:
        with urllib.request.urlopen(f"{running.url}/stats") as answer:
            stats = json.load(answer)
        if not (stats["running"] or stats["waiting"] or stats["open_answers"]):
            break
        await asyncio.sleep(0.1)
    kept = {name: stats[name] for name in ("blocks_used", "running", "waiting", "open_answers")}
    return kept | _facts(running)
