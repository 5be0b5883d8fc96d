"""The kernels of whole decode steps alone: `python -m benchmarks.steps --rows 1,4 --pace 700,800`.

Random weights of a model's size and steps that are replayed as a CUDA graph, with no engine around them. What
has several values, with commas between them, is measured in every combination; what is not named is as the
engine has it. "OTHER BITS": the logits are not those of the first form with as many rows.
--trace adds what the blocks of each form wait for and where their time goes, phase by phase.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Protocol, get_args

import torch

from benchmarks import options
from benchmarks.bandwidth import read_bandwidth
from benchmarks.report import save, table
from kernels.cuda_driver import architecture
from kernels.decode_arguments import (
    PHASES,
    SPENT,
    StepArguments,
    StepMemory,
    StepNetwork,
    arguments,
)
from kernels.decode_shape import SHARED_LIMIT, SLOTS, Cut, defines, fitted, may_be_whole, shared_bytes
from kernels.decode_step import ROWS, WARPS, StepKernels, pace_of, source, team_of
from kernels.nvrtc import compile_many
from kernels.quantize import Weight, WeightKind, quantize
from kernels.rope import rope_table
from kernels.step_spec import StepLayer, StepPath, StepSpec
from kernels.timing import GraphTimer, Timer

D32 = StepSpec(
    width=2048,
    inner=8192,
    padded_inner=8192,
    heads=16,
    kv_heads=16,
    head_dim=128,
    head_rows=65536,
    layers=32,
    eps=1e-6,
    activation="relu2",
    order="rope_norm",
    qk_scale=1.0,
    kind="bf16",
    block_size=16,
)
SIZES = {
    "d32": D32,
    "llama-d32": replace(D32, inner=5504, padded_inner=6144, activation="swiglu", order="rope", eps=1e-5),
}
TRACED_STEPS = 10
MLP_OUT = ("shares", "whole")  # of the inputs of the MLP's second product what a block has


@dataclass(frozen=True, slots=True)
class Form:
    """A cut that is run with a pace: cycles between copies of 16 KiB."""

    path: StepPath
    cut: Cut
    pace: int


@dataclass(slots=True)
class FormRow:
    """share: bytes that a step must read over what the measured bandwidth allows in `ms`."""

    path: str
    rows: int
    slots: int
    pace: int
    mlp_out: str
    ms: float = 0.0
    share: float = 0.0
    same: bool = True
    error: str = ""

    @property
    def form(self) -> str:
        return f"{self.path} M={self.rows}, {self.slots} slots, pace {self.pace}, mlp out {self.mlp_out}"


@dataclass(frozen=True, slots=True)
class TraceRow:
    """Microseconds of a step in one phase of all layers, of the average block and of the one with most."""

    form: str
    phase: str
    what: str
    mean_us: float
    most_us: float


Result = tuple[list[FormRow], list[TraceRow]]


class Launcher(Protocol):
    """See kernels.decode_step.StepKernels."""

    team: int

    def form(self, path: StepPath, rows: int) -> Cut: ...

    def launch(self, cut: Cut, given: StepArguments) -> None: ...


@dataclass(slots=True)
class Step:
    """A step of `rows` entries that each have `position` tokens in front of them."""

    net: StepNetwork
    memory: StepMemory
    pages: list[tuple[torch.Tensor, torch.Tensor]]
    x: torch.Tensor
    rows: torch.Tensor
    positions: torch.Tensor
    tables: torch.Tensor
    logits: torch.Tensor
    entry_positions: torch.Tensor

    @classmethod
    def of(cls, net: StepNetwork, memory: StepMemory, rows: int, position: int) -> "Step":
        spec, device = net.spec, memory.failed.device
        each = position // spec.block_size + 1
        shape = (rows * each + 1, spec.kv_heads, spec.block_size, spec.head_dim)

        def pages() -> torch.Tensor:
            return torch.randn(shape, dtype=torch.bfloat16, device=device).transpose(1, 2)

        numbers = torch.arange(rows, dtype=torch.int32, device=device)
        made = cls(
            net,
            memory,
            [(pages(), pages()) for _ in range(spec.layers)],
            x=torch.randn(rows, spec.width, device=device).bfloat16(),
            rows=numbers,
            positions=torch.full_like(numbers, position),
            tables=torch.arange(1, rows * each + 1, dtype=torch.int32, device=device).view(rows, each),
            logits=torch.zeros(rows, spec.head_rows, dtype=torch.bfloat16, device=device),
            entry_positions=torch.zeros_like(numbers),
        )
        memory.bind(made.pages)
        return made

    def given(self, pace: int) -> StepArguments:
        return arguments(
            self.net,
            self.memory,
            self.pages[0][0],
            x=self.x,
            rows=self.rows,
            positions=self.positions,
            tables=self.tables,
            logits=self.logits,
            entry_tokens=self.rows,
            entry_positions=self.entry_positions,
            pace=pace,
        )

    @property
    def bytes_read(self) -> int:
        """Of weights once, and of the keys and values in front of each entry."""
        spec = self.net.spec
        weights = [*(weight for layer in self.net.layers for weight in layer[:4]), self.net.head]
        cached = 2 * spec.layers * spec.kv_heads * spec.head_dim * 2 * int(self.positions.sum())
        return cached + sum(_bytes(weight) for weight in weights)


def _bytes(weight: Weight) -> int:
    if isinstance(weight, torch.Tensor):
        return weight.numel() * weight.element_size()
    return weight.values.numel() + weight.scales.numel() * weight.scales.element_size()


def random_network(spec: StepSpec, device: torch.device) -> StepNetwork:
    """Weights as large as their inputs' number makes usual."""
    torch.manual_seed(0)

    def weight(outputs: int, inputs: int) -> Weight:
        made = (torch.randn(outputs, inputs, device=device) * inputs**-0.5).bfloat16()
        return made if spec.kind == "bf16" else quantize(made, spec.kind)

    def layer() -> StepLayer:
        heads = (spec.heads + 2 * spec.kv_heads) * spec.head_dim
        inner = spec.inner * (2 if spec.activation == "swiglu" else 1)
        return StepLayer(
            weight(heads, spec.width),
            weight(spec.width, spec.heads * spec.head_dim),
            weight(inner, spec.width),
            weight(spec.width, spec.padded_inner),
        )

    own, other = rope_table(4096, spec.head_dim, 10000.0, torch.float32)
    layers = [layer() for _ in range(spec.layers)]
    return StepNetwork(
        spec, layers, weight(spec.head_rows, spec.width), None, own.to(device), other.to(device)
    )


def usual(spec: StepSpec, launcher: Launcher, path: StepPath, rows: int) -> Cut:
    """As the engine has it, or, of more rows than it would run so, with as many slots as fit."""
    if rows <= max(ROWS[path]):
        return launcher.form(path, rows)
    least = Cut(rows, launcher.team, WARPS, min(SLOTS), resident=path == "persistent")
    return fitted(spec, least) or least


def forms(spec: StepSpec, launcher: Launcher, args: argparse.Namespace) -> Iterator[Form]:
    """Every combination of what was asked for."""
    for path, rows in product(args.path, args.rows):
        own = usual(spec, launcher, path, rows)
        paces = args.pace or [pace_of(spec, launcher.team)]
        for way in args.mlp_out or [MLP_OUT[own.mlp_out_whole]]:
            cut = replace(own, mlp_out_whole=way == MLP_OUT[True])
            cut = cut if cut == own else fitted(spec, cut) or cut
            for slots, pace in product(args.slots or [cut.slots], paces):
                yield Form(path, replace(cut, slots=slots), pace)


def measure(
    net: StepNetwork,
    memory: StepMemory,
    launcher: Launcher,
    args: argparse.Namespace,
    timer: Timer,
    bandwidth: float,
) -> Result:
    """One row a form; what cannot be run says why. bandwidth: bytes per second."""
    rows: list[FormRow] = []
    traces: list[TraceRow] = []
    first: dict[int, torch.Tensor] = {}
    steps = {count: Step.of(net, memory, count, args.position) for count in args.rows}
    for form in forms(net.spec, launcher, args):
        cut = form.cut
        row = FormRow(form.path, cut.rows, cut.slots, form.pace, MLP_OUT[cut.mlp_out_whole])
        rows.append(row)
        step = steps[cut.rows]
        memory.bind(step.pages)
        try:
            if cut.mlp_out_whole and not may_be_whole(net.spec, cut.team, cut.rows):
                raise ValueError(
                    "--mlp-out whole: a block has no room for that many sums, or some have no outputs"
                )
            given = step.given(form.pace)
            seconds = timer(lambda given=given, cut=cut: launcher.launch(cut, given))  # type: ignore[misc]
            if int(memory.failed):
                raise RuntimeError("a wait was given up")
            row.ms, row.share = 1e3 * seconds, step.bytes_read / bandwidth / seconds
            wanted = first.setdefault(cut.rows, step.logits.clone())
            row.same = torch.equal(wanted.view(torch.int16), step.logits.view(torch.int16))
            if args.trace:
                traces += traced(row.form, cut, memory, launcher, given, seconds)
        except (RuntimeError, ValueError) as error:  # DriverError and CompileError among them
            row.error = f"{type(error).__name__}: {error}"
            memory.failed.zero_()
        print(_line(row), flush=True)
    return rows, traces


def traced(
    form: str, cut: Cut, memory: StepMemory, launcher: Launcher, given: StepArguments, seconds: float
) -> list[TraceRow]:
    """Of some steps with counters, which take little longer: their cycles are shared out over `seconds`."""
    memory.trace.zero_()
    for _ in range(TRACED_STEPS):
        launcher.launch(replace(cut, traced=True), given)
    if int(memory.failed):
        raise RuntimeError("a traced step's wait was given up")
    spent = memory.trace.double().cpu()  # [blocks, phases, what]
    cycles = spent[:, :, SPENT.index("all")].sum(1).mean()
    us = spent / cycles * seconds * 1e6
    return [
        TraceRow(form, phase, what, float(us[:, index, kind].mean()), float(us[:, index, kind].max()))
        for index, phase in enumerate(PHASES)
        for kind, what in enumerate(SPENT)
    ]


def _line(row: FormRow) -> str:
    if row.error:
        return f"{row.form}: {row.error}"
    return f"{row.form}: {row.ms:.3f} ms, {row.share:.1%}" + ("" if row.same else ", OTHER BITS")


def show(traces: Sequence[TraceRow]) -> None:
    """A table for each form: the average block's microseconds, and those of the one with most."""
    for form in dict.fromkeys(trace.form for trace in traces):
        cells = {(t.phase, t.what): f"{t.mean_us:.0f} / {t.most_us:.0f}" for t in traces if t.form == form}
        print(f"\n{form}: microseconds a step, mean / most of a block")
        print(
            table(["phase", *SPENT], [[phase, *(cells[phase, what] for what in SPENT)] for phase in PHASES])
        )


def compile_all(spec: StepSpec, kernels: StepKernels, args: argparse.Namespace, device: int) -> None:
    """Every form, and where it is traced its twin, in several processes: one after the other they would take
    seconds each. What cannot be compiled says so when it is measured."""
    cuts = [form.cut for form in forms(spec, kernels, args)]
    cuts += [replace(cut, traced=True) for cut in cuts if args.trace]
    constants = [defines(spec, cut) for cut in cuts if shared_bytes(spec, cut) <= SHARED_LIMIT]
    compile_many(source(), "decode_step", architecture(device), constants)()


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=SIZES, default="d32")
    parser.add_argument("--weights", choices=get_args(WeightKind), default="bf16")
    parser.add_argument("--path", default="persistent", help="persistent, chained, or both with a comma")
    parser.add_argument("--rows", type=options.counts, default="1,2,4", help="entries: 1, 2, 4, 8, 16")
    parser.add_argument("--position", type=int, default=192, help="tokens in front of each entry's own")
    parser.add_argument("--slots", type=options.counts, default="", help="of the ring")
    parser.add_argument("--pace", type=options.counts, default="", help="cycles between copies of 16 KiB")
    parser.add_argument("--mlp-out", default="", help="whole, shares, or both: see Cut.mlp_out_whole")
    parser.add_argument("--trace", action="store_true", help="count where the blocks' time goes")
    parser.add_argument("--replays", type=int, default=30)
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the result there")
    parser.add_argument("--save", action="store_true", help="keep the result in benchmarks/results")
    args = parser.parse_args(argv)
    args.path = args.path.split(",")
    if set(args.path) - {"persistent", "chained"}:
        parser.error(f"--path {','.join(args.path)}: persistent and chained have kernels of their own")
    args.mlp_out = args.mlp_out.split(",") if args.mlp_out else []
    if set(args.mlp_out) - set(MLP_OUT):
        parser.error(f"--mlp-out {','.join(args.mlp_out)}: whole or shares")
    if not set(args.rows) <= {1, 2, 4, 8, 16}:
        parser.error("--rows: forms have 1, 2, 4, 8 or 16")
    if any(slots % 2 for slots in args.slots):
        parser.error("--slots: two producers share them, so they are even")
    if not 0 <= args.position < 4096:
        parser.error(f"--position {args.position}: 0 to 4095")
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    if not torch.cuda.is_available():
        raise SystemExit("error: torch sees no GPU here")
    device = torch.device("cuda", torch.cuda.current_device())
    bandwidth = read_bandwidth(device)
    print(f"read bandwidth {bandwidth / 1e12:.3f} TB/s", flush=True)
    spec = replace(SIZES[args.size], kind=args.weights)
    reason = team_of(spec)
    if isinstance(reason, str):
        raise SystemExit(f"error: {reason}")
    net = random_network(spec, device)
    kernels = StepKernels(spec, net.layers, net.head, None, net.own, net.other, device)
    compile_all(spec, kernels, args, torch.cuda.current_device())
    rows, traces = measure(net, kernels.memory, kernels, args, GraphTimer(args.replays), bandwidth)
    show(traces)
    if args.save or args.out:
        settings = vars(args) | {"bandwidth_tb_s": bandwidth / 1e12}
        name = f"steps-cuda-{args.size}-{args.weights}"
        print("kept in", save(name, [*map(asdict, rows), *map(asdict, traces)], settings, out=args.out))


if __name__ == "__main__":
    main()
