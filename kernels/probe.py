"""Which product serves which projection at how many rows: measured once on the device, then kept in a file.

Few row counts are measured; one in between takes the choice of the next measured one above it. Above the
last, cuBLAS serves without a measurement: there it is at the bandwidth's or the tensor cores' limit.
"""

import dataclasses
import functools
import hashlib
import json
import re
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch

from kernels.cuda_driver import DriverError
from kernels.nvrtc import CompileError, cache_folder, write_atomically
from kernels.skinny import (
    Activation,
    Variant,
    prepare,
    prepare_all,
    skinny_linear,
    source,
    unsupported,
    variants,
)

MEASURED_ROWS = (1, 8, 16, 32, 64)
MOST_VARIANTS = 4  # measured for each projection and row count
REPLAYS = 5
EPS = 1e-6  # of the norms that are timed; any value takes equally long

Mode = Literal["auto", "skinny", "cublas"]
# Seconds of everything that a function queues on a device.
Timer = Callable[[Callable[[], None]], float]


@dataclass(frozen=True, slots=True)
class Product:
    """What is computed: act(norm(x) W^T) for W [n, k], stored or added to what is there."""

    n: int
    k: int
    norm: bool
    activation: Activation
    accumulate: bool

    def __str__(self) -> str:
        parts = [
            f"{self.n}x{self.k}",
            "norm" if self.norm else "",
            self.activation,
            "add" if self.accumulate else "",
        ]
        return " ".join(part for part in parts if part and part != "none")


@dataclass(frozen=True, slots=True)
class Choice:
    """A measurement's result. variant: None for cuBLAS. Times in microseconds a product, None where not
    measured."""

    variant: Variant | None
    skinny_us: float | None = None
    cublas_us: float | None = None
    reason: str = ""

    def row(self, name: str, rows: int) -> tuple[str, str, str]:
        """For the start-up table: what, which, why."""
        used = "cuBLAS" if self.variant is None else f"skinny ({self.variant})"
        times = (("skinny", self.skinny_us), ("cuBLAS", self.cublas_us))
        measured = ", ".join(f"{label} {us:.1f} us" for label, us in times if us is not None)
        return f"linear {name} M={rows}", used, self.reason or measured


@dataclass(slots=True)
class Choices:
    """Choices by product and measured rows. Empty: everything through cuBLAS."""

    table: dict[Product, dict[int, Choice]] = field(default_factory=dict)
    names: dict[Product, str] = field(default_factory=dict)

    def variant(self, product: Product, rows: int) -> Variant | None:
        """What serves this many rows; None for cuBLAS."""
        by_rows = self.table.get(product)
        if not by_rows:
            return None
        bucket = min((measured for measured in by_rows if measured >= rows), default=None)
        return None if bucket is None else by_rows[bucket].variant

    def explain(self) -> list[tuple[str, str, str]]:
        """Rows for the start-up table: what, which, why."""
        return [
            choice.row(self.names.get(product, str(product)), rows)
            for product, by_rows in self.table.items()
            for rows, choice in sorted(by_rows.items())
        ]


@dataclass(frozen=True, slots=True)
class Projection:
    """A product of a network with its weights, one a layer; all are used in turn, as in a step."""

    name: str
    product: Product
    weights: Sequence[torch.Tensor]


# Queues one product through cuBLAS, everything around it included: product, x, weight, out, eps.
Library = Callable[[Product, torch.Tensor, torch.Tensor, torch.Tensor, float], None]


def choose(
    projections: Sequence[Projection],
    library: Library,
    *,
    mode: Mode = "auto",
    pdl: bool = False,
    timer: Timer | None = None,
    cache: Path | None = None,
) -> Choices:
    """Measures what the cache does not know, and makes every chosen kernel ready to be captured.

    mode "skinny" and "cublas" leave no choice; ValueError says what "skinny" cannot serve. timer, cache: for
    tests.
    """
    choices = Choices({}, {p.product: p.name for p in projections})
    if mode == "cublas" or not projections:
        return choices
    device = projections[0].weights[0].device
    if timer is None and device.type == "cuda":
        timer = GraphTimer()
    probe = _Probe(library, mode, pdl, timer, device)
    served = []
    for projection in projections:
        reason = probe.refuses(projection)
        if reason is None:
            served.append(projection)
        elif mode == "skinny":
            raise ValueError(f"{projection.name}: {reason}")
        else:
            choices.table[projection.product] = {MEASURED_ROWS[-1]: Choice(None, reason=reason)}
    if served:
        choices.table |= _choose_served(probe, served, cache or cache_file(probe.device))
    return choices


def _choose_served(
    probe: "_Probe", projections: Sequence[Projection], path: Path
) -> dict[Product, dict[int, Choice]]:
    """For what our kernel can do: the choices of the file, and measurements of the rest, kept in it."""
    known = read_cache(path) if probe.mode == "auto" else {}
    wanted = [(projection, rows) for projection in projections for rows in MEASURED_ROWS]
    missing = [(p, rows) for p, rows in wanted if cache_key(p.product, rows, probe.pdl) not in known]
    probe.compile((p.product, rows) for p, rows in missing)
    for projection, rows in missing:
        known[cache_key(projection.product, rows, probe.pdl)] = probe.measure(projection, rows)
    if missing and probe.mode == "auto":
        write_cache(path, known)
    if missing and probe.device.type == "cuda":
        torch.cuda.empty_cache()  # what remains is measured next, for keys and values
    table: dict[Product, dict[int, Choice]] = {}
    for projection, rows in wanted:
        choice = known[cache_key(projection.product, rows, probe.pdl)]
        table.setdefault(projection.product, {})[rows] = probe.ready(projection.product, choice)
    return table


@dataclass(frozen=True, slots=True)
class _Probe:
    """How products are measured on one device."""

    library: Library
    mode: Mode
    pdl: bool
    timer: Timer | None
    device: torch.device

    def refuses(self, projection: Projection) -> str | None:
        """Why our kernel cannot serve, or None."""
        product = projection.product
        if self.device.type != "cuda":
            return f"no such kernel for {self.device.type}"
        capability = torch.cuda.get_device_capability(self.device)
        return unsupported(
            product.n,
            product.k,
            product.activation,
            product.accumulate,
            projection.weights[0].dtype,
            capability,
        )

    def candidates(self, product: Product, rows: int) -> list[Variant]:
        return variants(rows, product.n, product.k, product.activation, _multiprocessors(self.device))[
            :MOST_VARIANTS
        ]

    def compile(self, wanted: Iterable[tuple[Product, int]]) -> None:
        """All candidates at once, on all cores."""
        pairs = [
            (product.k, variant) for product, rows in wanted for variant in self.candidates(product, rows)
        ]
        if pairs:
            try:
                prepare_all(pairs, self.device)
            except CompileError:
                return  # each candidate meets the same error and says so

    def ready(self, product: Product, choice: Choice) -> Choice:
        """The choice with its kernel loaded; cuBLAS where that is not possible any more."""
        if choice.variant is None:
            return choice
        try:
            prepare(product.k, choice.variant, self.device)
        except (CompileError, DriverError) as error:
            return dataclasses.replace(choice, variant=None, reason=str(error))
        return choice

    def measure(self, projection: Projection, rows: int) -> Choice:
        product, weights, timer = projection.product, projection.weights, self.timer
        assert timer is not None
        options = {"dtype": weights[0].dtype, "device": self.device}
        x = torch.randn(rows, product.k, **options)  # type: ignore[call-overload]
        columns = product.n // 2 if product.activation == "swiglu" else product.n
        out = torch.zeros(rows, columns, **options)  # type: ignore[call-overload]
        best: tuple[float, Variant] | None = None
        failure = ""
        for variant in self.candidates(product, rows):
            try:
                prepare(product.k, variant, self.device)
                seconds = timer(functools.partial(self._ours, product, variant, weights, x, out))
            except (CompileError, DriverError) as error:
                failure = str(error)
                continue
            if best is None or seconds < best[0]:
                best = (seconds, variant)
        cublas = timer(functools.partial(self._theirs, product, weights, x, out))
        per_product = 1e6 / len(weights)
        if best is None:
            if self.mode == "skinny":
                raise ValueError(f"{projection.name}: {failure}")
            return Choice(None, None, cublas * per_product, failure)
        ours = best[0] < cublas or self.mode == "skinny"
        return Choice(best[1] if ours else None, best[0] * per_product, cublas * per_product)

    def _ours(
        self,
        product: Product,
        variant: Variant,
        weights: Sequence[torch.Tensor],
        x: torch.Tensor,
        out: torch.Tensor,
    ) -> None:
        for weight in weights:
            skinny_linear(
                x,
                weight,
                out,
                eps=EPS if product.norm else None,
                activation=product.activation,
                accumulate=product.accumulate,
                variant=variant,
                pdl=self.pdl,
            )

    def _theirs(
        self, product: Product, weights: Sequence[torch.Tensor], x: torch.Tensor, out: torch.Tensor
    ) -> None:
        for weight in weights:
            self.library(product, x, weight, out, EPS)


class GraphTimer:
    """Median time of one replay of a CUDA graph of everything that a function queues.

    Every capture uses the same stream: cuBLAS takes a workspace for each one that it meets.
    """

    def __init__(self, replays: int = REPLAYS) -> None:
        self.replays = replays
        self.stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self.start, self.end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]

    def __call__(self, body: Callable[[], None]) -> float:
        """Seconds; the first replay does not count."""
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        with torch.cuda.stream(self.stream):
            body()
            self.stream.synchronize()
            # torch.cuda.graph would also collect garbage, which takes longer than all the rest.
            graph.capture_begin()
            body()
            graph.capture_end()
        times: list[float] = []
        for i in range(self.replays + 1):
            self.start.record()
            graph.replay()
            self.end.record()
            self.end.synchronize()
            if i > 0:
                times.append(self.start.elapsed_time(self.end) / 1e3)
        return statistics.median(times)


def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


def cache_file(device: torch.device) -> Path:
    """Where choices for this kind of device, torch and kernel are kept."""
    name = re.sub(r"\W+", "-", torch.cuda.get_device_name(device))
    kernel = hashlib.sha256(
        (source() + Path(variants.__code__.co_filename).read_text()).encode()
    ).hexdigest()[:16]
    return cache_folder() / f"linear-{name}-{torch.__version__}-{kernel}.json"


def cache_key(product: Product, rows: int, pdl: bool) -> str:
    return f"{product} M={rows}{' pdl' if pdl else ''}"


def read_cache(path: Path) -> dict[str, Choice]:
    """Choices by key; a file that is missing or damaged knows nothing."""
    try:
        entries: Mapping[str, dict[str, object]] = json.loads(path.read_text())
        return {key: _decode(entry) for key, entry in entries.items()}
    except (OSError, ValueError, TypeError, AttributeError, KeyError):
        return {}


def write_cache(path: Path, choices: Mapping[str, Choice]) -> None:
    """Failures that may be gone the next time are not kept."""
    entries = {key: dataclasses.asdict(choice) for key, choice in choices.items() if not choice.reason}
    write_atomically(path, (json.dumps(entries, indent=1) + "\n").encode())


def _decode(entry: dict[str, object]) -> Choice:
    variant = entry.pop("variant")
    if variant is not None and not isinstance(variant, dict):
        raise TypeError("a variant is an object or null")
    return Choice(None if variant is None else Variant(**variant), **entry)  # type: ignore[arg-type]
