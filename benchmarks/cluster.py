"""Decode attention by clusters beside Triton's: `python -m benchmarks.cluster [--out FILE] [--seconds S]`.

Microseconds of one layer among many in a replayed CUDA graph, each layer with keys and values of its own, and
launched before the one in front has ended. "rule": what `kernels.cluster` would choose for these entries and
this context; the rest is the table of sizes that the rule should agree with.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks.attention_bench import BLOCK_SIZE, HEAD_DIM, Bench, Pool, relative
from benchmarks.attention_cases import Heads, Row, cells
from benchmarks.attention_cases import Shape as Sizes
from benchmarks.report import machine, table
from kernels.backends.reference import TorchBackend
from kernels.cluster import ClusterDecode, Shape, Variant
from kernels.triton.decode import DecodeWorkspace, paged_decode, plan_decode

SCALE = HEAD_DIM**-0.5
HEADS: tuple[Heads, ...] = ((16, 16), (16, 8), (32, 8))
SHAPES: tuple[Sizes, ...] = tuple(
    (rows, context)
    for rows in (1, 2, 4, 8, 64)
    for context in (128, 256, 512, 1024, 2048, 4096, 8192, 32768)
    if rows * context <= 65536
)
BLOCKS = ((4, 1), (4, 3), (8, 1), (8, 2), (16, 1))  # warps, and blocks that shall fit on a multiprocessor
QUICK = ((8, 1),)


class Case:
    """One shape: what is common to all the ways to compute it."""

    def __init__(self, bench: Bench, heads: Heads, sizes: Sizes) -> None:
        self.bench, self.heads, self.sizes = bench, heads, sizes
        self.pool: Pool = bench.pool(heads, sizes)
        self.query, self.out = bench.queries(sizes[0], heads)
        self.positions = self.pool.contexts - 1
        self.tables = (self.pool.tables, self.pool.rows, self.positions)
        self.few = slice(0, min(2, sizes[0]))
        self.right = torch.empty_like(self.out[self.few])
        few, first = self.few, self.pool.layers[0]
        index = (self.pool.tables, self.pool.rows[few], self.positions[few])
        TorchBackend(self.pool.spec).decode(
            self.query[few], first.keys, first.values, *index, self.right, scale=SCALE, window=None
        )

    def cluster(self, variant: Variant | None) -> float:
        shape = Shape(*self.heads, HEAD_DIM, BLOCK_SIZE)
        kernel = ClusterDecode(
            shape, self.sizes[1], self.bench.device, size=2, threshold=1024, forced=variant
        )

        def layer(k: torch.Tensor, v: torch.Tensor) -> None:
            kernel.decode(self.query, k, v, *self.tables, self.out, scale=SCALE, window=None, pdl=True)

        return self.bench.time(lambda: [layer(p.keys, p.values) for p in self.pool.layers]) / len(
            self.pool.layers
        )

    def triton(self) -> float:
        space = DecodeWorkspace.allocate(
            self.sizes[0], *self.heads, HEAD_DIM, self.sizes[1], self.bench.device
        )
        plan_decode(self.pool.rows, self.positions, space, window=None)

        def layer(k: torch.Tensor, v: torch.Tensor) -> None:
            paged_decode(self.query, k, v, *self.tables, self.out, space, scale=SCALE, window=None, pdl=True)

        return self.bench.time(lambda: [layer(p.keys, p.values) for p in self.pool.layers]) / len(
            self.pool.layers
        )

    def measure(self, who: str, variant: Variant | None, config: str) -> None:
        row = Row("decode", who, self.heads, self.sizes, config=config)
        self.out.fill_(float("nan"))
        self.bench.attempt(row, self.triton if who == "triton" else lambda: self.cluster(variant))
        if row.us is not None:
            # All layers write the same place; the last one's result is compared with the first one's.
            row.gb_s = self.pool.bytes / row.us / 1e3
            row.share = row.gb_s * 1e9 / self.bench.bandwidth
            row.off = self._off(who, variant)
        self.bench.rows.append(row)

    def _off(self, who: str, variant: Variant | None) -> float:
        whole, self.pool.layers = self.pool.layers, self.pool.layers[:1]
        if who == "triton":
            self.triton()
        else:
            self.cluster(variant)
        self.pool.layers = whole
        return relative(self.out[self.few], self.right)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="where the JSON goes")
    parser.add_argument("--quick", action="store_true", help="up to 8 rows, one kind of block")
    parser.add_argument("--seconds", type=float, default=400.0, help="after which variants are left out")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("this measures a GPU, and there is none")
    bench = Bench(args.seconds)
    print(f"{torch.cuda.get_device_name()}: reads {bench.bandwidth / 1e12:.2f} TB/s")
    shapes = [(r, n) for r, n in SHAPES if 256 <= n <= 8192 and r <= 8] if args.quick else SHAPES
    for heads in HEADS:
        for sizes in shapes:
            case = Case(bench, heads, sizes)
            case.measure("triton", None, "")
            case.measure("rule", None, str(case_rule(heads, sizes)))
            for size in (2, 4, 8) if args.quick else (1, 2, 4, 8):
                for warps, blocks in QUICK if args.quick else BLOCKS:
                    if bench.late or sizes[0] * heads[1] * size > 2048:
                        bench.left_out += 1
                        continue
                    case.measure("cluster", Variant(size, warps, blocks), f"{size}, {warps} x {blocks}")
    header = ["what", "heads", "rows", "who", "us", "of bandwidth", "TFLOP/s", "FA3", "target", "off", "how"]
    print(table(header, [cells(row) for row in bench.rows]))
    if args.out:
        about = {"machine": machine(), "read_bandwidth": bench.bandwidth, "left_out": bench.left_out}
        args.out.parent.mkdir(parents=True, exist_ok=True)
        rows = [asdict(row) for row in bench.rows]
        args.out.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")


def case_rule(heads: Heads, sizes: Sizes) -> Variant:
    shape = Shape(*heads, HEAD_DIM, BLOCK_SIZE)
    return ClusterDecode(shape, sizes[1], torch.device("cuda"), size=2, threshold=1024).variant(sizes[0])


if __name__ == "__main__":
    main()
