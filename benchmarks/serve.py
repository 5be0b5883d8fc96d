"""Serving speed over HTTP: `python -m benchmarks.serve`.

Starts one server after the other, in each batching mode, and streams from it with 1 and 8 clients at once
(closed loop). Definitions as in the field's load generators: TTFT is the time to the first event with a
choice, ITL the gap between two such events, TPOT (last - first) / (tokens - 1), tokens are the server's own
usage figure.
"""

import argparse
import asyncio
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import aiohttp
import torch

from benchmarks.models import SIZES, random_model, write_transformers_folder
from benchmarks.report import save, table

MODES = ("continuous", "static", "single")


@dataclass(slots=True)
class Served:
    """One request as its client saw it, in seconds."""

    ttft: float
    end: float
    gaps: list[float]
    tokens: int


@dataclass(slots=True)
class Row:
    mode: str
    clients: int
    requests: int
    tok_s: float
    ttft_p50_ms: float
    ttft_p99_ms: float
    tpot_ms: float
    itl_p50_ms: float
    itl_p99_ms: float


async def request(session: aiohttp.ClientSession, url: str, prompt: list[int], new: int) -> Served:
    body = {
        "prompt": prompt,
        "max_tokens": new,
        "ignore_eos": True,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    started = time.perf_counter()
    stamps: list[float] = []
    tokens = 0
    async with session.post(f"{url}/v1/completions", json=body) as response:
        if response.status != 200:
            raise SystemExit(f"{response.status}: {await response.text()}")
        async for line in response.content:
            if not line.startswith(b"data: {"):
                continue
            now, event = time.perf_counter(), json.loads(line[6:])
            if event.get("error"):
                raise SystemExit(event["error"]["message"])
            if event["choices"]:
                stamps.append(now)
            if event.get("usage"):
                tokens = event["usage"]["completion_tokens"]
    gaps = [after - before for before, after in pairwise(stamps)]
    return Served(stamps[0] - started, stamps[-1] - started, gaps, tokens)


def percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


async def load(url: str, mode: str, clients: int, args: argparse.Namespace) -> Row:
    rng = random.Random(clients)
    low, high = (int(part) for part in args.prompt_len.split(","))
    prompts = [
        [rng.randrange(SIZES[args.size]["vocab_size"] - 16) for _ in range(rng.randint(low, high))]
        for _ in range(clients * args.rounds)
    ]
    turn = asyncio.Semaphore(clients)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def one(prompt: list[int]) -> Served:
            async with turn:
                return await request(session, url, prompt, args.new)

        await request(session, url, prompts[0], 8)
        started = time.perf_counter()
        served = await asyncio.gather(*(one(prompt) for prompt in prompts))
        seconds = time.perf_counter() - started
    gaps = [gap for item in served for gap in item.gaps]
    return Row(
        mode,
        clients,
        len(served),
        sum(item.tokens for item in served) / seconds,
        1e3 * percentile([item.ttft for item in served], 0.5),
        1e3 * percentile([item.ttft for item in served], 0.99),
        1e3 * statistics.mean((item.end - item.ttft) / max(item.tokens - 1, 1) for item in served),
        1e3 * percentile(gaps, 0.5),
        1e3 * percentile(gaps, 0.99),
    )


@asynccontextmanager
async def server(model: str, mode: str, args: argparse.Namespace) -> AsyncIterator[str]:
    """A server on a free port; its URL, once it is ready."""
    command = [sys.executable, "-m", "app", "--model", model, "--port", "0", "--log-format", "json"]
    command += ["--batching", mode, "--device", args.device, "--dtype", args.dtype, "--no-prefix-caching"]
    command += args.server_args.split()
    if args.threads:
        command += ["--threads", str(args.threads)]
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL, env=dict(os.environ)
    )
    assert process.stdout is not None
    try:
        while line := await process.stdout.readline():
            event = json.loads(line) if line.startswith(b"{") else {}
            if event.get("event") == "ready":
                yield event["url"]
                return
        raise SystemExit(f"the server ended with exit code {await process.wait()}")
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


async def run(args: argparse.Namespace) -> list[Row]:
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        model = args.model
        if model is None:
            write_transformers_folder(random_model(args.size, torch.float32, "cpu"), Path(folder))
            _write_tokenizer(Path(folder), args.size)
            model = folder
        for mode in args.modes.split(","):
            async with server(model, mode, args) as url:
                rows += [await load(url, mode, int(count), args) for count in args.clients.split(",")]
    return rows


def _write_tokenizer(folder: Path, size: str) -> None:
    """A byte-level tokenizer of the model's vocabulary, so that every id has a text."""
    from engine.text import NANOCHAT_SPECIALS, BytePairTokenizer, save_tokenizer

    ordinary = SIZES[size]["vocab_size"] - len(NANOCHAT_SPECIALS)
    ranks = {bytes([byte]): byte for byte in range(256)}
    for rank in range(256, ordinary):
        ranks[b"%c%c%c" % (97 + rank // 676 % 26, 97 + rank // 26 % 26, 97 + rank % 26) + b"%d" % rank] = rank
    specials = {name: ordinary + index for index, name in enumerate(NANOCHAT_SPECIALS)}
    save_tokenizer(folder, BytePairTokenizer(ranks, specials))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", help="a checkpoint; without it seeded random weights of --size")
    parser.add_argument("--size", choices=sorted(SIZES), default="tiny")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--modes", default=",".join(MODES))
    parser.add_argument("--clients", default="1,8")
    parser.add_argument("--prompt-len", default="32,32", help="shortest,longest")
    parser.add_argument("--new", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--server-args", default="", help="more settings for every server")
    parser.add_argument("--save", action="store_true", help="keep the result in benchmarks/results")
    args = parser.parse_args()
    rows = asyncio.run(run(args))
    header = ["mode", "clients", "requests", "tok/s", "TTFT p50", "TTFT p99", "TPOT", "ITL p50", "ITL p99 ms"]
    print(table(header, [list(asdict(row).values()) for row in rows]))
    if args.save:
        settings = {name: value for name, value in vars(args).items() if name != "save"}
        path = save(f"serve-{args.device}-{args.size}-{args.dtype}", [asdict(row) for row in rows], settings)
        print("kept in", path.name)


if __name__ == "__main__":
    main()
