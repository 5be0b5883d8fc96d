"""Which product serves which projection at how many rows: measured once on the device, then kept in a file.

Few row counts are measured; one in between takes the choice of the next measured one above it. Above the
last, cuBLAS serves without a measurement: there it is at the bandwidth's or the tensor cores' limit. Against
it stand kernels.skinny for few rows and kernels.triton.gemm for some dozens.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch

from kernels.cuda_driver import DriverError
from kernels.nvrtc import CompileError, cache_folder, write_atomically
from kernels.quantize import Weight, WeightKind, quantize
from kernels.skinny import (
    MAX_ROWS,
    Activation,
    Variant,
    prepare,
    prepare_all,
    skinny_linear,
    source,
    unsupported,
    variants,
)
from kernels.timing import GraphTimer, Timer
from kernels.triton import gemm_config
from kernels.triton.gemm_config import GemmConfig

MEASURED_ROWS = (1, 8, 16, 32, 64, 128, 256)
MOST_VARIANTS = 4  # measured for each projection and row count
FEW_VARIANTS = 1  # where the tensor cores are expected to win
# Of Triton's product under "auto": it won at 32 and 64 rows only, with one of its first two configurations,
# and each kernel more is a second of a cold start (benchmarks/results/decode-cuda-d32, 2026-11-24).
MEDIUM_ROWS, MEDIUM_CONFIGS = 64, 2
MOST_DIFFERENT = 0.02  # relative to the result, in bfloat16
EPS = 1e-6  # of the norms that are timed; any value takes equally long

Mode = Literal["auto", "skinny", "triton", "cublas"]


@dataclass(frozen=True, slots=True)
class Product:
    """What is computed: act(norm(x) W^T) for W [n, k], stored or added to what is there. kind: of W; where it
    has eight bits the library's route makes a full one of it first, and kernels.triton.gemm does not serve.
    """

    n: int
    k: int
    norm: bool
    activation: Activation
    accumulate: bool
    kind: WeightKind = "bf16"

    def __str__(self) -> str:
        parts = [
            f"{self.n}x{self.k}",
            "norm" if self.norm else "",
            self.activation,
            "add" if self.accumulate else "",
            self.kind if self.kind != "bf16" else "",
        ]
        return " ".join(part for part in parts if part and part != "none")


@dataclass(frozen=True, slots=True)
class Choice:
    """A measurement's result. variant: None for cuBLAS. Times in microseconds a product, None where not
    measured."""

    variant: Variant | GemmConfig | None
    skinny_us: float | None = None
    triton_us: float | None = None
    cublas_us: float | None = None
    reason: str = ""

    def row(self, name: str, rows: int) -> tuple[str, str, str]:
        """For the start-up table: what, which, why."""
        used = "cuBLAS" if self.variant is None else f"{_kind(self.variant)} ({self.variant})"
        times = (("skinny", self.skinny_us), ("triton", self.triton_us), ("cuBLAS", self.cublas_us))
        measured = ", ".join(f"{label} {us:.1f} us" for label, us in times if us is not None)
        return f"linear {name} M={rows}", used, "; ".join(part for part in (measured, self.reason) if part)


def _kind(variant: Variant | GemmConfig) -> str:
    return "skinny" if isinstance(variant, Variant) else "triton"


@dataclass(slots=True)
class Choices:
    """Choices by product and measured rows. Empty: everything through cuBLAS."""

    table: dict[Product, dict[int, Choice]] = field(default_factory=dict)
    names: dict[Product, str] = field(default_factory=dict)

    def variant(self, product: Product, rows: int) -> Variant | GemmConfig | None:
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
    weights: Sequence[Weight]


# Queues one product through cuBLAS, everything around it included: product, x, weight, out, eps.
Library = Callable[[Product, torch.Tensor, Weight, torch.Tensor, float], None]


@dataclass(frozen=True, slots=True)
class Medium:
    """kernels.triton.gemm, handed in because this module must not need Triton.

    run: queues a product (product, x, weight, out, eps, config), everything around it included. prepare:
    makes one ready to be captured; raises CompileError. prepare_all: compiles on all cores beforehand.
    """

    run: Callable[[Product, torch.Tensor, Weight, torch.Tensor, float, GemmConfig], None]
    prepare: Callable[[Product, GemmConfig], None]
    prepare_all: Callable[[Sequence[tuple[Product, GemmConfig]]], None]


def choose(
    projections: Sequence[Projection],
    library: Library,
    *,
    medium: Medium | None = None,
    mode: Mode = "auto",
    pdl: bool = False,
    timer: Timer | None = None,
    cache: Path | None = None,
) -> Choices:
    """Measures what the cache does not know, and makes every chosen kernel ready to be captured.

    medium: None leaves out the kernel for some dozens of rows. Every mode but "auto" leaves no choice;
    ValueError says what "skinny" or "triton" cannot serve. timer, cache: for tests.
    """
    choices = Choices({}, {p.product: p.name for p in projections})
    if mode == "cublas" or not projections:
        return choices
    device = projections[0].weights[0].device
    if timer is None and device.type == "cuda":
        timer = GraphTimer()
    probe = _Probe(library, medium, mode, pdl, timer, device)
    served = []
    for projection in projections:
        reason = probe.refuses(projection) or probe.lacks(projection.product)
        if reason is None:
            served.append(projection)
        elif mode != "auto":
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
    wanted = [
        (projection, rows)
        for projection in projections
        for rows in MEASURED_ROWS
        if probe.candidates(projection.product, rows)
    ]
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
    medium: Medium | None
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
            product.kind,
        )

    def lacks(self, product: Product) -> str | None:
        """Why mode "triton" cannot have its way, or None."""
        if self.mode != "triton":
            return None
        return self._medium_refuses(product) if self.medium is not None else "needs Triton"

    def _medium_refuses(self, product: Product) -> str | None:
        if product.kind != "bf16":
            return f"takes no weights of kind {product.kind}"
        # Kind of number and device are as the other kernel wants them.
        return gemm_config.unsupported(
            product.n, product.k, product.activation, product.accumulate, torch.bfloat16, (9, 0)
        )

    def candidates(self, product: Product, rows: int) -> list[Variant | GemmConfig]:
        """What is measured besides cuBLAS, by the mode."""
        found: list[Variant | GemmConfig] = []
        medium = self.medium is not None and self.mode in ("auto", "triton")
        medium = medium and rows >= gemm_config.MIN_ROWS and self._medium_refuses(product) is None
        if self.mode in ("auto", "skinny") and rows <= MAX_ROWS:
            most = FEW_VARIANTS if medium else MOST_VARIANTS
            multiprocessors = _multiprocessors(self.device)
            shape = (rows, product.n, product.k, product.activation, multiprocessors, product.kind)
            found += variants(*shape)[:most]
        if medium and self.mode == "triton":
            found += gemm_config.configs(rows, product.n, product.k, product.norm)
        elif medium and rows <= MEDIUM_ROWS:
            found += gemm_config.configs(rows, product.n, product.k, product.norm, MEDIUM_CONFIGS)
        return found

    def compile(self, wanted: Iterable[tuple[Product, int]]) -> None:
        """All candidates at once, on all cores."""
        pairs = [(product, variant) for product, rows in wanted for variant in self.candidates(product, rows)]
        few = [(product.k, variant) for product, variant in pairs if isinstance(variant, Variant)]
        some = [(product, variant) for product, variant in pairs if isinstance(variant, GemmConfig)]
        with contextlib.ExitStack() as stack:
            if few:
                with contextlib.suppress(CompileError):  # each candidate meets the same error and says so
                    stack.callback(prepare_all(few, self.device))
            if some and self.medium is not None:
                self.medium.prepare_all(some)

    def ready(self, product: Product, choice: Choice) -> Choice:
        """The choice with its kernel loaded; cuBLAS where that is not possible any more."""
        if choice.variant is None:
            return choice
        try:
            self._prepare(product, choice.variant)
        except (CompileError, DriverError) as error:
            return dataclasses.replace(choice, variant=None, reason=str(error))
        return choice

    def _prepare(self, product: Product, variant: Variant | GemmConfig) -> None:
        if isinstance(variant, Variant):
            prepare(product.k, variant, self.device)
        elif self.medium is not None:
            self.medium.prepare(product, variant)
        else:
            raise CompileError("needs Triton")

    def measure(self, projection: Projection, rows: int) -> Choice:
        product, weights, timer = projection.product, projection.weights, self.timer
        assert timer is not None
        options = {"dtype": weights[0].dtype, "device": self.device}
        x = torch.randn(rows, product.k, **options)  # type: ignore[call-overload]
        columns = product.n // 2 if product.activation == "swiglu" else product.n
        out = torch.zeros(rows, columns, **options)  # type: ignore[call-overload]
        times: dict[Variant | GemmConfig | None, float] = {}
        failure = ""
        for variant in self.candidates(product, rows):
            try:
                self._prepare(product, variant)
                reason = self._disagrees(product, variant, weights[0], x, out)
                if reason is not None:
                    failure = reason
                    continue
                times[variant] = timer(functools.partial(self._ours, product, variant, weights, x, out))
            except (CompileError, DriverError) as error:
                failure = str(error)
        if not times and self.mode != "auto":
            raise ValueError(f"{projection.name}: {failure}")
        theirs = timer(functools.partial(self._theirs, product, weights, x, out))
        if self.mode == "auto" or not times:
            times[None] = theirs
        best = {
            kind: min((t for v, t in times.items() if v is not None and _kind(v) == kind), default=None)
            for kind in ("skinny", "triton")
        }
        skinny, triton = (None if t is None else t * 1e6 / len(weights) for t in best.values())
        chosen = min(times, key=lambda variant: times[variant])
        cublas = theirs * 1e6 / len(weights)
        return Choice(chosen, skinny, triton, cublas, failure)

    def _disagrees(
        self,
        product: Product,
        variant: Variant | GemmConfig,
        weight: Weight,
        x: torch.Tensor,
        out: torch.Tensor,
    ) -> str | None:
        """Why a kernel's result cannot be right, or None: nothing is served by a kernel that differs from
        cuBLAS.
        """
        expected, got = torch.zeros_like(out), torch.zeros_like(out)
        self._theirs(product, [weight], x, expected)
        self._ours(product, variant, [weight], x, got)
        difference, size = float((got.float() - expected.float()).norm()), float(expected.float().norm())
        if difference <= MOST_DIFFERENT * size:
            return None
        return f"{variant} differs from cuBLAS by {difference:.2g} of {size:.2g}"

    def _ours(
        self,
        product: Product,
        variant: Variant | GemmConfig,
        weights: Sequence[Weight],
        x: torch.Tensor,
        out: torch.Tensor,
    ) -> None:
        if isinstance(variant, GemmConfig):
            assert self.medium is not None
            for weight in weights:
                self.medium.run(product, x, weight, out, EPS, variant)
            return
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
        self, product: Product, weights: Sequence[Weight], x: torch.Tensor, out: torch.Tensor
    ) -> None:
        for weight in weights:
            self.library(product, x, weight, out, EPS)


def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


def cache_file(device: torch.device) -> Path:
    """Where choices for this kind of device, torch and kernels are kept."""
    name = re.sub(r"\W+", "-", torch.cuda.get_device_name(device))
    folder = Path(gemm_config.__file__).parent
    files = [Path(name.__code__.co_filename) for name in (variants, quantize)]
    files += [*sorted(folder.glob("gemm*.py")), folder / "parts.py", folder / "dequantize.py"]
    text = source() + "".join(file.read_text() for file in files)
    kernel = hashlib.sha256(text.encode()).hexdigest()[:16]
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
    if variant is None:
        return Choice(None, **entry)  # type: ignore[arg-type]
    kind = GemmConfig if "columns" in variant else Variant
    return Choice(kind(**variant), **entry)  # type: ignore[arg-type]
