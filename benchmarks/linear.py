"""Products of a decode step: cuBLAS against kernels/cuda/skinny.cu, each alone and as a whole d32 step.

`python -m benchmarks.linear [--quick] [--medium] [--out FILE]` needs a Hopper; --medium compares
kernels.triton.gemm instead (benchmarks.linear_medium), with --quick for d32's products behind a norm alone.
Every case is timed as a replay of a CUDA graph over weights that together exceed the L2 cache. The share is
of the read bandwidth measured in the same run. A case that fails is recorded with its error; what does not
fit into --seconds is left out and counted.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from benchmarks.linear_medium import Medium
from benchmarks.linear_shapes import D32, D32_HEAD, OTHERS, Shape, random_weight, reference
from benchmarks.report import machine, table
from kernels.skinny import Variant, prepare, prepare_all, skinny_linear, variants
from kernels.timing import GraphTimer

ROTATION = 320 << 20  # bytes of weights behind one timing
REPLAYS = 12
MEDIUM_SECONDS = 46.0  # no new case of --medium starts after this time
LAYERS = 32
# Overlapped or not, channel blocks fetched ahead, loads with the wide hint.
CHAINS = ((False, 0, False), (True, 0, False), (True, 2, False), (True, 8, False), (True, 0, True))


@dataclass(slots=True)
class Bench:
    """One run: its results, and the best variant seen for each case."""

    device: torch.device
    timer: GraphTimer
    read_gb_s: float
    deadline: float
    most_variants: int
    rows: list[dict[str, object]] = field(default_factory=list)
    best: dict[tuple[str, int, bool], tuple[float, Variant]] = field(default_factory=dict)
    left_out: int = 0

    def record(self, size: int, run: Callable[[], float], **about: object) -> float | None:
        """Adds a row with the seconds that `run` returns, or its error."""
        if time.perf_counter() > self.deadline:
            self.left_out += 1
            return None
        row: dict[str, object] = dict(about)
        seconds = None
        try:
            seconds = run()
            rate = size / seconds / 1e9
            row |= {
                "us": round(seconds * 1e6, 3),
                "gb_s": round(rate, 1),
                "share": round(rate / self.read_gb_s, 3),
            }
        except Exception as error:
            row["failed"] = f"{type(error).__name__}: {error}"[:600]
        self.rows.append(row)
        return seconds


def read_bandwidth(timer: GraphTimer, device: torch.device) -> float:
    """GB/s of a sum over 4 GB, the best of a few."""
    values = torch.ones(1 << 30, dtype=torch.float32, device=device)
    out = torch.empty((), device=device)

    def body() -> None:
        torch.sum(values, 0, out=out)

    seconds = timer(body)
    return values.numel() * 4 / seconds / 1e9


def call(
    shape: Shape, x: torch.Tensor, weight: torch.Tensor, out: torch.Tensor, variant: Variant, pdl: bool
) -> None:
    skinny_linear(
        x,
        weight,
        out,
        eps=shape.eps,
        activation=shape.activation,
        accumulate=shape.accumulate,
        variant=variant,
        pdl=pdl,
    )


def candidates(shape: Shape, m: int, most: int) -> list[Variant]:
    sms = torch.cuda.get_device_properties(torch.cuda.current_device()).multi_processor_count
    return variants(m, shape.n, shape.k, shape.activation, sms)[:most]


def measure_shape(bench: Bench, shape: Shape, rows: list[int]) -> None:
    """cuBLAS's plain product and every variant, launched one after the other, without and with overlap."""
    weights = [random_weight(shape, bench.device) for _ in range(max(2, ROTATION // shape.bytes))]
    for m in rows:
        x = torch.randn(m, shape.k, dtype=torch.bfloat16, device=bench.device)
        out = torch.zeros(m, shape.n, dtype=torch.bfloat16, device=bench.device)

        def cublas(x: torch.Tensor = x, out: torch.Tensor = out) -> float:
            def body() -> None:
                for weight in weights:
                    torch.mm(x, weight.T, out=out)

            return bench.timer(body) / len(weights)

        bench.record(shape.bytes, cublas, shape=shape.name, m=m, kind="cublas")
        for variant in candidates(shape, m, bench.most_variants):
            _measure_variant(bench, shape, variant, weights, x)


def _measure_variant(
    bench: Bench, shape: Shape, variant: Variant, weights: list[torch.Tensor], x: torch.Tensor
) -> None:
    m = x.size(0)
    before = torch.randn(m, shape.columns, dtype=torch.bfloat16, device=bench.device)
    for pdl in (False, True):
        about: dict[str, object] = {
            "shape": shape.name,
            "m": m,
            "kind": "skinny",
            "variant": str(variant),
            "pdl": pdl,
        }

        def run(pdl: bool = pdl, about: dict[str, object] = about) -> float:
            prepare(shape.k, variant, bench.device)
            out = before.clone()
            call(shape, x, weights[0], out, variant, pdl)
            want = reference(shape, x, weights[0], before) if shape.n < 20000 else None
            if want is not None:
                error = ((out.double() - want).norm() / want.norm()).item()
                if not error < 4e-3:
                    raise ArithmeticError(f"relative error {error:.3g}")

            def body() -> None:
                for weight in weights:
                    call(shape, x, weight, out, variant, pdl)

            return bench.timer(body) / len(weights)

        seconds = bench.record(shape.bytes, run, **about)
        key: tuple[str, int, bool] = (shape.name, m, pdl)
        if seconds is not None and (key not in bench.best or seconds < bench.best[key][0]):
            bench.best[key] = (seconds, variant)


@dataclass(slots=True)
class Chain:
    """All products of a d32 step, each reading what the one before wrote."""

    layers: list[list[torch.Tensor]]
    head: torch.Tensor

    @classmethod
    def random(cls, device: torch.device) -> "Chain":
        return cls(
            [[random_weight(s, device) for s in D32] for _ in range(LAYERS)], random_weight(D32_HEAD, device)
        )

    @property
    def bytes(self) -> int:
        return LAYERS * sum(shape.bytes for shape in D32) + D32_HEAD.bytes

    def steps(self, m: int) -> Iterator[tuple[Shape, torch.Tensor, torch.Tensor, torch.Tensor]]:
        """Shape, input, weight, output of each product; the first 2048 columns of qkv stand for attention."""
        device = self.head.device

        def buffer(width: int) -> torch.Tensor:
            return torch.zeros(m, width, dtype=torch.bfloat16, device=device)

        x, qkv, hidden, logits = torch.randn_like(buffer(2048)), buffer(6144), buffer(8192), buffer(65536)
        for weights in self.layers:
            links = ((x, qkv), (qkv[:, :2048], x), (x, hidden), (hidden, x))
            for shape, weight, (source, target) in zip(D32, weights, links, strict=True):
                yield shape, source, weight, target
        yield D32_HEAD, x, self.head, logits


def measure_chain(bench: Bench, chain: Chain, m: int) -> None:
    """All products of a step: cuBLAS, ours, ours overlapped, the latter with weights fetched ahead."""
    steps = list(chain.steps(m))

    def cublas() -> float:
        scratch = {shape.n: torch.empty_like(target) for shape, _, _, target in steps}

        def body() -> None:
            for shape, source, weight, _ in steps:
                torch.mm(source, weight.T, out=scratch[shape.n])

        return bench.timer(body)

    bench.record(chain.bytes, cublas, shape="d32 step", m=m, kind="cublas")
    for pdl, ahead, wide in CHAINS:
        if wide and m not in (1, 8):
            continue

        def ours(pdl: bool = pdl, ahead: int = ahead, wide: bool = wide) -> float:
            def body() -> None:
                for shape, source, weight, target in steps:
                    best = bench.best[shape.name, m, pdl][1]
                    call(shape, source, weight, target, replace(best, prefetch=ahead, wide=wide), pdl)

            return bench.timer(body)

        about: dict[str, object] = {"pdl": pdl, "prefetch": ahead, "wide": wide}
        bench.record(chain.bytes, ours, shape="d32 step", m=m, kind="skinny", **about)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="d32 alone, fewer cases")
    parser.add_argument("--medium", action="store_true", help="32 to 256 rows against kernels.triton.gemm")
    parser.add_argument("--out", type=Path, help="file for all results, JSON")
    parser.add_argument("--seconds", type=float, default=85.0, help="no new case starts after this time")
    options = parser.parse_args()
    began = time.perf_counter()
    device = torch.device("cuda", torch.cuda.current_device())
    torch.manual_seed(0)
    if options.medium:
        quick = [shape for shape in D32 if shape.eps is not None]
        medium(quick if options.quick else [*D32, D32_HEAD, *OTHERS[:2]], device, began, options.out)
        return
    rows = [1, 8, 64] if options.quick else [1, 2, 4, 8, 16, 32, 64]
    most = 3 if options.quick else 6
    timer = GraphTimer(REPLAYS)
    bench = Bench(device, timer, read_bandwidth(timer, device), began + options.seconds, most)
    print(f"{torch.cuda.get_device_name()}: reads {bench.read_gb_s:,.0f} GB/s")
    shapes = [*D32, D32_HEAD, *([] if options.quick else OTHERS)]
    wanted = [(s.k, v) for s in shapes for m in rows for v in candidates(s, m, most)]
    prepare_all(wanted, device)()
    compiled = time.perf_counter() - began
    print(f"{len(set(wanted))} kernels ready after {compiled:.1f} s")
    for shape in (*D32, D32_HEAD):
        measure_shape(bench, shape, [*rows, *([] if options.quick else [128, 256])])
    chain = Chain.random(device)
    for m in rows:
        measure_chain(bench, chain, m)
    del chain
    for shape in shapes[len(D32) + 1 :]:
        measure_shape(bench, shape, [*rows, 128, 256])
    report(bench, options.out, compiled, time.perf_counter() - began)


def medium(shapes: list[Shape], device: torch.device, began: float, out: Path | None) -> None:
    """The cases of 32 to 256 rows, within a minute."""
    timer = GraphTimer(REPLAYS)
    run = Medium(device, timer, read_bandwidth(timer, device), began + MEDIUM_SECONDS)
    print(f"{torch.cuda.get_device_name()}: reads {run.read_gb_s:,.0f} GB/s")
    compiled = run.measure(shapes)
    run.report()
    print(f"{time.perf_counter() - began:.0f} s, {compiled:.1f} to compile")
    if out is not None:
        settings: dict[str, object] = {
            "read_gb_s": run.read_gb_s,
            "left_out": run.left_out,
            "compiled": compiled,
        }
        write(out, settings, run.rows)


def write(out: Path, settings: dict[str, object], rows: list[dict[str, object]]) -> None:
    out.write_text(json.dumps({"machine": machine(), "settings": settings, "rows": rows}, indent=1) + "\n")


def report(bench: Bench, out: Path | None, compiled: float, seconds: float) -> None:
    """Prints the best of each case beside cuBLAS, and writes everything to `out`."""
    lines: list[list[object]] = []
    cublas = {(r["shape"], r["m"]): r.get("us") for r in bench.rows if r["kind"] == "cublas"}
    for (shape, m, pdl), (best, variant) in bench.best.items():
        lines.append(
            [shape, m, "pdl" if pdl else "", str(cublas.get((shape, m))), f"{best * 1e6:.2f}", str(variant)]
        )
    print(table(["product", "rows", "", "cuBLAS us", "ours us", "variant"], lines))
    for row in bench.rows:
        if row["shape"] == "d32 step" or "failed" in row:
            print(json.dumps(row))
    print(f"{len(bench.rows)} cases, {bench.left_out} left out; {seconds:.0f} s, {compiled:.1f} to compile")
    if out is not None:
        settings: dict[str, object] = {
            "read_gb_s": bench.read_gb_s,
            "left_out": bench.left_out,
            "seconds": seconds,
            "compiled": compiled,
        }
        write(out, settings, bench.rows)


if __name__ == "__main__":
    main()
