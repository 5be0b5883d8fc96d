"""The decode paths beside each other: the workloads one and streams through one engine for each path, and
where a step's time goes in it. Run by `python -m benchmarks.decode --path graph,chained,persistent`.
"""

import argparse
import asyncio
import gc
import traceback
from dataclasses import asdict, dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks import offline
from benchmarks.bandwidth import Reads, read_bandwidth
from benchmarks.phases import Ran, by_phase
from benchmarks.report import table
from benchmarks.workloads import WORKLOADS, Work, shrunk
from engine.async_engine import AsyncEngine
from engine.gpu.runner import GpuRunner

STREAMS = (1, 4, 8)
# A path after the other in one process: none may take all of the memory.
POOL = "num_blocks=2048"
PHASE_TOKENS = 256  # of the run that is looked into


@runtime_checkable
class Timeline(Protocol):
    """Kernels that know what their phases take."""

    def phase_times(self) -> dict[str, float]:
        """Milliseconds by phase, of the average layer."""
        ...


@dataclass(slots=True)
class PathRow:
    """One workload by one path. served: what its bucket really went by. share: bytes that a step must read
    over what the measured bandwidth allows in ms_step, which is wall time; device_share: in device_ms.
    """

    path: str
    served: str
    workload: str
    streams: int
    tok_s: float = 0.0
    ms_step: float = 0.0
    device_ms: float = 0.0
    loop_ms: float = 0.0
    share: float = 0.0
    device_share: float = 0.0
    tpot_ms: float = 0.0
    itl_p99_ms: float = 0.0
    spread: float = 0.0
    vllm: float | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Phase:
    """us: microseconds a step of the device's kernels, or a layer by the clock of the path's own."""

    path: str
    streams: int
    per: str
    phase: str
    us: float


async def measure_paths(args: argparse.Namespace) -> list[dict[str, object]]:
    """A row for each workload of each path, then one for each phase; what fails is in its row."""
    bandwidth = read_bandwidth(torch.device(args.device))
    args.bandwidth_tb_s = bandwidth / 1e12
    print(f"read bandwidth {args.bandwidth_tb_s:.3f} TB/s", flush=True)
    rows: list[PathRow] = []
    phases: list[Phase] = []
    for path in args.paths:
        try:
            await _measure_path(args, path, bandwidth, rows, phases)
        except Exception as error:
            traceback.print_exc()
            rows.append(PathRow(path, "", "start", 0, error=f"{type(error).__name__}: {error}"))
        gc.unfreeze()
        gc.collect()  # the engine, before the next one asks for memory
        torch.cuda.empty_cache()
    show(rows, phases)
    return [*map(asdict, rows), *map(asdict, phases)]


async def _measure_path(
    args: argparse.Namespace, path: str, bandwidth: float, rows: list[PathRow], phases: list[Phase]
) -> None:
    model, tokenizer, meta = offline.load(args.size, args.device, args.dtype)
    reads, vocabulary = Reads.of(model), model.config.vocab_size - 16
    given = [POOL, *args.engine, f"decode_path={path}"]
    config = offline.engine_config(argparse.Namespace(**{**vars(args), "engine": given}))
    engine = AsyncEngine(model, tokenizer, config, meta, consume=True)
    del model
    await engine.start()
    reads = replace(reads, weights=engine.backend.step_bytes or reads.weights)
    for name, asked, used, why in engine.info.features:
        if name.startswith("decode path"):
            print(f"  {name}: {used} ({why})" + (f", asked for {asked}" if asked else ""), flush=True)
    gc.collect()
    gc.freeze()
    wanted = args.streams or list(STREAMS)
    works = [work for name in ("one", "streams") for work in WORKLOADS[name](vocabulary)]
    try:
        for work in sorted((w for w in works if w.streams in wanted), key=lambda work: work.streams):
            work = shrunk(work, args.shrink)
            row = await _measured(engine, path, work, args, reads, bandwidth)
            rows.append(row)
            print(_line(row), flush=True)
            phases += await broken_down(engine, row, vocabulary, max(2, PHASE_TOKENS // args.shrink))
    finally:
        await engine.close()


async def _measured(
    engine: AsyncEngine, path: str, work: Work, args: argparse.Namespace, reads: Reads, bandwidth: float
) -> PathRow:
    """Shares are of the bytes that the average step must read."""
    got = await offline.measure(engine, work, args.runs, reads, bandwidth, args.size)
    least = reads.total(work, got.steps) / max(1, got.steps) / bandwidth
    return PathRow(
        path=path,
        served=served(engine, work.streams),
        workload=work.workload,
        streams=work.streams,
        tok_s=got.tok_s,
        ms_step=got.ms_step,
        device_ms=got.device_ms,
        loop_ms=got.loop_ms,
        share=1e3 * least / got.ms_step,
        device_share=1e3 * least / got.device_ms if got.device_ms else 0.0,
        tpot_ms=got.tpot_ms,
        itl_p99_ms=got.itl_p99_ms,
        spread=got.spread,
        vllm=got.vllm,
    )


def served(engine: AsyncEngine, streams: int) -> str:
    """The path that steps of so many rows go by now."""
    runner = engine.backend.runner
    assert isinstance(runner, GpuRunner)
    return runner.path_of(streams)


async def broken_down(engine: AsyncEngine, row: PathRow, vocabulary: int, new: int) -> list[Phase]:
    """Of a run of one-token prompts, whose every step is a decode step: the kernels that ran, and where the
    path's own kernels keep times, those.
    """
    work = Work(
        "phases", [[3 + index % (vocabulary - 3)] for index in range(row.streams)], [new] * row.streams
    )
    await offline.run_once(engine, work)
    before = engine.stats().steps
    ran = await profiled(engine, work)
    times = by_phase(ran, max(1, engine.stats().steps - before))
    found = [Phase(row.path, row.streams, "step", name, us) for name, us in times.items()]
    runner = engine.backend.runner
    assert isinstance(runner, GpuRunner)
    kernels = runner.network.paths.kernels
    if row.served != "graph" and isinstance(kernels, Timeline):
        own = kernels.phase_times()
        found += [Phase(row.path, row.streams, "layer", name, 1e3 * ms) for name, ms in own.items()]
    return found


async def profiled(engine: AsyncEngine, work: Work) -> list[Ran]:
    """The kernels of a run."""
    with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as prof:
        await offline.run_once(engine, work)
        await asyncio.sleep(0.1)  # the last kernels' records
    events = [event for event in prof.events() or () if event.device_type == DeviceType.CUDA]
    return [Ran(event.name, event.time_range.start, event.time_range.elapsed_us()) for event in events]


def _line(row: PathRow) -> str:
    beside = f", vLLM {row.vllm:,.0f} ({row.tok_s / row.vllm:.2f} x)" if row.vllm else ""
    step = f"{row.ms_step:.3f} ms/step, {row.share:.0%} of the bandwidth"
    return f"{row.path} (by {row.served}) {row.streams}: {row.tok_s:,.1f} tok/s{beside}, {step}"


def show(rows: list[PathRow], phases: list[Phase]) -> None:
    header = ["path", "served by", "streams", "tok/s", "spread", "ms/step", "share", "device ms", "share"]
    header += ["loop ms", "TPOT ms", "ITL p99", "vLLM", "x"]
    cells: list[list[object]] = []
    for row in rows:
        if row.error:
            cells.append([row.path, row.error, *[""] * (len(header) - 2)])
            continue
        times = (row.ms_step, row.share, row.device_ms, row.device_share, row.loop_ms, row.tpot_ms)
        cells.append(
            [
                *(row.path, row.served, row.streams, row.tok_s, row.spread),
                *(f"{value:.3f}" for value in (*times, row.itl_p99_ms)),
                *((row.vllm, row.tok_s / row.vllm) if row.vllm else ("", "")),
            ]
        )
    print(table(header, cells))
    for streams in dict.fromkeys(phase.streams for phase in phases):
        here = [phase for phase in phases if phase.streams == streams]
        print(f"\n{streams} streams, microseconds: a step of all kernels, or a layer by their own clock")
        paths = list(dict.fromkeys((phase.path, phase.per) for phase in here))
        times = {(phase.phase, (phase.path, phase.per)): phase.us for phase in here}
        names = list(dict.fromkeys(phase.phase for phase in here))
        print(
            table(
                ["phase", *(f"{path}/{per}" for path, per in paths)],
                [[name, *(times.get((name, path), "") for path in paths)] for name in names],
            )
        )
