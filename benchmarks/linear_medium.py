"""Products of 32 to 256 rows: the library and its kernels around the product against kernels.triton.gemm.

The latter with the norm's kernel in front and with the norm inside. Started by `python -m benchmarks.linear
--medium`. Each is timed behind itself, as the probe at start does it; the fastest of each kind also behind a
product of the library that writes its input, as in a step, where nothing starts before that one has ended;
the time is what it adds to that product's.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch

from benchmarks.linear_shapes import EPS, Shape, random_weight, reference
from benchmarks.report import table
from kernels.device_linear import LinearScratch, through_cublas
from kernels.product import Product
from kernels.timing import GraphTimer
from kernels.triton.gemm_config import GemmConfig, configs
from kernels.triton.gemm_family import TritonGemm

ROWS = (64, 32, 128, 256)  # the most wanted first
MOST = 12  # configurations of a case
ROTATION = 320 << 20  # bytes of weights behind one timing
FRONT = 2048  # inputs of the product in front
CHECKED = 20000  # outputs up to which results are checked
TOLERANCE = 4e-3
KINDS = ("cublas", "norm + triton", "norm inside")


class _Queues:
    """What one case queues: a product by one of its configurations, None for the library."""

    def __init__(self, what: Product, x: torch.Tensor, scratch: LinearScratch) -> None:
        self.what, self.x = what, x
        pdl = x.is_cuda
        self.library, self.triton = through_cublas(scratch, pdl), TritonGemm(scratch, pdl)
        # Adds nothing to x, which must not grow from time to time.
        options = {"dtype": x.dtype, "device": x.device}
        self.none = torch.zeros(x.size(0), FRONT, **options)  # type: ignore[call-overload]
        self.square = torch.randn(x.size(1), FRONT, **options)  # type: ignore[call-overload]

    def kind(self, config: GemmConfig | None) -> str:
        if config is None:
            return KINDS[0]
        return KINDS[2] if self.what.norm and config.norm_inside else KINDS[1] if self.what.norm else "triton"

    def ready(self, config: GemmConfig | None) -> None:
        if config is not None:
            rows = self.x.size(0)
            self.triton.prepare(self.what, range(rows, rows + 1), config)

    def one(self, config: GemmConfig | None, weight: torch.Tensor, out: torch.Tensor) -> None:
        if config is None:
            self.library(self.what, self.x, weight, out, EPS)
        else:
            self.triton.run(self.what, self.x, weight, out, EPS, config)

    def front(self, weight: torch.Tensor, out: torch.Tensor) -> None:
        torch.addmm(self.x, self.none, self.square.T, out=self.x)

    def behind(self, config: GemmConfig | None, weight: torch.Tensor, out: torch.Tensor) -> None:
        self.front(weight, out)
        self.one(config, weight, out)


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
        most = max((shape.n for shape in shapes if shape.activation == "swiglu"), default=0)
        scratch = LinearScratch.allocate(max(ROWS), widest, most, torch.bfloat16, self.device)
        triton = TritonGemm(scratch, pdl=self.device.type == "cuda")
        began = time.perf_counter()
        cases = [(shape, m) for shape in shapes for m in ROWS]
        triton.compile([(product(s), m, c) for s, m in cases for c in candidates(s, m)])()
        compiled = time.perf_counter() - began
        for shape in shapes:
            weights = [random_weight(shape, self.device) for _ in range(max(2, ROTATION // shape.bytes))]
            for m in ROWS:
                self._case(shape, m, weights, scratch)
        return compiled

    def _case(self, shape: Shape, m: int, weights: Sequence[torch.Tensor], scratch: LinearScratch) -> None:
        options = {"dtype": torch.bfloat16, "device": self.device}
        x = torch.randn(m, shape.k, **options)  # type: ignore[call-overload]
        before = torch.randn(m, shape.columns, **options)  # type: ignore[call-overload]
        want = reference(shape, x, weights[0], before) if shape.n < CHECKED else None
        queues = _Queues(product(shape), x, scratch)
        about: dict[str, object] = {"shape": shape.name, "m": m}
        best: dict[str, tuple[float, GemmConfig | None]] = {}
        for config in (None, *candidates(shape, m)):
            kind = queues.kind(config)
            row = about | {"kind": kind, "config": str(config or ""), "ahead": config.ahead if config else 0}
            run, ready = partial(queues.one, config), partial(queues.ready, config)
            seconds = self._timed(run, weights, before, None if config is None else want, ready, **row)
            if seconds is not None and (kind not in best or seconds < best[kind][0]):
                best[kind] = seconds, config
        behind = self._behind(
            queues, {kind: config for kind, (_, config) in best.items()}, weights, before, about
        )
        for kind, (seconds, config) in best.items():
            how = "" if config is None else f"{config} ahead {config.ahead}"
            times = [f"{seconds * 1e6:.2f}", f"{behind[kind] * 1e6:.2f}" if kind in behind else ""]
            self.lines.append([shape.name, m, kind, *times, how, f"{shape.bytes / self.read_gb_s / 1e3:.2f}"])

    def _behind(
        self,
        queues: "_Queues",
        configs: dict[str, GemmConfig | None],
        weights: Sequence[torch.Tensor],
        before: torch.Tensor,
        about: dict[str, object],
    ) -> dict[str, float]:
        """Seconds that each adds to a product of the library in front."""
        front = self._timed(queues.front, weights, before, None, **about, kind="front")
        found: dict[str, float] = {}
        for kind, config in configs.items():
            row = about | {"kind": f"{kind} behind front", "config": str(config or "")}
            both = self._timed(partial(queues.behind, config), weights, before, None, **row)
            if front is not None and both is not None:
                found[kind] = both - front
        return found

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
                ["product", "rows", "kind", "us", "behind cuBLAS us", "configuration", "floor us"],
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
