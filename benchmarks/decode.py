"""Decoding speed of the engine alone: `python -m benchmarks.decode`.

Tokens per second for 1 and 8 streams in the three batching modes, beside transformers' `generate` on the same
seeded random weights in the same run, and where the time of a step goes.
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

import torch

from benchmarks.models import SIZES, ByteTokenizer, random_model, write_transformers_folder
from benchmarks.report import save, table
from engine.async_engine import AsyncEngine
from engine.messages import BatchingMode, EngineConfig, Request, SamplingParams
from engine.model import GPT

MODES: tuple[BatchingMode, ...] = ("continuous", "static", "single")


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


async def run_streams(engine: AsyncEngine, prompts: list[list[int]], new: int) -> float:
    """Seconds until all prompts have their `new` tokens."""

    async def one(prompt: list[int]) -> None:
        params = SamplingParams(max_tokens=new, temperature=0.0, ignore_eos=True)
        async for _ in engine.generate(Request(id=engine.next_id(1), prompt=prompt, params=params)):
            pass

    started = time.perf_counter()
    await asyncio.gather(*(one(prompt) for prompt in prompts))
    return time.perf_counter() - started


async def measure(model: GPT, mode: BatchingMode, prompts: list[list[int]], new: int, runs: int) -> Row:
    rows = max(len(prompts), 1)
    config = EngineConfig(max_rows=max(8, rows), batching=mode, enable_prefix_caching=False)
    engine = AsyncEngine(model, ByteTokenizer(model.config.vocab_size), config)
    await engine.start()
    await run_streams(engine, prompts, min(new, 16))
    overhead = engine.core.overhead
    overhead.plan = overhead.process = overhead.step = overhead.forward = 0.0
    steps = engine.stats().steps
    seconds = [await run_streams(engine, prompts, new) for _ in range(runs)]
    steps = engine.stats().steps - steps
    median = statistics.median(seconds)
    await engine.close()
    return Row(
        f"fastpath {mode}",
        len(prompts),
        len(prompts) * new / median,
        (max(seconds) - min(seconds)) / median,
        1e3 * sum(seconds) / steps,
        1e3 * overhead.forward / steps,
        1e3 * (overhead.plan + overhead.process) / steps,
        1e3 * (overhead.step - overhead.forward) / steps,
    )


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
        "threads": torch.get_num_threads(),
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


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=sorted(SIZES), default="tiny")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--prompt-len", type=int, default=32)
    parser.add_argument("--new", type=int, default=128)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--streams", default="1,8")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--no-peer", action="store_true", help="leave transformers out")
    parser.add_argument("--save", action="store_true", help="keep the result in benchmarks/results")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    streams = [int(count) for count in args.streams.split(",")]
    model = random_model(args.size, getattr(torch, args.dtype), args.device)
    rng = random.Random(0)
    prompts = [
        [rng.randrange(model.config.vocab_size - 16) for _ in range(args.prompt_len)]
        for _ in range(max(streams))
    ]
    rows: list[Row] = []
    for mode in MODES:
        for count in streams:
            rows.append(asyncio.run(measure(model, mode, prompts[:count], args.new, args.runs)))
    if not args.no_peer:
        result = peer(model, prompts, streams, args)
        for count in streams:
            speed = result[f"tok_s_{count}"]
            assert isinstance(speed, float)
            rows.append(Row("transformers generate", count, speed, 0.0))
    print(
        f"{args.size}, random weights, {args.dtype} on {args.device}, {torch.get_num_threads()} threads, ",
        end="",
    )
    print(f"prompt {args.prompt_len}, {args.new} new tokens, median of {args.runs}")
    header = [
        "system",
        "streams",
        "tok/s",
        "spread",
        "step ms",
        "forward ms",
        "loop ms",
        "thread ms",
        "overhead ms",
    ]
    print(
        table(
            header,
            [
                [
                    r.system,
                    r.streams,
                    r.tok_s,
                    r.spread,
                    *(
                        "" if v is None else v
                        for v in (r.step_ms, r.forward_ms, r.loop_ms, r.thread_ms, r.overhead_ms)
                    ),
                ]
                for r in rows
            ],
        )
    )
    if args.save:
        settings = {k: v for k, v in vars(args).items() if k != "save"} | {"threads": torch.get_num_threads()}
        print(
            "kept in",
            save(
                f"decode-{args.device}-{args.size}-{args.dtype}", [asdict(row) for row in rows], settings
            ).name,
        )


if __name__ == "__main__":
    main()
