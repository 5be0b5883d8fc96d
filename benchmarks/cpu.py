"""What a CPU serves a small model with: `python -m benchmarks.decode --device cpu`.

Tokens per second for 1 and 8 streams with weights in int8, bf16 and float32 (torch's reference path), beside
llama.cpp on a Llama of equal size in the same formats. All take turns, round after round, because a shared
machine changes its pace; a row is the median of its rounds. Of ours it says where a step's time goes, and
which share of the memory's bandwidth, measured in the same run, the step's weights and keys and values come
to.
"""

import argparse
import asyncio
import json
import random
import statistics
import subprocess
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from benchmarks.bandwidth import read_bandwidth
from benchmarks.models import ByteTokenizer, random_model
from benchmarks.modes import GREEDY, run_streams
from benchmarks.report import table
from engine.async_engine import AsyncEngine
from engine.messages import EngineConfig, SamplingParams
from engine.model import GPT
from engine.worker import new_event_loop

# Ours -> llama.cpp's name for the same.
FORMATS = {"int8": "Q8_0", "bf16": "BF16", "float32": "F32"}
# chat: as the embedded model's card recommends.
SAMPLING = {
    "greedy": GREEDY,
    "chat": SamplingParams(max_tokens=1, temperature=0.7, top_k=40, repetition_penalty=1.1, seed=1),
}


@dataclass(slots=True)
class Row:
    """spread: (slowest - fastest) / median of the rounds. overhead_ms: of a step, what is not the model's
    forward. bandwidth: share of the memory's that the step's bytes come to; a model that fits the processor's
    cache may have more than all. ratio: to llama.cpp's tokens per second.
    """

    system: str
    weights: str
    streams: int
    sampling: str = "greedy"
    tok_s: float = 0.0
    spread: float = 0.0
    step_ms: float = 0.0
    forward_ms: float | None = None
    overhead_ms: float | None = None
    step_bytes: int | None = None
    bandwidth: float | None = None
    ratio: float | None = None
    note: str = ""


@dataclass(slots=True)
class Rounds:
    """Of one system: seconds of each round, and of ours the steps and what they spent in the forward."""

    seconds: list[float] = field(default_factory=list)
    steps: int = 0
    forward: float = 0.0


async def measure(model: GPT, prompts: list[list[int]], args: argparse.Namespace) -> list[Row]:
    engines = {weights: _engine(model, weights, args) for weights in args.weights}
    cases = [
        (weights, streams, how) for weights in args.weights for streams in args.streams for how in SAMPLING
    ]
    ours = {case: Rounds() for case in cases}
    theirs = {case[:2]: Rounds() for case in cases}
    about = ""
    for engine in engines.values():
        await engine.start()
    for weights, streams, how in cases:
        await run_streams(engines[weights], prompts[:streams], min(16, args.new), SAMPLING[how])
    for _ in range(args.runs):
        for weights, streams, how in cases:
            rounds = ours[weights, streams, how]
            await _round(engines[weights], prompts[:streams], args.new, SAMPLING[how], rounds)
        for weights in args.weights if args.llama_cpp else ():
            about, seconds = llama_cpp(model, weights, prompts, args)
            for streams, took in seconds.items():
                theirs[weights, streams].seconds.append(took)
    bandwidth = args.bandwidth_gb_s * 1e9
    rows: list[Row] = []
    for weights, streams, how in cases:
        kv = 4 if weights == "float32" else 2
        read = _step_bytes(engines[weights], model, weights) + _kv_bytes(model, kv, streams, args)
        row = _row("fastpath", weights, streams, ours[weights, streams, how], args.new)
        row.sampling = how
        row.step_bytes = read
        row.bandwidth = read / (row.step_ms / 1e3) / bandwidth
        rows.append(row)
        if how != "greedy":
            continue
        peer = Row(
            "llama.cpp", FORMATS[weights], streams, note="not installed" if not args.llama_cpp else about
        )
        if args.llama_cpp:
            peer = _row("llama.cpp", FORMATS[weights], streams, theirs[weights, streams], args.new)
            peer.note = about
            row.ratio = row.tok_s / peer.tok_s
        rows.append(peer)
    for weights, engine in engines.items():
        used = {name: used for name, _, used, _ in engine.info.features}
        print(f"{weights}: {used['linear']}, attention {used['attention']}, {used['cpu threads']} threads")
        await engine.close()
    return rows


def _engine(model: GPT, weights: str, args: argparse.Namespace) -> AsyncEngine:
    settings = {"dtype": "float32"} if weights == "float32" else {"weight_dtype": weights}
    config = EngineConfig(
        max_rows=max(8, *args.streams),
        enable_prefix_caching=False,
        threads=args.threads,
        **settings,  # type: ignore[arg-type]
    )
    return AsyncEngine(model, ByteTokenizer(model.config.vocab_size), config)


async def _round(
    engine: AsyncEngine, prompts: list[list[int]], new: int, sampling: SamplingParams, rounds: Rounds
) -> None:
    overhead = engine.core.overhead
    steps, forward = engine.stats().steps, overhead.forward
    seconds, _ = await run_streams(engine, prompts, new, sampling)
    rounds.seconds.append(seconds)
    rounds.steps += engine.stats().steps - steps
    rounds.forward += overhead.forward - forward


def _row(system: str, weights: str, streams: int, rounds: Rounds, new: int) -> Row:
    median = statistics.median(rounds.seconds)
    row = Row(system, weights, streams, tok_s=streams * new / median)
    row.spread = (max(rounds.seconds) - min(rounds.seconds)) / median
    row.step_ms = 1e3 * median / new
    if rounds.steps:
        row.step_ms = 1e3 * median * len(rounds.seconds) / rounds.steps
        # Of the whole time, so that a slow round's steps do not count as overhead.
        row.forward_ms = row.step_ms * rounds.forward / sum(rounds.seconds)
        row.overhead_ms = row.step_ms - row.forward_ms
    return row


def _step_bytes(engine: AsyncEngine, model: GPT, weights: str) -> int:
    """Of weights; embeddings are looked up by row and do not count."""
    if engine.backend.step_bytes:
        return engine.backend.step_bytes
    looked_up = sum(m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Embedding))
    return (model.parameter_count() - looked_up) * (4 if weights == "float32" else 2)


def _kv_bytes(model: GPT, size: int, streams: int, args: argparse.Namespace) -> int:
    """Keys and values that a step reads at half of its answers' length."""
    config, context = model.config, args.prompt_len + args.new // 2
    seen = sum(
        context if (window := config.window(layer)) is None else min(context, window + 1)
        for layer in range(config.n_layer)
    )
    return 2 * size * config.n_kv_head * config.head_dim * seen * streams


def llama_cpp(
    model: GPT, weights: str, prompts: list[list[int]], args: argparse.Namespace
) -> tuple[str, dict[int, float]]:
    """Its version, and seconds of one round by number of streams, from a process of its own."""
    config = model.config
    # Its MLP has three matrices; their width is what makes the sizes equal.
    layer = sum(p.numel() for name, p in model.named_parameters() if ".h.0." in name and p.dim() == 2)
    attention = 2 * config.n_embd * (config.n_embd + config.n_kv_head * config.head_dim)
    shape = {
        "n_embd": config.n_embd,
        "n_layer": config.n_layer,
        "n_head": config.n_head,
        "n_kv_head": config.n_kv_head,
        "vocab_size": config.vocab_size,
        "sequence_len": config.sequence_len,
        "n_inner": round((layer - attention) / (3 * config.n_embd) / 32) * 32,
    }
    settings = {
        "format": weights,
        "shape": shape,
        "streams": args.streams,
        "threads": args.threads,
        "new": args.new,
        "runs": 1,
        "prompts": prompts,
        "folder": str(args.scratch),
    }
    script = Path(__file__).with_name("llama_cpp_peer.py").resolve()
    command = [str(args.llama_cpp), str(script), json.dumps(settings)]
    done = subprocess.run(command, cwd=args.scratch, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"--llama-cpp {args.llama_cpp} failed:\n{done.stderr[-2000:]}")
    result = json.loads(done.stdout.splitlines()[-1])
    return f"llama-cpp-python {result['version']}", {
        row["streams"]: row["streams"] * args.new / row["tok_s"] for row in result["rows"]
    }


def show(rows: list[Row], args: argparse.Namespace) -> None:
    print(f"{args.size}, random weights, {args.threads} threads, prompt {args.prompt_len}, ", end="")
    print(f"{args.new} new tokens, median of {args.runs} rounds; ", end="")
    print(f"memory reads {args.bandwidth_gb_s:.1f} GB/s with as many threads")
    header = [
        "system", "weights", "streams", "sampling", "tok/s", "spread", "step ms", "forward", "overhead",
        "MB/step", "bandwidth", "x llama.cpp",
    ]  # fmt: skip
    cells = []
    for row in rows:
        if not row.tok_s:
            cells.append([row.system, row.weights, row.streams, row.sampling, row.note, *[""] * 7])
            continue
        megabytes = None if row.step_bytes is None else row.step_bytes / 1e6
        share = None if row.bandwidth is None else f"{row.bandwidth:.0%}"
        values = (
            row.tok_s,
            row.spread,
            row.step_ms,
            row.forward_ms,
            row.overhead_ms,
            megabytes,
            share,
            row.ratio,
        )
        cells.append(
            [row.system, row.weights, row.streams, row.sampling, *("" if v is None else v for v in values)]
        )
    print(table(header, cells))


def run(args: argparse.Namespace) -> list[dict[str, object]]:
    """Measures, prints, and returns the rows."""
    import tempfile

    torch.set_num_threads(args.threads)
    args.bandwidth_gb_s = read_bandwidth(torch.device("cpu")) / 1e9
    torch.set_num_threads(1)  # the step thread alone has a team, as in the engine process
    model = random_model(args.size, torch.float32, "cpu")
    rng = random.Random(0)
    prompts = [
        [rng.randrange(model.config.vocab_size - 16) for _ in range(args.prompt_len)]
        for _ in range(max(args.streams))
    ]
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch, asyncio.Runner(loop_factory=new_event_loop) as runner:
        args.scratch = Path(scratch)
        rows = runner.run(measure(model, prompts, args))
    show(rows, args)
    # What is kept names versions, not places of this machine.
    del args.scratch
    args.llama_cpp = next((row.note for row in rows if row.system == "llama.cpp"), None)
    print(f"measured in {time.perf_counter() - started:.0f} s")
    return [asdict(row) for row in rows]
