"""Which path each decode bucket goes: tested on this device first, then measured once and kept in a file."""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass, field
from functools import partial
from pathlib import Path

import torch

from engine.backend import Feature
from engine.fastpath import FlagUnavailable
from engine.gpu.cache import PagedKV
from engine.gpu.network import Network
from engine.gpu.path_trial import (
    CONTEXT,
    TESTED,
    TOO_LONG,
    TRIALS,
    Fault,
    Trial,
    blocks_for,
    fill,
    own_cache,
    positions_for,
)
from engine.gpu.paths import LIBRARY, Library, StepKernels, make_kernels, spec_of
from engine.gpu.step_file import step_file
from engine.messages.config import DecodePathName
from kernels.cuda_driver import DriverError
from kernels.nvrtc import CompileError, write_atomically
from kernels.step_spec import StepPath, StepSpec
from kernels.timing import GraphTimer, Timer

OURS: tuple[StepPath, ...] = ("chained", "persistent")
TIE = 0.01  # what a path has to be faster by than the network's own kernels
REPLAYS = 20

Times = Mapping[StepPath, float]  # milliseconds of a whole step

_log = logging.getLogger("fastpath.engine")


@dataclass(frozen=True, slots=True)
class PathChoice:
    """path: what serves a bucket. ms: of each path that was measured. reason: why others do not serve."""

    path: StepPath
    ms: Times = field(default_factory=dict)
    reason: str = ""

    def row(self, rows: int, asked: str) -> Feature:
        """For the start-up table."""
        measured = ", ".join(f"{path} {ms:.3f} ms" for path, ms in self.ms.items())
        why = "; ".join(part for part in (measured, self.reason) if part)
        return f"decode path M={rows}", asked, self.path, why


@dataclass(frozen=True, slots=True)
class Choices:
    """by_rows: of each decode bucket that had a choice. rest: why the others have none, if there are any."""

    by_rows: Mapping[int, PathChoice]
    rest: str

    def explain(self, asked: str) -> list[Feature]:
        """Rows for the start-up table."""
        rows = [choice.row(rows, asked) for rows, choice in sorted(self.by_rows.items())]
        name = f"decode path M>{max(self.by_rows)}" if rows else "decode path"
        return [*rows, (name, asked, "graph", self.rest)] if self.rest else rows

    @property
    def table(self) -> dict[int, StepPath]:
        """Of the buckets that the network's own kernels do not serve."""
        return {rows: choice.path for rows, choice in self.by_rows.items() if choice.path != "graph"}


@dataclass(frozen=True, slots=True)
class Wanted:
    """blocked: why "auto" has no choice, or None. buckets: rows of decode steps. max_model_len: positions of
    the longest sequence. linear: how products are chosen, on which times depend.
    """

    asked: DecodePathName
    blocked: str | None
    buckets: Sequence[int]
    max_model_len: int
    linear: str


class _Refused(Exception):
    """Why no path, or not the one that was asked for, can be had."""


def choose_paths(
    network: Network,
    wanted: Wanted,
    make_cache: Callable[[int], PagedKV],
    library: Library | None,
    *,
    timer: Timer | None = None,
    capability: tuple[int, int] | None = None,
    file: Path | None = None,
) -> Choices:
    """Gives the network its kernels and the table of its paths, and says why it is as it is.

    make_cache: a cache of so many blocks, which takes the place of the network's own meanwhile; the paths
    have to be bound to another one afterwards. library: None where there are no kernels. timer, capability,
    file: for tests. Raises FlagUnavailable where a path was asked for and cannot be had.
    """
    asked = wanted.asked
    if asked == "graph":
        return Choices({}, "as asked")
    if asked == "auto" and wanted.blocked is not None:
        return Choices({}, wanted.blocked)
    try:
        with own_cache(network):
            choice = _Choice(network, wanted, *_open(network, library, capability))
            choices = choice.run(make_cache, timer, file)
    except (_Refused, torch.OutOfMemoryError) as error:
        network.paths.close()
        if asked != "auto":
            raise FlagUnavailable(f"decode_path is {asked}, but {error}") from error
        return Choices({}, str(error))
    network.paths.table = choices.table
    if not choices.table:
        network.paths.close()
    return choices


def _open(
    network: Network, library: Library | None, capability: tuple[int, int] | None
) -> tuple[StepKernels, StepSpec]:
    weights, cache = network.weights, network.cache
    assert cache is not None
    spec, device = spec_of(weights, cache), weights.embedding.device
    if isinstance(spec, str):
        raise _Refused(spec)
    if library is None:
        raise _Refused(f"{LIBRARY} is not there")
    reason = library.unsupported(spec, capability or torch.cuda.get_device_capability(device))
    if reason is not None:
        raise _Refused(reason)
    try:
        return make_kernels(library, spec, weights), spec
    except (CompileError, DriverError) as error:
        raise _Refused(str(error)) from error


@dataclass(frozen=True, slots=True)
class _Choice:
    """A choice under way: the network has these kernels, but no table yet."""

    network: Network
    wanted: Wanted
    kernels: StepKernels
    spec: StepSpec

    def run(self, make_cache: Callable[[int], PagedKV], timer: Timer | None, file: Path | None) -> Choices:
        asked, most = self.wanted.asked, self.kernels.max_rows
        paths = [path for path in OURS if asked in ("auto", path)]
        by_rows = {rows: [p for p in paths if rows <= most[p]] for rows in self.wanted.buckets}
        by_rows = {rows: found for rows, found in sorted(by_rows.items()) if found}
        limits = ", ".join(f"{path} takes up to {most[path]} rows" for path in paths)
        rest = limits if max(self.wanted.buckets) > max(by_rows, default=0) else ""
        if not by_rows:
            raise _Refused(f"{limits}, and steps have {min(self.wanted.buckets)} at least")
        self._take(make_cache(blocks_for(max(by_rows), self.spec.block_size, self.tested)))
        refused = {rows: self._refusals(rows, found) for rows, found in by_rows.items()}
        usable = {rows: [p for p in found if p not in refused[rows]] for rows, found in by_rows.items()}
        if asked != "auto":
            for rows, reasons in refused.items():
                for path, reason in reasons.items():
                    raise _Refused(f"{path} cannot serve {rows} rows: {reason}")
            forced = {rows: PathChoice(found[0], reason="as asked") for rows, found in usable.items()}
            return Choices(forced, rest)
        return Choices(self._measured(usable, refused, timer, file), rest)

    @property
    def tested(self) -> int:
        """The last position of a test's longest row."""
        return min(TESTED, self.wanted.max_model_len) - 1

    @property
    def timed(self) -> int:
        """The position at which times are taken."""
        return min(CONTEXT, self.wanted.max_model_len) - 1

    def _take(self, cache: PagedKV) -> None:
        network = self.network
        fill(cache)
        network.cache = cache
        network.paths.open(self.kernels)
        network.paths.bind(cache)

    def _refusals(self, rows: int, paths: Sequence[StepPath]) -> dict[StepPath, str]:
        """Why some may not serve so many rows; the others are ready to."""
        reasons: dict[StepPath, str] = {}
        for path in paths:
            try:
                self.kernels.prepare(path, rows)
            except (CompileError, DriverError) as error:
                reasons[path] = str(error)
        for number, positions in enumerate(positions_for(rows, self.spec.block_size, self.tested)):
            spoken: dict[StepPath, list[str]] = {path: [] for path in paths}
            for seed in range(TRIALS):
                left = [path for path in paths if path not in reasons and (not seed or spoken[path])]
                if left:
                    trial = Trial.of(self.network, rows, positions, TRIALS * number + seed)
                    self._try(trial, left, spoken, reasons)
                for path in left:
                    if 2 * len(spoken[path]) > TRIALS:
                        reasons[path] = "; ".join(spoken[path])
            for path in paths:
                if spoken[path] and path not in reasons:
                    _log.info("decode path %s: of %d trials one: %s", path, TRIALS, spoken[path][0])
        for path, reason in reasons.items():
            _log.warning("decode path %s does not serve %d rows: %s", path, rows, reason)
        return reasons

    def _try(
        self,
        trial: Trial,
        paths: Sequence[StepPath],
        spoken: Mapping[StepPath, list[str]],
        reasons: dict[StepPath, str],
    ) -> None:
        """What a trial finds against paths goes to `spoken`, where other tokens might come nearer, or to
        `reasons`, where nothing would help.
        """
        want = trial.reference()
        for path in paths:
            try:
                found = trial.disagreement(path, want)
            except DriverError as error:
                found = Fault(str(error), final=True)
            if found is None:
                continue
            if found.final:
                reasons[path] = found.reason
            else:
                spoken[path].append(found.reason)

    def _measured(
        self,
        usable: Mapping[int, list[StepPath]],
        refused: Mapping[int, Mapping[StepPath, str]],
        timer: Timer | None,
        file: Path | None,
    ) -> dict[int, PathChoice]:
        """What the file knows, and measurements of the rest, kept in it."""
        device = self.network.weights.embedding.device
        file = file or step_file("decode-path", device)
        known, before = read_times(file), read_times(file)
        found: dict[int, PathChoice] = {}
        for rows, paths in usable.items():
            reasons, times, key = dict(refused[rows]), dict[StepPath, float](), self._key(rows)
            if paths and not {"graph", *paths} <= known.get(key, {}).keys():
                timer = timer or GraphTimer(REPLAYS)
                known[key] = self._measure(rows, paths, timer, reasons)
            if paths:
                times = {path: ms for path, ms in known[key].items() if path in ("graph", *paths)}
            reason = "; ".join(f"{path}: {why}" for path, why in reasons.items())
            found[rows] = PathChoice(fastest(times) if times else "graph", times, reason)
        if known != before:
            write_times(file, known)
        return found

    def _measure(
        self, rows: int, paths: list[StepPath], timer: Timer, reasons: dict[StepPath, str]
    ) -> dict[StepPath, float]:
        trial = Trial.of(self.network, rows, [self.timed] * rows)
        times: dict[StepPath, float] = {}
        both: tuple[StepPath, ...] = ("graph", *paths)
        for path in both:
            seconds = timer(partial(trial.run, path))
            if trial.lost():
                reasons[path] = TOO_LONG
                _log.warning("decode path %s does not serve %d rows: %s", path, rows, TOO_LONG)
            else:
                times[path] = 1e3 * seconds
        return times

    def _key(self, rows: int) -> str:
        parts = (*astuple(self.spec), self.network.attention.name, self.wanted.linear)
        return f"{' '.join(map(str, parts))} context={self.timed + 1} M={rows}"


def fastest(times: Times) -> StepPath:
    """The network's own kernels, where no other path is faster by more than a tie."""
    best = min(times, key=lambda path: times[path])
    return best if times[best] < (1 - TIE) * times["graph"] else "graph"


# -- the file of measurements


def read_times(path: Path) -> dict[str, dict[StepPath, float]]:
    """Milliseconds by path of each measurement; a file that is missing or damaged knows nothing."""
    try:
        entries: Mapping[str, Mapping[str, object]] = json.loads(path.read_text())
        return {
            key: {name: float(times[name]) for name in ("graph", *OURS) if name in times}  # type: ignore[arg-type]
            for key, times in entries.items()
        }
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def write_times(path: Path, times: Mapping[str, Times]) -> None:
    write_atomically(path, (json.dumps(times, indent=1) + "\n").encode())
