"""Products of 32 to 256 rows: the library and its kernels around the product against kernels.triton.gemm.

Started by `python -m benchmarks.linear --medium`.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch

from benchmarks.linear_shapes import EPS, Shape, random_weight, reference
from benchmarks.report import table
from kernels.device_linear import LinearScratch, through_cublas, through_triton
from kernels.probe import Product
from kernels.timing import GraphTimer
from kernels.triton.gemm_config import GemmConfig, configs

ROWS = (64, 32, 128, 256)  # the most wanted first
MOST = 12  # configurations of a case
ROTATION = 320 << 20  # bytes of weights behind one timing
CHECKED = 20000  # outputs up to which results are checked
TOLERANCE = 4e-3


@dataclass(slots=True)
class Medium:
    """One run and its results."""

    device: torch.device
    timer: GraphTimer
    read_gb_s: float
    deadline: float
    rows: list[dict[str, object]] = field(default_factory=list)
    lines: list[list[object]] = field(default_factory=list)
    left_out: int = 0

    def measure(self, shapes: Sequence[Shape]) -> float:
        """Runs everything, all overlapped as in a step; returns the seconds that compiling took."""
        widest = max(shape.k for shape in shapes)
        most = max(shape.n for shape in shapes if shape.activation == "swiglu")
        scratch = LinearScratch.allocate(max(ROWS), widest, most, torch.bfloat16, self.device)
        triton = through_triton(scratch, pdl=True)
        began = time.perf_counter()
        cases = [(shape, m) for shape in shapes for m in ROWS]
        triton.prepare_all([(product(s), c) for s, m in cases for c in candidates(s, m)])
        compiled = time.perf_counter() - began
        for shape in shapes:
            weights = [random_weight(shape, self.device) for _ in range(max(2, ROTATION // shape.bytes))]
            for m in ROWS:
                self._case(shape, m, weights, scratch)
        return compiled

    def _case(self, shape: Shape, m: int, weights: Sequence[torch.Tensor], scratch: LinearScratch) -> None:
        what, options = product(shape), {"dtype": torch.bfloat16, "device": self.device}
        x = torch.randn(m, shape.k, **options)  # type: ignore[call-overload]
        before = torch.randn(m, shape.columns, **options)  # type: ignore[call-overload]
        want = reference(shape, x, weights[0], before) if shape.n < CHECKED else None
        library, triton = through_cublas(scratch, pdl=True), through_triton(scratch, pdl=True)

        def theirs(weight: torch.Tensor, out: torch.Tensor) -> None:
            library(what, x, weight, out, EPS)

        cublas = self._timed(theirs, weights, before, None, shape=shape.name, m=m, kind="cublas")
        best: tuple[float, GemmConfig] | None = None
        for config in candidates(shape, m):

            def ours(weight: torch.Tensor, out: torch.Tensor, config: GemmConfig = config) -> None:
                triton.run(what, x, weight, out, EPS, config)

            def ready(config: GemmConfig = config) -> None:
                triton.prepare(what, config)

            about = {"shape": shape.name, "m": m, "kind": "triton", "config": str(config)}
            seconds = self._timed(ours, weights, before, want, ready, **about, ahead=config.ahead)
            if seconds is not None and (best is None or seconds < best[0]):
                best = seconds, config
        floor = f"{shape.bytes / self.read_gb_s / 1e3:.2f}"
        mine = ("", "") if best is None else (f"{best[0] * 1e6:.2f}", f"{best[1]} ahead {best[1].ahead}")
        self.lines.append([shape.name, m, "" if cublas is None else f"{cublas * 1e6:.2f}", *mine, floor])

    def _timed(
        self,
        run: Callable[[torch.Tensor, torch.Tensor], None],
        weights: Sequence[torch.Tensor],
        before: torch.Tensor,
        want: torch.Tensor | None,
        ready: Callable[[], None] | None = None,
        **about: object,
    ) -> float | None:
        """Seconds of one product; a failure becomes part of the row."""
        if time.perf_counter() > self.deadline:
            self.left_out += 1
            return None
        row, out, seconds = dict(about), before.clone(), None

        def body() -> None:
            for weight in weights:
                run(weight, out)

        try:
            if ready is not None:
                ready()
            run(weights[0], out)
            if want is not None:
                row["error"] = error = ((out.double() - want).norm() / want.norm()).item()
                if not error < TOLERANCE:
                    raise ArithmeticError(f"relative error {error:.3g}")
            seconds = self.timer(body) / len(weights)
            row["us"] = round(seconds * 1e6, 3)
        except Exception as error:
            seconds = None
            row["failed"] = f"{type(error).__name__}: {error}"[:400]
        self.rows.append(row)
        return seconds

    def report(self) -> None:
        print(
            table(
                ["product", "rows", "cuBLAS + kernels us", "triton us", "configuration", "floor us"],
                self.lines,
            )
        )
        failed = [row for row in self.rows if "failed" in row]
        for row in failed[:8]:
            print(row)
        print(f"{len(self.rows)} cases, {len(failed)} failed, {self.left_out} left out")


def product(shape: Shape) -> Product:
    return Product(shape.n, shape.k, shape.eps is not None, shape.activation, shape.accumulate)


def candidates(shape: Shape, m: int) -> list[GemmConfig]:
    """For 64 rows also without weights requested ahead."""
    found = configs(m, shape.n, shape.k, shape.eps is not None, MOST)
    return [*found, *(replace(config, ahead=0) for config in found[:2] if m == 64)]
