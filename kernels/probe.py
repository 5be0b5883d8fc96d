"""Which product serves which projection at how many rows: measured once on the device, then kept in a file.

Few row counts are measured; one in between takes the choice of the next measured one above it. Above the
last, cuBLAS serves without a measurement: there it is at the bandwidth's or the tensor cores' limit. Against
it stand families of kernels (kernels.product), which are handed in: this module must not need Triton.
"""

import contextlib
import dataclasses
import functools
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch

from kernels.cuda_driver import DriverError
from kernels.nvrtc import CompileError
from kernels.probe_file import Choice, cache_file, cache_key, read_cache, write_cache
from kernels.product import CUBLAS, Config, Family, Library, Pick, Product
from kernels.quantize import Weight
from kernels.timing import GraphTimer, Timer

__all__ = ["Choice", "Choices", "Mode", "Projection", "choose"]

MEASURED_ROWS = (1, 4, 8, 16, 32, 64, 128, 256)
MOST_DIFFERENT = 0.02  # relative to the result, in bfloat16
# Other kernels that are worth a look in whole steps: how many, and how much slower by themselves.
MOST_NEAR, NEAR = 4, 1.4
EPS = 1e-6  # of the norms that are timed; any value takes equally long

# All but the first and the last are names of families.
Mode = Literal["auto", "skinny", "streamed", "triton", "cublas"]


@dataclass(slots=True)
class Choices:
    """Choices by product and measured rows, and the families that they are among. Empty: everything through
    cuBLAS."""

    table: dict[Product, dict[int, Choice]] = field(default_factory=dict)
    names: dict[Product, str] = field(default_factory=dict)
    families: Sequence[Family] = ()
    _by_name: Mapping[str, Family] = field(init=False)

    def __post_init__(self) -> None:
        self._by_name = {family.name: family for family in self.families}

    def pick(self, product: Product, rows: int) -> Pick | None:
        """What serves this many rows; None for cuBLAS."""
        by_rows = self.table.get(product)
        if not by_rows:
            return None
        bucket = min((measured for measured in by_rows if measured >= rows), default=None)
        return None if bucket is None else by_rows[bucket].variant

    def serve(self, product: Product, x: torch.Tensor, weight: Weight, out: torch.Tensor, eps: float) -> bool:
        """Whether the choice is a family's kernel; if so, queues it."""
        pick = self.pick(product, x.size(0))
        if pick is None:
            return False
        self._by_name[pick.family].run(product, x, weight, out, eps, pick.config)
        return True

    def put(self, product: Product, rows: int, pick: Pick | None) -> None:
        """Another kernel, None for cuBLAS, for a measured number of rows and those in between that take its
        choice. No graph may have been captured. CompileError, DriverError.
        """
        by_rows = self.table[product]
        smaller = max((measured for measured in by_rows if measured < rows), default=0)
        if pick is not None:
            self._by_name[pick.family].prepare(product, range(smaller + 1, rows + 1), pick.config)
        by_rows[rows] = dataclasses.replace(by_rows[rows], variant=pick)

    def remark(self, product: Product, rows: int, reason: str) -> None:
        """One more reason for a choice, for the start-up table."""
        choice = self.table[product][rows]
        reasons = "; ".join(part for part in (choice.reason, reason) if part)
        self.table[product][rows] = dataclasses.replace(choice, reason=reasons)

    def fingerprint(self) -> str:
        """Of what serves: times of whole steps depend on it."""
        picks = [
            f"{product} {rows} {choice.variant}"
            for product, by_rows in self.table.items()
            for rows, choice in by_rows.items()
        ]
        return hashlib.sha256("\n".join(sorted(picks)).encode()).hexdigest()[:16]

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
    weights: Sequence[Weight]


def choose(
    projections: Sequence[Projection],
    library: Library,
    families: Sequence[Family],
    *,
    mode: Mode = "auto",
    pdl: bool = False,
    timer: Timer | None = None,
    cache: Path | None = None,
    capability: tuple[int, int] | None = None,
) -> Choices:
    """Measures what the cache does not know, and makes every chosen kernel ready to be captured.

    pdl: whether library and families may start before the kernel in front has ended. Every mode but "auto"
    leaves no choice; ValueError says what the family of that name cannot serve. timer, cache, capability: for
    tests.
    """
    choices = Choices({}, {p.product: p.name for p in projections}, families)
    if mode == "cublas" or not projections:
        return choices
    device = projections[0].weights[0].device
    if device.type == "cuda":
        timer = timer or GraphTimer()
        capability = capability or torch.cuda.get_device_capability(device)
    allowed = [family for family in families if mode in ("auto", family.name)]
    if not allowed and mode != "auto":
        raise ValueError(f"{projections[0].name}: there are no kernels of the kind {mode} here")
    probe = _Probe(library, allowed, mode, pdl, timer, device, capability)
    served = []
    for projection in projections:
        reason = probe.refuses(projection)
        if reason is None:
            served.append(projection)
        elif mode != "auto":
            raise ValueError(f"{projection.name}: {reason}")
        else:
            choices.table[projection.product] = {MEASURED_ROWS[-1]: Choice(None, reason=reason)}
    if served:
        choices.table |= _choose_served(probe, served, cache or cache_file(device, families))
    return choices


def _choose_served(
    probe: "_Probe", projections: Sequence[Projection], path: Path
) -> dict[Product, dict[int, Choice]]:
    """For what a family can do: the choices of the file, and measurements of the rest, kept in it."""
    known = read_cache(path, probe.families) if probe.mode == "auto" else {}
    wanted = [
        (projection, rows)
        for projection in projections
        for rows in MEASURED_ROWS
        if probe.candidates(projection.product, rows)
    ]
    missing = [
        (p, rows)
        for p, rows in wanted
        if not probe.can_use(p.product, known.get(cache_key(p.product, rows, probe.pdl)))
    ]
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
        by_rows = table.setdefault(projection.product, {})
        served = range(max(by_rows, default=0) + 1, rows + 1)
        by_rows[rows] = probe.ready(projection.product, served, choice)
    return table


@dataclass(frozen=True, slots=True)
class _Probe:
    """How products are measured on one device. families: those that the mode allows. serving: those of them
    that have not refused a product."""

    library: Library
    families: Sequence[Family]
    mode: Mode
    pdl: bool
    timer: Timer | None
    device: torch.device
    capability: tuple[int, int] | None
    serving: dict[Product, dict[str, Family]] = field(default_factory=dict)

    def refuses(self, projection: Projection) -> str | None:
        """Why no family can serve, or None."""
        if self.capability is None:
            return f"no such kernel for {self.device.type}"
        product, dtype = projection.product, projection.weights[0].dtype
        reasons = {f.name: f.refuses(product, dtype, self.capability) for f in self.families}
        self.serving[product] = {f.name: f for f in self.families if reasons[f.name] is None}
        if self.serving[product]:
            return None
        return next(iter(reasons.values()), "there are no kernels to choose from")

    def can_use(self, product: Product, choice: Choice | None) -> bool:
        """Whether the file has a choice, and not that of a family which has refused by now."""
        if choice is None:
            return False
        picks = (choice.variant, *choice.near)
        return all(pick is None or pick.family in self.serving[product] for pick in picks)

    def candidates(self, product: Product, rows: int) -> list[Pick]:
        """What is measured besides cuBLAS."""
        serving, picks = self.serving[product], list[Pick]()
        for name, family in serving.items():
            rivals = [*(other for other in serving if other != name), CUBLAS] if self.mode == "auto" else []
            picks += [Pick(name, config) for config in family.candidates(product, rows, rivals)]
        return picks

    def compile(self, wanted: Iterable[tuple[Product, int]]) -> None:
        """All candidates at once, on all cores."""
        by_family: dict[str, list[tuple[Product, int, Config]]] = {}
        for product, rows in wanted:
            for pick in self.candidates(product, rows):
                by_family.setdefault(pick.family, []).append((product, rows, pick.config))
        with contextlib.ExitStack() as stack:
            for family in self.families:
                if family.name in by_family:
                    with contextlib.suppress(CompileError):  # each candidate meets the same error and says so
                        stack.callback(family.compile(by_family[family.name]))

    def ready(self, product: Product, rows: range, choice: Choice) -> Choice:
        """The choice with its kernel loaded; cuBLAS where that is not possible any more."""
        pick = choice.variant
        if pick is None:
            return choice
        try:
            self.serving[product][pick.family].prepare(product, rows, pick.config)
        except (CompileError, DriverError) as error:
            return dataclasses.replace(choice, variant=None, reason=str(error))
        return choice

    def measure(self, projection: Projection, rows: int) -> Choice:
        product, weights, timer = projection.product, projection.weights, self.timer
        assert timer is not None
        options = {"dtype": weights[0].dtype, "device": self.device}
        x = torch.randn(rows, product.k, **options)  # type: ignore[call-overload]
        out = torch.zeros(rows, product.columns, **options)  # type: ignore[call-overload]
        times: dict[Pick, float] = {}
        failure = ""
        for pick in self.candidates(product, rows):
            try:
                self.serving[product][pick.family].prepare(product, range(rows, rows + 1), pick.config)
                reason = self._disagrees(product, pick, weights[0], x, out)
                if reason is not None:
                    failure = reason
                    continue
                times[pick] = timer(functools.partial(self._ours, product, pick, weights, x, out))
            except (CompileError, DriverError) as error:
                failure = str(error)
        if not times and self.mode != "auto":
            raise ValueError(f"{projection.name}: {failure}")
        theirs = timer(functools.partial(self._theirs, product, weights, x, out))
        fastest: dict[str, float] = {}
        for pick, seconds in times.items():
            fastest[pick.family] = min(seconds, fastest.get(pick.family, seconds))
        fastest[CUBLAS] = theirs
        chosen = min(times, key=lambda pick: times[pick]) if times else None
        if chosen is not None and self.mode == "auto" and theirs < times[chosen]:
            chosen = None
        shown = {served: seconds * 1e6 / len(weights) for served, seconds in fastest.items()}
        return Choice(chosen, shown, failure, _near(chosen, times, theirs))

    def _disagrees(
        self, product: Product, pick: Pick, weight: Weight, x: torch.Tensor, out: torch.Tensor
    ) -> str | None:
        """Why a kernel's result cannot be right, or None: nothing is served by a kernel that differs from
        cuBLAS.
        """
        expected, got = torch.zeros_like(out), torch.zeros_like(out)
        self._theirs(product, [weight], x, expected)
        self._ours(product, pick, [weight], x, got)
        difference, size = float((got.float() - expected.float()).norm()), float(expected.float().norm())
        if difference <= MOST_DIFFERENT * size:
            return None
        return f"{pick.config} differs from cuBLAS by {difference:.2g} of {size:.2g}"

    def _ours(
        self, product: Product, pick: Pick, weights: Sequence[Weight], x: torch.Tensor, out: torch.Tensor
    ) -> None:
        family = self.serving[product][pick.family]
        for weight in weights:
            family.run(product, x, weight, out, EPS, pick.config)

    def _theirs(
        self, product: Product, weights: Sequence[Weight], x: torch.Tensor, out: torch.Tensor
    ) -> None:
        for weight in weights:
            self.library(product, x, weight, out, EPS)


def _near(chosen: Pick | None, times: Mapping[Pick, float], theirs: float) -> tuple[Pick | None, ...]:
    """The others, cuBLAS among them, fastest first, as far as they are near. theirs: cuBLAS's time."""
    seconds: dict[Pick | None, float] = {None: theirs}
    seconds.update(times.items())
    others = sorted((pick for pick in seconds if pick != chosen), key=lambda pick: seconds[pick])
    return tuple(pick for pick in others if seconds[pick] <= NEAR * seconds[chosen])[:MOST_NEAR]
