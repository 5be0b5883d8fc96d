"""The offline workloads on one engine: everything submitted at once, wall time to the last token.

The engine runs inside this process's event loop, as `AsyncEngine` does anywhere; its frames are collected as
they come (`on_frame`), without a consumer per stream.
"""

import argparse
import asyncio
import gc
import statistics
import tempfile
import time
import traceback
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from pathlib import Path

import torch
from torch import nn

from benchmarks import models, peers
from benchmarks.bandwidth import Reads, read_bandwidth
from benchmarks.options import engine_settings
from benchmarks.report import table
from benchmarks.workloads import WORKLOADS, Work, shrunk
from engine.async_engine import AsyncEngine
from engine.memory import block_bytes
from engine.messages import EngineConfig, Frame, Request, SamplingParams
from engine.runner import ModelRunner
from kernels.kv8 import FORMAT


@dataclass(slots=True)
class Row:
    """One workload, medians over the runs. ms_step, device_ms and loop_ms are means over the steps of all
    runs: wall time, time on the device, time of the loop's own Python. mbu: bytes that had to be read over
    what the measured read bandwidth allows in that time. decode_tok_s, decode_mbu: the same while every
    stream has begun and none has ended, 0 where there is no such time. vllm and target: tokens per second.
    """

    system: str
    model: str
    workload: str
    streams: int
    tok_s: float = 0.0
    spread: float = 0.0  # (slowest - fastest) / median of the runs
    wall_s: float = 0.0
    steps: int = 0
    ms_step: float = 0.0
    device_ms: float = 0.0
    loop_ms: float = 0.0
    ttft_p50_ms: float = 0.0
    ttft_p99_ms: float = 0.0
    itl_p50_ms: float = 0.0
    itl_p99_ms: float = 0.0
    tpot_ms: float = 0.0
    mbu: float = 0.0
    decode_tok_s: float = 0.0
    decode_mbu: float = 0.0
    vllm: float | None = None
    target: float | None = None
    error: str | None = None


@dataclass(slots=True)
class Collector:
    """Keeps each frame's streams and tokens with the time it came; `done` is set when nothing is open."""

    open: int
    frames: list[tuple[float, list[int], list[int]]] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    done: asyncio.Event = field(default_factory=asyncio.Event)

    def __call__(self, frame: Frame) -> None:
        if frame.streams:
            self.frames.append((time.perf_counter(), frame.streams, frame.tokens))
        for finish in frame.finished:
            self.open -= 1
            if finish.reason != "length":
                self.errors.append(f"{finish.reason}: {finish.message}")
        if self.open <= 0:
            self.done.set()


@dataclass(frozen=True, slots=True)
class Steady:
    """The time in which every stream decodes. seconds: from the last one's first token to the first one's
    last. spans: of each stream, how many tokens it had before, and how many came.
    """

    seconds: float = 0.0
    spans: tuple[tuple[int, int], ...] = ()

    @classmethod
    def of(cls, times: list[list[float]]) -> "Steady":
        """times: when each stream's tokens came."""
        begin, end = max(stamps[0] for stamps in times), min(stamps[-1] for stamps in times)
        if end <= begin:
            return cls()
        before = [sum(at <= begin for at in stamps) for stamps in times]
        came = [sum(begin < at <= end for at in stamps) for stamps in times]
        return cls(end - begin, tuple(zip(before, came, strict=True)))

    @property
    def tokens(self) -> int:
        return sum(came for _, came in self.spans)

    def bytes(self, reads: Reads, work: Work) -> int:
        """What had to be read for these tokens: the weights in each step, and the context of each token."""
        steps = max((came for _, came in self.spans), default=0)
        contexts = sum(
            reads.context(len(prompt) + before + index)
            for prompt, (before, came) in zip(work.prompts, self.spans, strict=True)
            for index in range(came)
        )
        return reads.weights * steps + contexts


@dataclass(frozen=True, slots=True)
class Run:
    """One run: seconds in all, to each stream's first token, between tokens, and per further token. answers:
    each prompt's tokens, in the prompts' order. steady: what came while all streams decoded.
    """

    wall: float
    firsts: list[float]
    gaps: list[float]
    tpot: float
    answers: list[list[int]]
    steady: Steady


async def run_once(engine: AsyncEngine, work: Work) -> Run:
    """Raises RuntimeError when a stream did not give every token it owed."""
    collector = Collector(work.streams)
    engine.on_frame = collector
    owed: dict[int, int] = {}
    started = time.perf_counter()
    for prompt, new in zip(work.prompts, work.new, strict=True):
        params = SamplingParams(max_tokens=new, temperature=0.0, ignore_eos=True)
        id = engine.next_id(1)
        owed[id] = new
        engine.enqueue(Request(id=id, prompt=prompt, params=params))
    ended = asyncio.ensure_future(engine.wait_closed())
    waiting = asyncio.ensure_future(collector.done.wait())
    await asyncio.wait({ended, waiting}, return_when=asyncio.FIRST_COMPLETED)
    if ended.done():
        waiting.cancel()
        await ended
        raise RuntimeError("the engine's loop ended")
    ended.cancel()
    if collector.errors:
        raise RuntimeError(f"{len(collector.errors)} streams ended badly: {collector.errors[0]}")
    stamps: dict[int, list[float]] = {id: [] for id in owed}
    answers: dict[int, list[int]] = {id: [] for id in owed}
    for at, streams, tokens in collector.frames:
        for id, token in zip(streams, tokens, strict=True):
            stamps[id].append(at)
            answers[id].append(token)
    if any(len(stamps[id]) != count for id, count in owed.items()):
        raise RuntimeError("a stream has fewer or more tokens than were asked for")
    times = list(stamps.values())
    return Run(
        collector.frames[-1][0] - started,
        [stream[0] - started for stream in times],
        [after - before for stream in times for before, after in pairwise(stream)],
        statistics.mean((stream[-1] - stream[0]) / max(1, len(stream) - 1) for stream in times),
        list(answers.values()),
        Steady.of(times),
    )


async def measure(
    engine: AsyncEngine, work: Work, runs: int, reads: Reads, bandwidth: float, model: str
) -> Row:
    row = Row("fastpath", model, work.workload, work.streams)
    figure = peers.offline(model, work.workload, work.streams)
    if figure is not None:
        row.vllm, row.target = figure.vllm, figure.target
    await run_once(engine, work)  # what is compiled or captured on first use
    overhead = engine.core.overhead
    overhead.plan = overhead.process = overhead.step = overhead.forward = 0.0
    before = engine.stats().steps
    gc.collect()
    done = [await run_once(engine, work) for _ in range(runs)]
    steps = max(1, engine.stats().steps - before)
    walls = [run.wall for run in done]
    row.wall_s = statistics.median(walls)
    row.tok_s = work.tokens / row.wall_s
    row.spread = (max(walls) - min(walls)) / row.wall_s
    row.steps = round(steps / runs)
    row.ms_step = 1e3 * sum(walls) / steps
    row.device_ms = 1e3 * overhead.step / steps
    row.loop_ms = 1e3 * (overhead.plan + overhead.process) / steps
    row.ttft_p50_ms, row.ttft_p99_ms = _percentiles([first for run in done for first in run.firsts])
    row.itl_p50_ms, row.itl_p99_ms = _percentiles([gap for run in done for gap in run.gaps])
    row.tpot_ms = 1e3 * statistics.median(run.tpot for run in done)
    row.mbu = reads.total(work, row.steps) / row.wall_s / bandwidth
    steady = [run.steady for run in done if run.steady.tokens]
    if steady:
        row.decode_tok_s = statistics.median(one.tokens / one.seconds for one in steady)
        row.decode_mbu = statistics.median(one.bytes(reads, work) / one.seconds / bandwidth for one in steady)
    return row


def _percentiles(seconds: list[float]) -> tuple[float, float]:
    """(p50, p99) in milliseconds."""
    ordered = sorted(seconds)
    last = len(ordered) - 1
    if last < 0:
        return 0.0, 0.0
    return 1e3 * ordered[last // 2], 1e3 * ordered[min(last, int(0.99 * (last + 1)))]


def load(name: str, device: str, dtype: str) -> tuple[nn.Module, object, object]:
    """Seeded random weights of a named size: (model, tokenizer, meta), as the loader gives them."""
    from engine.loader import load_model

    with tempfile.TemporaryDirectory() as folder:
        models.write_dummy_folder(name, Path(folder))
        return load_model(folder, load_format="dummy", device=device, dtype=dtype)


async def measure_all(args: argparse.Namespace) -> list[dict[str, object]]:
    """A row per case; what fails is in its row. Sizes and bandwidth go into `args`, for the record."""
    device = torch.device(args.device)
    try:
        bandwidth = read_bandwidth(device)
        print(f"read bandwidth {bandwidth / 1e12:.3f} TB/s", flush=True)
        started = time.perf_counter()
        model, tokenizer, meta = load(args.size, args.device, args.dtype)
        reads, vocabulary = Reads.of(model), model.config.vocab_size - 16
        loaded = time.perf_counter()
        engine = AsyncEngine(model, tokenizer, engine_config(args), meta, consume=True)
        await engine.start()
        if engine.config.kv_dtype == "fp8":
            per_token = block_bytes(model.config, 1, FORMAT)  # type: ignore[arg-type]
            reads = replace(reads, kv_per_layer=per_token // len(reads.windows))
        reads = replace(reads, weights=engine.backend.step_bytes or reads.weights)
        if isinstance(engine.backend.runner, ModelRunner):  # its cache may be of another type than the model
            kept, own = (
                engine.backend.runner.cache.keys.element_size(),
                next(model.parameters()).element_size(),
            )
            reads = replace(reads, kv_per_layer=reads.kv_per_layer * kept // own)
    except Exception as error:
        traceback.print_exc()
        row = Row("fastpath", args.size, "start", 0, error=f"{type(error).__name__}: {error}")
        return [asdict(row)]
    del model
    args.bandwidth_tb_s = bandwidth / 1e12
    args.weights_bytes, args.kv_bytes_token = reads.weights, reads.context(1)
    args.start_s = time.perf_counter() - started
    print(f"model {loaded - started:.1f} s, engine {time.perf_counter() - loaded:.1f} s", flush=True)
    for name, asked, used, why in engine.info.features:
        print(f"  {name}: {used} ({why})" + (f", asked for {asked}" if asked else ""))
    print(f"weights {reads.weights / 1e9:.3f} GB a step, KV {reads.context(1)} bytes a token", flush=True)
    gc.collect()
    gc.freeze()
    rows: list[Row] = []
    extra: list[dict[str, object]] = []
    for name in args.workloads:
        for work in WORKLOADS[name](vocabulary):
            if name == "streams" and args.streams and work.streams not in args.streams:
                continue
            try:
                work = shrunk(work, args.shrink)
                row = await measure(engine, work, args.runs, reads, bandwidth, args.size)
            except Exception as error:
                traceback.print_exc()
                row = Row("fastpath", args.size, name, work.streams, error=f"{type(error).__name__}: {error}")
            rows.append(row)
            print(_line(row), flush=True)
    for streams in args.profile:
        extra += await profile(engine, streams, vocabulary)
    try:
        await engine.close()
    except Exception:
        traceback.print_exc()
    show(rows)
    return [*map(asdict, rows), *extra]


def engine_config(args: argparse.Namespace) -> EngineConfig:
    settings: dict[str, object] = {
        "max_rows": args.max_rows,
        "max_model_len": args.max_model_len,
        "enable_prefix_caching": False,
        "threads": args.threads,
        "served_name": args.size,
    }
    fields, flags = engine_settings(args.engine)
    return EngineConfig(**(settings | fields), flags=flags)  # type: ignore[arg-type]


async def profile(engine: AsyncEngine, streams: int, vocabulary: int) -> list[dict[str, object]]:
    """Device time of each kernel per step, for a run of `streams` short streams: where the time goes."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    work = Work(
        "profile",
        [[3 + (i * 37 + j) % (vocabulary - 3) for j in range(64)] for i in range(streams)],
        [32] * streams,
    )
    try:
        await run_once(engine, work)
        before = engine.stats().steps
        kind = ProfilerActivity.CUDA if torch.cuda.is_available() else ProfilerActivity.CPU
        with profiler(activities=[kind], acc_events=True) as prof:
            await run_once(engine, work)
            await asyncio.sleep(0.1)
        steps = max(1, engine.stats().steps - before)
        name = "self_device_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
        events = sorted(prof.key_averages(), key=lambda e: -getattr(e, name))
        kernels = [(e.key, getattr(e, name) / steps, e.count / steps) for e in events if getattr(e, name) > 0]
    except Exception as error:
        traceback.print_exc()
        return [{"workload": "profile", "streams": streams, "error": f"{type(error).__name__}: {error}"}]
    print(f"\nkernels of {streams} streams (prefill included), {steps} steps, microseconds a step")
    print(table(["kernel", "us", "launches"], [[key[:90], us, count] for key, us, count in kernels[:25]]))
    return [
        {"workload": "profile", "streams": streams, "kernel": key[:200], "us_step": us, "launches": count}
        for key, us, count in kernels[:40]
    ]


def _line(row: Row) -> str:
    if row.error:
        return f"{row.workload} {row.streams}: {row.error}"
    beside = f", vLLM {row.vllm:,.0f} ({row.tok_s / row.vllm:.2f} x)" if row.vllm else ""
    alone = f", {row.decode_tok_s:,.1f} while all decode" if row.decode_tok_s else ""
    return f"{row.workload} {row.streams}: {row.tok_s:,.1f} tok/s{alone}{beside}, {row.ms_step:.3f} ms/step"


def show(rows: list[Row]) -> None:
    header = ["workload", "streams", "tok/s", "spread", "steps", "ms/step", "device", "loop ms"]
    header += ["TTFT p50", "p99", "ITL p50", "p99", "TPOT ms", "MBU"]
    header += ["decode", "MBU", "vLLM", "x", "target", "x"]
    cells: list[list[object]] = []
    for row in rows:
        if row.error:
            cells.append([row.workload, row.streams, row.error, *[""] * (len(header) - 3)])
            continue
        beside = [(f, row.tok_s / f) if f else ("", "") for f in (row.vllm, row.target)]
        cells.append(
            [
                *(row.workload, row.streams, row.tok_s, row.spread, row.steps),
                *(f"{value:.3f}" for value in (row.ms_step, row.device_ms, row.loop_ms)),
                *(row.ttft_p50_ms, row.ttft_p99_ms),
                *(f"{value:.3f}" for value in (row.itl_p50_ms, row.itl_p99_ms, row.tpot_ms, row.mbu)),
                *(row.decode_tok_s, f"{row.decode_mbu:.3f}"),
                *beside[0],
                *beside[1],
            ]
        )
    print(table(header, cells))
    print(f"vLLM: {peers.SOURCE}, tok/s; read ratios on that GPU only")
