"""Paged attention on a GPU: `python -m benchmarks.attention [--out FILE] [--quick] [--sweep]`.

--kv-dtype bf16,fp8: over keys and values of eight bits, too, beside those in full; the bytes that count are
then theirs and their scales'.

Decode: microseconds of one layer among many in a replayed CUDA graph, each layer with keys and values of its
own, so that together they exceed the L2 cache; the share is of the read bandwidth measured in the same run.
Prefill: TFLOP/s of causal attention. Beside them what FlashAttention 3 took on an H200 in vllm 0.26, and any
FlashAttention that is installed here. A case that fails is recorded with its error; what does not fit into
--seconds is left out.

--only rotation: instead of all that, what a layer of decode takes with the kernel that rotates in front of
it, and with the rotation inside of it (--attention-backend triton-rotating).
"""

import argparse
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch

from benchmarks.attention_bench import HEAD_DIM, Bench, Layer, Pool, relative
from benchmarks.attention_cases import (
    CHUNK_SHAPES,
    CHUNKS,
    CUTS,
    FIRST,
    PEER_DECODE,
    PEER_PREFILL,
    PREFILL,
    Heads,
    KvKind,
    Row,
    Shape,
    best_rows,
    candidates,
    cells,
)
from benchmarks.attention_rotation import bench_cuda, bench_rotation
from benchmarks.report import machine, table
from engine.gpu.network import programmatic_launch
from kernels.backends import flash
from kernels.backends.base import AttentionBackend
from kernels.backends.reference import TorchBackend
from kernels.caps import FlashName
from kernels.triton.decode import DecodeConfig, DecodeWorkspace, paged_decode, plan_decode
from kernels.triton.decode_config import config_for
from kernels.triton.prefill import PrefillWorkspace, paged_prefill
from kernels.triton.prefill_config import PrefillConfig
from kernels.triton.prefill_config import config_for as prefill_config_for


def decode_candidates(group: int, rows: int, sweep: bool, kv: KvKind) -> Iterator[DecodeConfig]:
    """The configuration in use first, then the sweep's, each way to run with each way to cut."""
    yield config_for(group, HEAD_DIM, rows, 1 if kv == "fp8" else 2)
    if sweep:
        for base, (chunk, units) in itertools.product(candidates(group, kv), CUTS):
            if chunk >= base.block_keys:
                yield replace(base, min_chunk=chunk, units_per_sm=units)


def short(config: DecodeConfig | PrefillConfig) -> str:
    return ", ".join(f"{name} {value}" for name, value in asdict(config).items() if value is not False)


def bench_decode(
    bench: Bench,
    heads: Heads,
    shape: Shape,
    sweep: bool,
    libraries: dict[str, flash.Attend],
    kv: KvKind = "bf16",
) -> None:
    pool, rows = bench.pool(heads, shape, kv), shape[0]
    query, out = bench.queries(rows, heads)
    positions = pool.contexts - 1
    first = pool.layers[0]
    few = slice(0, min(2, rows))
    right = torch.empty_like(out[few])
    reference = TorchBackend(pool.spec)
    scale = HEAD_DIM**-0.5
    asked = (first.keys, first.values, pool.tables, pool.rows[few], positions[few])
    reference.decode(query[few], *asked, right, scale=scale, window=None, scales=first.scales)
    peer = PEER_DECODE.get(heads, {}).get(shape)

    def finish(row: Row) -> None:
        row.kv = kv
        if row.us is not None:
            row.gb_s = pool.bytes / row.us / 1e3
            row.share = row.gb_s * 1e9 / bench.bandwidth
        bench.rows.append(row)

    def timed(config: DecodeConfig, pdl: bool) -> float:
        space = DecodeWorkspace.allocate(
            rows,
            *heads,
            HEAD_DIM,
            pool.spec.max_context,
            bench.device,
            dtype=first.keys.dtype,
            config=config,
        )
        plan_decode(pool.rows, positions, space, window=None)

        def attend(layer: Layer) -> None:
            given = (layer.keys, layer.values, pool.tables, pool.rows, positions)
            paged_decode(query, *given, out, space, scale=scale, window=None, scales=layer.scales, pdl=pdl)

        seconds = bench.time(lambda: [attend(layer) for layer in pool.layers]) / len(pool.layers)
        out.fill_(float("nan"))
        attend(first)
        return seconds

    best: tuple[float, DecodeConfig] | None = None
    for number, config in enumerate(decode_candidates(heads[0] // heads[1], rows, sweep, kv)):
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
        for layer in pool.layers:
            pages = (layer.keys, layer.values, pool.tables)
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
    kv: KvKind = "bf16",
) -> None:
    """Whole prompts; for the kind "chunk" the end of one: shape is then how many queries, and the context."""
    rows, context = shape if kind == "prefill" else (1, shape[1])
    length = context if kind == "prefill" else shape[0]
    pool = bench.pool(heads, (rows, context), kv)
    query, out = bench.queries(rows * length, heads)
    borders = torch.arange(rows + 1, dtype=torch.int32, device=bench.device) * length
    flops = 4.0 * rows * length * (context - length / 2) * heads[0] * HEAD_DIM
    scale = HEAD_DIM**-0.5
    peer = PEER_PREFILL.get(shape) if heads == (16, 16) and kind == "prefill" else None
    space = PrefillWorkspace.allocate(HEAD_DIM, bench.device)
    layers = pool.layers[: 4 if context > 2048 else 8]
    first = pool.layers[0]
    # The last queries are compared: they see everything.
    last = min(64, length)
    right = torch.full_like(out[-last:], float("nan"))
    alone = (pool.tables, pool.rows[-1:], torch.tensor([0, last]), pool.contexts[-1:])
    TorchBackend(pool.spec).prefill(
        query[-last:], first.keys, first.values, *alone, right, scale=scale, window=None, scales=first.scales
    )

    def measure(row: Row, attend: Callable[[Layer], None]) -> None:
        def run() -> float:
            return bench.time(lambda: [attend(layer) for layer in layers]) / len(layers)

        row.kv = kv
        out.fill_(float("nan"))
        bench.attempt(row, run)
        if row.us is not None:
            attend(first)
            row.tflop_s, row.off = flops / row.us / 1e6, relative(out[-last:], right)
        bench.rows.append(row)

    default = prefill_config_for(heads[0] // heads[1], heads[0], HEAD_DIM, rows * length, 2)
    others = PREFILL if kind == "prefill" else CHUNKS
    for number, config in enumerate([default, *(others if sweep else [])]):
        if number and bench.late:
            bench.left_out += 1
            continue

        def ours(layer: Layer, config: PrefillConfig = config) -> None:
            given = (layer.keys, layer.values, pool.tables, pool.rows, borders, pool.contexts)
            how = {"scale": scale, "window": None, "scales": layer.scales}
            paged_prefill(query, *given, out, **how, workspace=space, config=config)  # type: ignore[arg-type]

        who = "default" if number == 0 else "sweep"
        measure(Row(kind, who, heads, shape, peer=peer, config=short(config)), ours)
    for name, attend in libraries.items():
        backend = flash.FlashBackend(name, pool.spec, attend, "")  # type: ignore[arg-type]

        def theirs(layer: Layer, backend: AttentionBackend = backend) -> None:
            given = (layer.keys, layer.values, pool.tables, pool.rows, borders, pool.contexts)
            backend.prefill(query, *given, out, scale=scale, window=None)

        measure(Row(kind, name, heads, shape, peer=peer), theirs)


def installed() -> dict[str, flash.Attend]:
    """The libraries that can be imported, FlashAttention 2 aside: it takes no pages of 16."""
    names: tuple[FlashName, ...] = ("fa3", "fa4")
    loaded = {name: flash.load(name) for name in names}
    for name, outcome in loaded.items():
        print(f"{name}: {outcome if isinstance(outcome, str) else outcome[1]}")
    return {name: outcome[0] for name, outcome in loaded.items() if not isinstance(outcome, str)}


def shapes_of(text: str) -> list[Shape]:
    """Rows and context of each, from "8x1024,64x1024"."""
    found = [part.split("x") for part in text.split(",")]
    if any(
        len(pair) != 2 or not all(number.isdecimal() and int(number) for number in pair) for pair in found
    ):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form ROWSxCONTEXT[,...]")
    return [(int(rows), int(context)) for rows, context in found]


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="where the JSON goes")
    parser.add_argument("--quick", action="store_true", help="the cases with a target only")
    parser.add_argument("--sweep", action="store_true", help="try many configurations for each case")
    parser.add_argument("--only", choices=["decode", "prefill", "rotation"], help="one part")
    parser.add_argument("--kv-dtype", default="bf16", help="bf16, fp8 or both with a comma between them")
    parser.add_argument(
        "--shapes", type=shapes_of, default=[], metavar="ROWSxCONTEXT[,...]", help="decode: these only"
    )
    parser.add_argument("--seconds", type=float, default=80.0, help="after which sweeps stop")
    args = parser.parse_args(argv)
    args.kv_dtype = args.kv_dtype.split(",")
    if set(args.kv_dtype) - {"bf16", "fp8"}:
        parser.error(f"--kv-dtype {','.join(args.kv_dtype)}: there are bf16 and fp8")
    return args


def cases(args: argparse.Namespace) -> Iterator[tuple[str, Heads, Shape, KvKind]]:
    """Both kinds of keys and values side by side."""
    for case in shapes(args):
        yield from ((*case, kv) for kv in args.kv_dtype)


def shapes(args: argparse.Namespace) -> Iterator[tuple[str, Heads, Shape]]:
    groups: list[Heads] = [(16, 16), (32, 8)]
    kind = args.only or "decode"
    if kind != "prefill":
        for heads in groups:
            if args.shapes:
                yield from ((kind, heads, shape) for shape in args.shapes)
                continue
            first = [shape for shape in FIRST if shape in PEER_DECODE[heads]]
            rest = [] if args.quick else [shape for shape in PEER_DECODE[heads] if shape not in FIRST]
            yield from ((kind, heads, shape) for shape in first + rest)
    if args.only in (None, "prefill"):
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
    if args.only in (None, "decode"):
        for rows in (1, 256):
            bench_plan(bench, rows)
    for kind, heads, shape, kv in cases(args):
        # FlashAttention reads keys and values in full.
        others = libraries if kv == "bf16" else {}
        try:
            if kind == "decode":
                bench_decode(bench, heads, shape, args.sweep, others, kv)
            elif kind == "rotation":
                given = bench_rotation(bench, heads, shape, kv)
                if programmatic_launch(bench.device):  # from the same compute capability on
                    bench_cuda(bench, *given, shape, kv, args.sweep)
            else:
                bench_prefill(bench, heads, shape, args.sweep, others, kind, kv)
        except Exception as error:  # recorded, like every other failure
            bench.rows.append(
                Row(kind, "setup", heads, shape, error=f"{type(error).__name__}: {str(error)[:300]}", kv=kv)
            )
    header = [
        "what",
        "heads",
        "rows",
        "kv",
        "who",
        "us",
        "of bandwidth",
        "TFLOP/s",
        "FA3",
        "target",
        "off",
        "how",
    ]
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
