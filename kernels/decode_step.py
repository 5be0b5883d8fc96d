"""A whole decode step of few rows by kernels of our own (kernels/cuda/decode_step.cu).

"persistent" is one kernel that stays on the device for the step, "chained" a few for each layer, launched
ahead of each other. bf16 activations; keys and values bf16 or fp8; weights bf16, int8 or fp8; a Hopper or
newer. Both give the same bits, and what a row gets depends on neither the other rows nor how many there are.
"""

import ctypes
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import torch

from kernels import decode_shape
from kernels.cuda_driver import DriverError, Kernel, architecture, load_kernel
from kernels.decode_arguments import PHASES, StepArguments, StepMemory, StepNetwork, arguments
from kernels.decode_shape import (
    EXCHANGES,
    SHARED_LIMIT,
    SLOTS,
    Cut,
    defines,
    fitted,
    may_be_whole,
    shared_bytes,
)
from kernels.kv8 import Scales
from kernels.nvrtc import CompileError, compile_many, read_source
from kernels.quantize import Weight, WeightKind
from kernels.step_spec import StepLayer, StepPath, StepSpec

MOST_ROWS = 16
TEAMS = (8, 4, 2, 1)  # blocks for each kv head, of which the largest that the device can hold is taken
ROWS: dict[StepPath, tuple[int, ...]] = {"chained": (1, 2, 4, 8, 16), "persistent": (1, 2, 4)}
HEAD = PHASES.index("head")
WARPS = 8  # that compute; sixteen have too few registers
# Cycles between copies of 16 KiB, of 128 blocks on an H200: docs/decode.md.
PACE: dict[WeightKind, int] = {"bf16": 800, "int8": 1000, "fp8": 1000}
PACED_BLOCKS = 128
# Entries up to which a block takes all inputs of the MLP's second product, how long a row of that weight may
# be, in bytes, and slots that its ring must then have, unless it would have fewer with a share of them.
# Long rows hide the exchange that it saves (docs/decode.md).
WHOLE_ROWS, WHOLE_BYTES, WHOLE_SLOTS = 1, 12288, 10
CLUSTERED_SHARE = 0.92  # of the blocks that fit, with which clusters are tried


def source() -> str:
    """CUDA C++ of the kernels."""
    parts = ("network", "exchange", "split", "product", "attention", "phases", "step")
    shared = ("primitives.cu", "eight_bits.cu", "attention_tile.cu", "new_token.cu")
    return read_source(*shared, *(f"decode_{part}.cu" for part in parts))


def launches(spec: StepSpec, cut: Cut) -> list[tuple[int, int]]:
    """(layer, phase) of each kernel of a step."""
    if cut.resident:
        return [(0, 0)]
    return [(i, phase) for i in range(spec.layers) for phase in range(HEAD)] + [(spec.layers, HEAD)]


def cut_of(spec: StepSpec, path: StepPath, rows: int, team: int) -> Cut:
    """How a step of up to `rows` entries is cut. ValueError: no more rows than there are forms."""
    form = next((most for most in ROWS.get(path, ()) if most >= rows), None)
    if form is None:
        raise ValueError(f"{path} serves up to {max(ROWS.get(path, ()), default=0)} rows, not {rows}")
    # A block of a chain, too, has a multiprocessor to itself: two that share one have smaller rings.
    least = Cut(form, team, WARPS, min(SLOTS), resident=path == "persistent")
    shares = fitted(spec, least) or least
    row_bytes = spec.padded_inner * (2 if spec.kind == "bf16" else 1)
    if form <= WHOLE_ROWS and row_bytes <= WHOLE_BYTES and may_be_whole(spec, team, form):
        whole = fitted(spec, replace(least, mlp_out_whole=True))
        if whole is not None and whole.slots >= min(WHOLE_SLOTS, shares.slots):
            return whole
    return shares


def most_rows(spec: StepSpec, team: int) -> dict[StepPath, int]:
    """Most entries that a step of each path can have: what it needs of a block's memory grows with them."""

    def fits(path: StepPath, rows: int) -> bool:
        return shared_bytes(spec, cut_of(spec, path, rows, team)) <= SHARED_LIMIT

    return {path: max((r for r in rows if fits(path, r)), default=0) for path, rows in ROWS.items()}


class StepKernels:
    """A network's decode steps on one device. Used by one thread at a time.

    failed: [1] int32 on the device: not 0 once a wait inside a step took more than two seconds. What steps
    give is worthless from then on, and they no longer wait. max_rows: most entries of a step, by path.
    """

    def __init__(
        self,
        spec: StepSpec,
        layers: Sequence[StepLayer],
        head: Weight,
        final_norm: torch.Tensor | None,
        own: torch.Tensor,
        other: torch.Tensor,
        device: torch.device,
    ) -> None:
        """own, other: rotary table [positions, head_dim] float32 (kernels.rope).
        DriverError: a network that `unsupported` refuses, or more blocks than the device has
        multiprocessors.
        """
        self.multiprocessors = int(torch.cuda.get_device_properties(device).multi_processor_count)
        team = team_of(spec, self.multiprocessors)
        if isinstance(team, str):
            raise DriverError(team)
        self.network, self.team = StepNetwork(spec, layers, head, final_norm, own, other), team
        self.device = torch.cuda.current_device() if device.index is None else device.index
        self.memory = StepMemory.allocate(self.network, team, MOST_ROWS, device)
        self.failed = self.memory.failed
        self.max_rows = most_rows(spec, team)
        self._kernels: dict[Cut, Kernel] = {}
        self._forms: dict[Cut, Cut] = {}
        self._compiled: set[StepPath] = set()
        self._page: torch.Tensor | None = None
        self._scale: torch.Tensor | None = None

    def bind(
        self, pages: Sequence[tuple[torch.Tensor, torch.Tensor]], scales: Sequence[Scales | None] = ()
    ) -> None:
        """Each layer's keys and values are here from now on, and their scales where these are of eight bits;
        must come before every capture. ValueError: scales where there should be none, or none.
        """
        scaled = bool(scales) and all(own is not None for own in scales)
        if scaled != self.network.spec.fp8_kv:
            kind = "with scales" if self.network.spec.fp8_kv else "without scales"
            raise ValueError(f"these kernels were made for keys and values {kind}")
        self.memory.bind(pages, scales)
        self._page = pages[0][0]
        first = scales[0] if scales else None
        self._scale = None if first is None else first[0]

    def prepare(self, path: StepPath, rows: int) -> None:
        """Compiles and loads, which must come before a capture. CompileError; DriverError, also where the
        device cannot run all blocks at one time, which wait for each other.
        """
        if path not in self._compiled:
            # All that this path may need, at once: one after the other they would take some seconds each.
            cuts = [
                cut_of(self.network.spec, path, r, self.team) for r in ROWS[path] if r <= self.max_rows[path]
            ]
            cuts += [cut for cut in (replace(c, clustered=True) for c in cuts) if self._may_cluster(cut)]
            constants = [defines(self.network.spec, cut) for cut in cuts]
            compile_many(source(), "decode_step", architecture(self.device), constants)()
            self._compiled.add(path)
        self.form(path, rows)

    def phase_times(self) -> dict[str, float]:
        """Milliseconds that the phases of an average layer took one block in the last step.

        Each ends when the block has given what others wait for, so waiting counts for the phase behind, and
        so does what a chain gains by starting a phase before the one in front of it has ended.
        """
        marks = self.memory.timeline.tolist()
        begun, ended = marks[-2:]
        spans = [(later - earlier) % (1 << 32) for earlier, later in pairwise(marks[:-2])]
        scale = (ended - begun) / 1e6 / max(sum(spans), 1)
        times = {
            name: scale * sum(spans[index:-1:EXCHANGES]) / self.network.spec.layers
            for index, name in enumerate(PHASES[:HEAD])
        }
        return times | {"head": scale * spans[-1]}

    def form(self, path: StepPath, rows: int) -> Cut:
        """How steps of so many rows are run: with teams that are clusters where these fit, for they meet
        sooner. ValueError, DriverError, CompileError as `prepare`.
        """
        plain = cut_of(self.network.spec, path, rows, self.team)
        found = self._forms.get(plain)
        if found is None:
            clustered = replace(plain, clustered=True)
            fits = self._may_cluster(clustered) and self._clusters_fit(clustered)
            found = clustered if fits else plain
            kernel = self._kernel(found)
            kernel.require_resident(self._grid, found.threads, self.team if found.clustered else 1)
            self._forms[plain] = found
        return found

    @property
    def _grid(self) -> int:
        return self.team * self.network.spec.kv_heads

    def _may_cluster(self, cut: Cut) -> bool:
        """Whether all teams may fit as clusters at one time. More than CLUSTERED_SHARE of the blocks never
        do, for clusters do not cross the chip's parts: of an H200, 15 of 8 blocks.
        """
        fits = shared_bytes(self.network.spec, cut) <= SHARED_LIMIT
        return self.team > 1 and self._grid <= CLUSTERED_SHARE * self.multiprocessors and fits

    def _clusters_fit(self, cut: Cut) -> bool:
        """Whether they do, which the driver knows once the kernel is there."""
        try:
            fitting = self._kernel(cut).active_clusters(self.team, cut.threads)
        except (CompileError, DriverError):
            return False
        return fitting >= self.network.spec.kv_heads

    def _kernel(self, cut: Cut) -> Kernel:
        found = self._kernels.get(cut)
        if found is None:
            spec = self.network.spec
            constants, shared = defines(spec, cut), shared_bytes(spec, cut)
            found = load_kernel(source(), "decode_step", self.device, constants, shared)
            self._kernels[cut] = found
        return found

    def step(
        self,
        path: StepPath,
        *,
        x: torch.Tensor,
        ids_rows: torch.Tensor,
        positions: torch.Tensor,
        block_tables: torch.Tensor,
        logits: torch.Tensor,
        entry_tokens: torch.Tensor,
        entry_positions: torch.Tensor,
    ) -> None:
        """Queues all layers and the head.

        x: [entries, width] bf16, the embedded tokens. ids_rows: [entries] int32, the row of each, -1 for
        padding. positions: [entries] int32. block_tables: [rows, blocks of a row] int32. logits: [entries,
        head_rows] bf16, written, not capped. entry_tokens: [entries] int32. entry_positions: [entries] int32,
        gets positions + 1, or 0 where entry_tokens is negative.
        """
        assert self._page is not None
        given = arguments(
            self.network,
            self.memory,
            self._page,
            self._scale,
            x=x,
            rows=ids_rows,
            positions=positions,
            tables=block_tables,
            logits=logits,
            entry_tokens=entry_tokens,
            entry_positions=entry_positions,
            pace=pace_of(self.network.spec, self.team),
        )
        self.launch(self.form(path, x.size(0)), given)

    def launch(self, cut: Cut, given: StepArguments, only: Sequence[tuple[int, int]] | None = None) -> None:
        """Queues the kernels of a step that is cut so. only: those of a chain that are wanted, by layer and
        phase."""
        kernel, cluster = self._kernel(cut), self.team if cut.clustered else 1
        for index, phase in launches(self.network.spec, cut) if only is None else only:
            layer, which = ctypes.c_int(index), ctypes.c_int(phase)
            places = (ctypes.c_void_p * 3)(*(ctypes.addressof(a) for a in (given, layer, which)))
            kernel.launch(self._grid, cut.threads, places, cluster=cluster, pdl=True)


def pace_of(spec: StepSpec, team: int) -> int:
    """Cycles between a block's copies of 16 KiB: the fewer blocks, the more each has to bring."""
    return PACE[spec.kind] * team * spec.kv_heads // PACED_BLOCKS


def team_of(spec: StepSpec, multiprocessors: int | None = None) -> int | str:
    """Blocks for each kv head: as many as a device of so many multiprocessors, or any, can hold at one time;
    or why there can be none.
    """
    reason = "no multiprocessors"
    for team in TEAMS:
        reason = decode_shape.unsupported(spec, team) or ""
        if not reason and (multiprocessors is None or team * spec.kv_heads <= multiprocessors):
            return team
        reason = reason or f"{spec.kv_heads} kv heads on {multiprocessors} multiprocessors"
    return reason


def unsupported(spec: StepSpec, capability: tuple[int, int]) -> str | None:
    """Why a network's steps cannot be served by a device of this compute capability, or None."""
    if capability < (9, 0):
        return f"needs compute capability 9.0, this device has {capability[0]}.{capability[1]}"
    team = team_of(spec)
    return team if isinstance(team, str) else None
