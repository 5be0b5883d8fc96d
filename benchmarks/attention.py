"""Paged attention on a GPU: `python -m benchmarks.attention [--out FILE] [--quick] [--sweep]`.

Decode: microseconds of one layer among many in a replayed CUDA graph, each layer with keys and values of its
own, so that together they exceed the L2 cache; the share is of the read bandwidth measured in the same run.
Prefill: TFLOP/s of causal attention. Beside them what FlashAttention 3 took on an H200 in vllm 0.26, and any
FlashAttention that is installed here. A case that fails is recorded with its error; what does not fit into
--seconds is left out.
"""

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from benchmarks.attention_cases import (
    CHUNK_SHAPES,
    CHUNKS,
    CUTS,
    FIRST,
    GROUPED,
    PEER_DECODE,
    PEER_PREFILL,
    PREFILL,
    SINGLE,
    Heads,
    Row,
    Shape,
    best_rows,
    cells,
)
from benchmarks.bandwidth import read_bandwidth
from benchmarks.report import machine, table
from kernels.backends import flash
from kernels.backends.base import AttentionBackend, AttentionSpec
from kernels.backends.reference import TorchBackend
from kernels.caps import FlashName
from kernels.triton.decode import DecodeConfig, DecodeWorkspace, paged_decode, plan_decode
from kernels.triton.decode_config import config_for
from kernels.triton.prefill import PrefillWorkspace, paged_prefill
from kernels.triton.prefill_config import PrefillConfig
from kernels.triton.prefill_config import config_for as prefill_config_for

HEAD_DIM = 128
BLOCK_SIZE = 16
NUMBERS = 320 << 20  # of keys and values, 2 bytes each, behind one timing: several times what L2 holds
MOST_LAYERS = 48
REPLAYS = 20


@dataclass(slots=True)
class Pool:
    """Layers of keys and values that share one block table."""

    spec: AttentionSpec
    layers: list[tuple[torch.Tensor, torch.Tensor]]
    tables: torch.Tensor
    rows: torch.Tensor
    contexts: torch.Tensor
    bytes: int


class Timer:
    """Median time of one replay of a CUDA graph of what a function queues."""

    def __init__(self) -> None:
        self.stream = torch.cuda.Stream()
        self.start, self.end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def __call__(self, body: Callable[[], object]) -> float:
        """Seconds; the first replay does not count."""
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        with torch.cuda.stream(self.stream):
            body()
            self.stream.synchronize()
            graph.capture_begin()
            try:
                body()
            finally:
                graph.capture_end()  # whatever happened, so that the next capture can begin
            times = []
            for _ in range(REPLAYS + 1):
                self.start.record()
                graph.replay()
                self.end.record()
                self.end.synchronize()
                times.append(self.start.elapsed_time(self.end) / 1e3)
        return statistics.median(times[1:])


class Bench:
    def __init__(self, seconds: float) -> None:
        self.deadline = time.monotonic() + seconds
        self.device = torch.device("cuda")
        self.bandwidth = read_bandwidth(self.device)
        # Random once, cut up anew for every shape.
        self.memory = torch.empty(NUMBERS, dtype=torch.bfloat16, device=self.device).normal_()
        self.time = Timer()
        self.rows: list[Row] = []
        self.left_out = 0

    def pool(self, heads: Heads, shape: Shape) -> Pool:
        rows, context = shape
        per_row = -(-context // BLOCK_SIZE)
        blocks = rows * per_row + 1
        size = blocks * BLOCK_SIZE * heads[1] * HEAD_DIM
        if 2 * size > self.memory.numel():
            self.memory = torch.empty(2 * size, dtype=torch.bfloat16, device=self.device).normal_()
        layers = max(1, min(MOST_LAYERS, self.memory.numel() // (2 * size)))
        parts = self.memory[: layers * 2 * size].view(layers, 2, blocks, heads[1], BLOCK_SIZE, HEAD_DIM)
        tables = (torch.randperm(blocks - 1, device=self.device) + 1).to(torch.int32).view(rows, per_row)
        spec = AttentionSpec(
            *heads, HEAD_DIM, BLOCK_SIZE, torch.bfloat16, rows, per_row * BLOCK_SIZE, self.device
        )
        return Pool(
            spec,
            [(part[0].transpose(1, 2), part[1].transpose(1, 2)) for part in parts],
            tables,
            torch.arange(rows, dtype=torch.int32, device=self.device),
            torch.full((rows,), context, dtype=torch.int32, device=self.device),
            4 * rows * context * heads[1] * HEAD_DIM,
        )

    def queries(self, tokens: int, heads: Heads) -> tuple[torch.Tensor, torch.Tensor]:
        """Queries as a view of a fused product, and where the result goes."""
        qkv = torch.randn(tokens, (heads[0] + 2 * heads[1]) * HEAD_DIM, device=self.device).bfloat16()
        query = qkv[:, : heads[0] * HEAD_DIM].view(tokens, heads[0], HEAD_DIM)
        return query, torch.full_like(qkv[:, : heads[0] * HEAD_DIM], float("nan"))

    def attempt(self, row: Row, run: Callable[[], float]) -> Row:
        """Fills a row with what `run` measures, in seconds a layer, or with its error."""
        try:
            row.us = run() * 1e6
        except Exception as error:  # one shape's failure must not cost the others
            row.error = f"{type(error).__name__}: {str(error)[:300]}"
            torch.cuda.synchronize()
        return row

    @property
    def late(self) -> bool:
        return time.monotonic() > self.deadline


def decode_candidates(group: int, rows: int, sweep: bool) -> Iterator[DecodeConfig]:
    """The configuration in use first, then the sweep's, each way to run with each way to cut."""
    yield config_for(group, HEAD_DIM, rows, 2)
    if sweep:
        for base, (chunk, units) in itertools.product(SINGLE if group == 1 else GROUPED, CUTS):
            if chunk >= base.block_keys:
                yield replace(base, min_chunk=chunk, units_per_sm=units)


def short(config: DecodeConfig | PrefillConfig) -> str:
    return ", ".join(f"{name} {value}" for name, value in asdict(config).items() if value is not False)


def relative(ours: torch.Tensor, right: torch.Tensor) -> float:
    return ((ours.float() - right.float()).norm() / right.float().norm()).item()


def bench_decode(
    bench: Bench, heads: Heads, shape: Shape, sweep: bool, libraries: dict[str, flash.Attend]
) -> None:
    pool, rows = bench.pool(heads, shape), shape[0]
    query, out = bench.queries(rows, heads)
    positions = pool.contexts - 1
    keys, values = pool.layers[0]
    few = slice(0, min(2, rows))
    right = torch.empty_like(out[few])
    reference = TorchBackend(pool.spec)
    scale = HEAD_DIM**-0.5
    reference.decode(
        query[few], keys, values, pool.tables, pool.rows[few], positions[few], right, scale=scale, window=None
    )
    peer = PEER_DECODE.get(heads, {}).get(shape)

    def finish(row: Row) -> None:
        if row.us is not None:
            row.gb_s = pool.bytes / row.us / 1e3
            row.share = row.gb_s * 1e9 / bench.bandwidth
        bench.rows.append(row)

    def timed(config: DecodeConfig, pdl: bool) -> float:
        space = DecodeWorkspace.allocate(
            rows, *heads, HEAD_DIM, pool.spec.max_context, bench.device, config=config
        )
        plan_decode(pool.rows, positions, space, window=None)

        def layer(k: torch.Tensor, v: torch.Tensor) -> None:
            tables = (pool.tables, pool.rows, positions)
            paged_decode(query, k, v, *tables, out, space, scale=scale, window=None, pdl=pdl)

        seconds = bench.time(lambda: [layer(*pages) for pages in pool.layers]) / len(pool.layers)
        out.fill_(float("nan"))
        layer(keys, values)
        return seconds

    best: tuple[float, DecodeConfig] | None = None
    for number, config in enumerate(decode_candidates(heads[0] // heads[1], rows, sweep)):
        if number and bench.late:
            bench.left_out += 1
            continue
        row = Row(
            "decode", "default" if number == 0 else "sweep", heads, shape, peer=peer, config=short(config)
        )
        bench.attempt(row, lambda config=config: timed(config, False))
        if row.us is not None:
            row.off = relative(out[few], right)
            if row.off < 1e-2 and (best is None or row.us < best[0]):
                best = (row.us, config)
        finish(row)
    if best is not None:
        for pdl in (False, True):
            name = "best, early launch" if pdl else "best"
            row = Row("decode", name, heads, shape, peer=peer, config=short(best[1]))
            finish(bench.attempt(row, lambda pdl=pdl: timed(best[1], pdl)))
    for name, attend in libraries.items():
        backend = flash.FlashBackend(name, pool.spec, attend, "")  # type: ignore[arg-type]
        finish(
            bench.attempt(
                Row("decode", name, heads, shape, peer=peer),
                lambda backend=backend: _library_decode(bench, backend, pool, query, positions, out),
            )
        )


def _library_decode(
    bench: Bench,
    backend: AttentionBackend,
    pool: Pool,
    query: torch.Tensor,
    positions: torch.Tensor,
    out: torch.Tensor,
) -> float:
    """Seconds a layer. The table is gathered before the timing starts, as its share of a step is small."""

    def step() -> None:
        for keys, values in pool.layers:
            pages = (keys, values, pool.tables)
            backend.decode(query, *pages, pool.rows, positions, out, scale=HEAD_DIM**-0.5, window=None)

    backend.plan(pool.rows, positions, window=None)
    return bench.time(step) / len(pool.layers)


def bench_plan(bench: Bench, rows: int) -> None:
    space = DecodeWorkspace.allocate(rows, 16, 16, HEAD_DIM, 4096, bench.device)
    index = torch.arange(rows, dtype=torch.int32, device=bench.device)
    positions = torch.randint(64, 1024, (rows,), dtype=torch.int32, device=bench.device)

    def run() -> float:
        return bench.time(lambda: [plan_decode(index, positions, space, window=None) for _ in range(20)]) / 20

    bench.rows.append(bench.attempt(Row("plan", "triton", (16, 16), (rows, 0)), run))


def bench_prefill(
    bench: Bench,
    heads: Heads,
    shape: Shape,
    sweep: bool,
    libraries: dict[str, flash.Attend],
    kind: str = "prefill",
) -> None:
    """Whole prompts; for the kind "chunk" the end of one: shape is then how many queries, and the context."""
    rows, context = shape if kind == "prefill" else (1, shape[1])
    length = context if kind == "prefill" else shape[0]
    pool = bench.pool(heads, (rows, context))
    query, out = bench.queries(rows * length, heads)
    borders = torch.arange(rows + 1, dtype=torch.int32, device=bench.device) * length
    flops = 4.0 * rows * length * (context - length / 2) * heads[0] * HEAD_DIM
    scale = HEAD_DIM**-0.5
    peer = PEER_PREFILL.get(shape) if heads == (16, 16) and kind == "prefill" else None
    space = PrefillWorkspace.allocate(HEAD_DIM, bench.device)
    layers = pool.layers[: 4 if context > 2048 else 8]
    keys, values = pool.layers[0]
    # The last queries are compared: they see everything.
    last = min(64, length)
    right = torch.full_like(out[-last:], float("nan"))
    alone = (pool.tables, pool.rows[-1:], torch.tensor([0, last]), pool.contexts[-1:])
    TorchBackend(pool.spec).prefill(query[-last:], keys, values, *alone, right, scale=scale, window=None)

    def measure(row: Row, layer: Callable[[torch.Tensor, torch.Tensor], None]) -> None:
        def run() -> float:
            return bench.time(lambda: [layer(*pages) for pages in layers]) / len(layers)

        out.fill_(float("nan"))
        bench.attempt(row, run)
        if row.us is not None:
            layer(keys, values)
            row.tflop_s, row.off = flops / row.us / 1e6, relative(out[-last:], right)
        bench.rows.append(row)

    default = prefill_config_for(heads[0] // heads[1], heads[0], HEAD_DIM, rows * length, 2)
    others = PREFILL if kind == "prefill" else CHUNKS
    for number, config in enumerate([default, *(others if sweep else [])]):
        if number and bench.late:
            bench.left_out += 1
            continue

        def ours(k: torch.Tensor, v: torch.Tensor, config: PrefillConfig = config) -> None:
            chunks = (pool.tables, pool.rows, borders, pool.contexts)
            paged_prefill(query, k, v, *chunks, out, scale=scale, window=None, workspace=space, config=config)

        who = "default" if number == 0 else "sweep"
        measure(Row(kind, who, heads, shape, peer=peer, config=short(config)), ours)
    for name, attend in libraries.items():
        backend = flash.FlashBackend(name, pool.spec, attend, "")  # type: ignore[arg-type]

        def theirs(k: torch.Tensor, v: torch.Tensor, backend: AttentionBackend = backend) -> None:
            chunks = (pool.tables, pool.rows, borders, pool.contexts)
            backend.prefill(query, k, v, *chunks, out, scale=scale, window=None)

        measure(Row(kind, name, heads, shape, peer=peer), theirs)


def installed() -> dict[str, flash.Attend]:
    """The libraries that can be imported, FlashAttention 2 aside: it takes no pages of 16."""
    names: tuple[FlashName, ...] = ("fa3", "fa4")
    loaded = {name: flash.load(name) for name in names}
    for name, outcome in loaded.items():
        print(f"{name}: {outcome if isinstance(outcome, str) else outcome[1]}")
    return {name: outcome[0] for name, outcome in loaded.items() if not isinstance(outcome, str)}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="where the JSON goes")
    parser.add_argument("--quick", action="store_true", help="the cases with a target only")
    parser.add_argument("--sweep", action="store_true", help="try many configurations for each case")
    parser.add_argument("--only", choices=["decode", "prefill"], help="one half")
    parser.add_argument("--seconds", type=float, default=80.0, help="after which sweeps stop")
    return parser.parse_args()


def cases(args: argparse.Namespace) -> Iterator[tuple[str, Heads, Shape]]:
    groups: list[Heads] = [(16, 16), (32, 8)]
    if args.only != "prefill":
        for heads in groups:
            shapes = [shape for shape in FIRST if shape in PEER_DECODE[heads]]
            rest = [] if args.quick else [shape for shape in PEER_DECODE[heads] if shape not in FIRST]
            yield from (("decode", heads, shape) for shape in shapes + rest)
    if args.only != "decode":
        prefills = [(1, 2048), (1, 8192)] if args.quick else list(PEER_PREFILL)
        yield from (("prefill", groups[0], shape) for shape in prefills)
        if not args.quick:
            yield "prefill", groups[1], (1, 2048)
        yield from (("chunk", groups[0], shape) for shape in CHUNK_SHAPES)


def main() -> None:
    args = arguments()
    if not torch.cuda.is_available():
        raise SystemExit("this measures a GPU, and there is none")
    bench, libraries = Bench(args.seconds), installed()
    print(f"{torch.cuda.get_device_name()}: reads {bench.bandwidth / 1e12:.2f} TB/s")
    if args.only != "prefill":
        for rows in (1, 256):
            bench_plan(bench, rows)
    for kind, heads, shape in cases(args):
        try:
            if kind == "decode":
                bench_decode(bench, heads, shape, args.sweep, libraries)
            else:
                bench_prefill(bench, heads, shape, args.sweep, libraries, kind)
        except Exception as error:  # recorded, like every other failure
            bench.rows.append(
                Row(kind, "setup", heads, shape, error=f"{type(error).__name__}: {str(error)[:300]}")
            )
    header = ["what", "heads", "rows", "who", "us", "of bandwidth", "TFLOP/s", "FA3", "target", "off", "how"]
    print(table(header, [cells(row) for row in best_rows(bench.rows)]))
    if bench.left_out:
        print(f"{bench.left_out} configurations were left out for time")
    if args.out:
        about = {"machine": machine(), "read_bandwidth": bench.bandwidth, "left_out": bench.left_out}
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(
            json.dumps({**about, "rows": [asdict(row) for row in bench.rows]}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
