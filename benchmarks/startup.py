"""How long a start takes: `python -m benchmarks.startup`.

Starts the real server, each time in a new process, and counts the seconds until it is ready and until the
first token of a first request has come. cold: every cache of compiled kernels and probes is redirected to an
empty folder; warm: the same folder again, as on the second start on a machine. The breakdown is the engine's
own, from its start-up table.
"""

import argparse
import asyncio
import json
import tempfile
import time
import traceback
from dataclasses import asdict, dataclass, field
from pathlib import Path

import aiohttp
import torch

from benchmarks import models, peers
from benchmarks.report import save, table
from benchmarks.server import server


@dataclass(slots=True)
class Row:
    """Seconds. target and vllm: what was aimed at, and vLLM's cold start of a model of the same size."""

    start: str
    ready_s: float = 0.0
    first_token_s: float = 0.0
    second_token_s: float = 0.0  # time to the first token of a second request
    target: float | None = None
    vllm: float | None = None
    parts: dict[str, str] = field(default_factory=dict)
    error: str | None = None


async def first_token(session: aiohttp.ClientSession, url: str) -> float:
    """Seconds from a request to its first token."""
    body = {"prompt": [5, 6, 7, 8], "max_tokens": 4, "temperature": 0, "ignore_eos": True, "stream": True}
    started = time.perf_counter()
    async with session.post(f"{url}/v1/completions", json=body) as response:
        if response.status != 200:
            raise RuntimeError(f"{response.status}: {await response.text()}")
        async for line in response.content:
            if line.startswith(b"data: {"):
                first = time.perf_counter() - started
                await response.read()
                return first
    raise RuntimeError("no token came")


async def breakdown(session: aiohttp.ClientSession, url: str) -> dict[str, str]:
    """Feature -> what is used, from the start-up table that /v1/models carries."""
    async with session.get(f"{url}/v1/models") as response:
        found = json.loads(await response.text())
    rows = [row for model in found.get("data", []) for row in _tables(model)]
    return {f"{row['feature']}": f"{row.get('used', '')} ({row.get('why', '')})" for row in rows}


def _tables(value: object) -> list[dict[str, object]]:
    """Every list under a key `features`, however deep."""
    found: list[dict[str, object]] = []
    if isinstance(value, dict):
        for name, inner in value.items():
            if name == "features" and isinstance(inner, list):
                found += [row for row in inner if isinstance(row, dict) and "feature" in row]
            else:
                found += _tables(inner)
    return found


async def measure(start: str, model: str, caches: Path, args: argparse.Namespace) -> Row:
    row = Row(start)
    if peers.MODEL_CLASSES.get(args.size) == "d32":
        row.target = peers.STARTUP_COLD.target if start == "cold" else peers.STARTUP_WARM_TARGET
        row.vllm = peers.STARTUP_COLD.vllm if start == "cold" else None
    environment = {
        "XDG_CACHE_HOME": str(caches / "xdg"),
        "TRITON_CACHE_DIR": str(caches / "triton"),
        "TORCHINDUCTOR_CACHE_DIR": str(caches / "inductor"),
        "CUDA_CACHE_PATH": str(caches / "cuda"),
    }
    settings = ["--device", args.device, "--dtype", args.dtype, *args.server_args.split()]
    if args.model is None:
        settings += ["--load-format", "dummy"]
    try:
        started = time.perf_counter()
        async with server(model, settings, environment) as running, aiohttp.ClientSession() as session:
            row.ready_s = running.ready
            await first_token(session, running.url)
            row.first_token_s = time.perf_counter() - started
            row.second_token_s = await first_token(session, running.url)
            row.parts = await breakdown(session, running.url)
    except Exception as error:
        traceback.print_exc()
        row.error = f"{type(error).__name__}: {error}"
    return row


async def run(args: argparse.Namespace) -> list[Row]:
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as caches:
        if args.model is None:
            models.write_dummy_folder(args.size, Path(folder))
        for start in ["cold", *["warm"] * args.warm]:
            row = await measure(start, args.model or folder, Path(caches), args)
            times = f"ready {row.ready_s:.2f} s, first token {row.first_token_s:.2f} s"
            print(f"{start}: {times}", row.error or "", flush=True)
            rows.append(row)
    return rows


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cuda = torch.cuda.is_available()
    parser.add_argument("--model", help="a checkpoint; without it random weights of --model-size")
    parser.add_argument("--model-size", "--size", dest="size", default="d32" if cuda else "tiny")
    parser.add_argument("--device", default="cuda" if cuda else "cpu")
    parser.add_argument("--dtype", default="bfloat16" if cuda else "float32")
    parser.add_argument("--warm", type=int, default=2, help="how many warm starts")
    parser.add_argument("--server-args", default="", help="more settings for every server")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the result there")
    parser.add_argument("--save", action="store_true", help="keep the result in benchmarks/results")
    args = parser.parse_args(argv)
    rows = asyncio.run(run(args))
    header = ["start", "ready s", "first token s", "second", "target s", "vLLM s"]
    cells = [
        [row.start, row.ready_s, row.first_token_s, row.second_token_s, row.target or "", row.vllm or ""]
        for row in rows
    ]
    print(table(header, cells))
    for row in rows:
        for part, used in row.parts.items():
            print(f"  {row.start} {part}: {used}")
    if args.save or args.out:
        settings = {name: value for name, value in vars(args).items() if name not in ("save", "out")}
        name = f"startup-{args.device}-{args.size}-{args.dtype}"
        print("kept in", save(name, [asdict(row) for row in rows], settings, out=args.out))


if __name__ == "__main__":
    main()
