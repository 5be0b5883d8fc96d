"""The three batching modes beside transformers: `python -m benchmarks.decode --workload modes`.

Tokens per second for 1 and 8 streams in each mode, beside transformers' `generate` on the same seeded random
weights in the same run, and where the time of a step goes.
"""

import argparse
import asyncio
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import msgspec
import torch

from benchmarks.models import ByteTokenizer, random_model, write_transformers_folder
from benchmarks.report import table
from engine.async_engine import AsyncEngine
from engine.messages import BatchingMode, EngineConfig, Request, SamplingParams
from engine.model import GPT

MODES: tuple[BatchingMode, ...] = ("continuous", "static", "single")
GREEDY = SamplingParams(max_tokens=1, temperature=0.0)


@dataclass(slots=True)
class Row:
    """overhead_ms: Python outside the model's forward, per step; of it the loop's part and the step
    thread's.
    """

    system: str
    streams: int
    tok_s: float
    spread: float  # (slowest - fastest) / median of the runs
    step_ms: float | None = None
    forward_ms: float | None = None
    loop_ms: float | None = None
    thread_ms: float | None = None

    @property
    def overhead_ms(self) -> float | None:
        return None if self.loop_ms is None or self.thread_ms is None else self.loop_ms + self.thread_ms


async def run_streams(
    engine: AsyncEngine, prompts: list[list[int]], new: int, sampling: SamplingParams = GREEDY
) -> tuple[float, list[list[int]]]:
    """Seconds until all prompts have their `new` tokens, and the tokens."""
    params = msgspec.structs.replace(sampling, max_tokens=new, ignore_eos=True)

    async def one(prompt: list[int]) -> list[int]:
        tokens: list[int] = []
        async for delta in engine.generate(Request(id=engine.next_id(1), prompt=prompt, params=params)):
            tokens += delta.tokens
        return tokens

    started = time.perf_counter()
    tokens = await asyncio.gather(*(one(prompt) for prompt in prompts))
    return time.perf_counter() - started, tokens


async def measure(
    model: GPT, mode: BatchingMode, prompts: list[list[int]], args: argparse.Namespace
) -> tuple[Row, list[int]]:
    """One mode with all prompts at once; the row, and the tokens of the first prompt."""
    config = EngineConfig(
        max_rows=max(8, len(prompts)), batching=mode, enable_prefix_caching=False, threads=args.threads
    )
    engine = AsyncEngine(model, ByteTokenizer(model.config.vocab_size), config)
    await engine.start()
    await run_streams(engine, prompts, min(args.new, 16))
    overhead = engine.core.overhead
    overhead.plan = overhead.process = overhead.step = overhead.forward = 0.0
    steps = engine.stats().steps
    runs = [await run_streams(engine, prompts, args.new) for _ in range(args.runs)]
    steps = engine.stats().steps - steps
    await engine.close()
    seconds = [run[0] for run in runs]
    median = statistics.median(seconds)
    row = Row(
        f"fastpath {mode}",
        len(prompts),
        len(prompts) * args.new / median,
        (max(seconds) - min(seconds)) / median,
        1e3 * sum(seconds) / steps,
        1e3 * overhead.forward / steps,
        1e3 * (overhead.plan + overhead.process) / steps,
        1e3 * (overhead.step - overhead.forward) / steps,
    )
    return row, runs[0][1][0]


def peer(
    model: GPT, prompts: list[list[int]], streams: list[int], args: argparse.Namespace
) -> dict[str, object]:
    """transformers' figures on the same weights, from a process that cannot see this project."""
    script = Path(__file__).with_name("transformers_peer.py").resolve()
    settings = {
        "prompts": prompts,
        "rows": streams,
        "new": args.new,
        "runs": args.runs,
        "threads": args.threads,
        "dtype": args.dtype,
        "device": args.device,
    }
    with tempfile.TemporaryDirectory() as folder:
        write_transformers_folder(model, Path(folder))
        command = [sys.executable, str(script), folder, json.dumps(settings)]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"transformers failed:\n{done.stderr[-2000:]}")
    result: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return result


def agreement(ours: list[int], theirs: list[int]) -> int:
    """Leading tokens that both systems chose alike: they ran on the same weights, if it is all or nearly
    all.
    """
    return next((i for i, pair in enumerate(zip(ours, theirs, strict=True)) if pair[0] != pair[1]), len(ours))


def measure_all(args: argparse.Namespace) -> list[Row]:
    model = random_model(args.size, getattr(torch, args.dtype), args.device)
    rng = random.Random(0)
    streams: list[int] = args.streams
    vocabulary = model.config.vocab_size - 16
    prompts = [[rng.randrange(vocabulary) for _ in range(args.prompt_len)] for _ in range(max(streams))]
    rows: list[Row] = []
    tokens: list[int] = []
    # The peer in the middle, so that a machine that changes its pace treats both alike.
    for mode in MODES:
        for count in streams:
            row, tokens = asyncio.run(measure(model, mode, prompts[:count], args))
            rows.append(row)
        if mode == MODES[0] and not args.no_peer:
            result = peer(model, prompts, streams, args)
            theirs = result["tokens"]
            assert isinstance(theirs, list)
            print(f"greedy tokens equal to transformers': {agreement(tokens, theirs)} of {args.new}")
            for count in streams:
                speed = result[f"tok_s_{count}"]
                assert isinstance(speed, float)
                rows.append(Row("transformers generate", count, speed, 0.0))
    return rows


def show(rows: list[Row], args: argparse.Namespace) -> None:
    print(f"{args.size}, random weights, {args.dtype} on {args.device}, {args.threads} threads, ", end="")
    print(f"prompt {args.prompt_len}, {args.new} new tokens, median of {args.runs}")
    header = ["system", "streams", "tok/s", "spread", "step ms", "forward", "loop", "thread", "overhead ms"]
    cells = []
    for row in rows:
        times = (row.step_ms, row.forward_ms, row.loop_ms, row.thread_ms, row.overhead_ms)
        cells.append(
            [row.system, row.streams, row.tok_s, row.spread, *("" if t is None else t for t in times)]
        )
    print(table(header, cells))


def run(args: argparse.Namespace) -> list[dict[str, object]]:
    """Measures, prints, and returns the rows."""
    torch.set_num_threads(1)  # the step thread alone has a team, as in the engine process
    rows = measure_all(args)
    show(rows, args)
    return [asdict(row) for row in rows]
