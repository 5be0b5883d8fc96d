"""Decode steps that run thread by thread on the host (emulation.h), in the forms that tests have."""

import ctypes
from collections.abc import Callable
from dataclasses import replace

import torch

from kernels.decode_arguments import StepArguments, StepMemory, StepNetwork
from kernels.decode_shape import Cut, shared_bytes
from kernels.decode_step import launches
from kernels.quantize import WeightKind
from kernels.step_spec import StepSpec
from tests.kernels.decode_cases import (
    EIGHT,
    WIDE,
    WIDER,
    Case,
    arguments_of,
    expected,
    live_entries,
    memory_of,
    stored_of,
)

RESIDENT = Cut(rows=1, team=2, warps=8, slots=4)
CHAINED = Cut(rows=1, team=2, warps=8, slots=4, resident=False)
# Whose blocks take all inputs of the MLP's second product.
WHOLE, WHOLE_CHAINED = (replace(cut, mlp_out_whole=True) for cut in (RESIDENT, CHAINED))
Build = Callable[[StepSpec, Cut], ctypes.CDLL]


def run(
    build: Build,
    cut: Cut,
    net: StepNetwork,
    given: Case,
    memory: StepMemory,
    seed: int = 0,
    nanoseconds: int = 1,
) -> None:
    """Every launch of a step. nanoseconds: that a round of the emulation takes by the device's clock."""
    step, before = arguments_of(net, memory, given), int(memory.epoch)
    for index, phase in launches(net.spec, cut):
        emulate_launch(build, cut, net, step, index, phase, seed, nanoseconds)
    assert int(memory.epoch) == before + 1


def emulate_launch(
    build: Build,
    cut: Cut,
    net: StepNetwork,
    step: StepArguments,
    index: int,
    phase: int,
    seed: int = 0,
    nanoseconds: int = 1,
) -> None:
    library, shared = build(net.spec, cut), shared_bytes(net.spec, cut)
    assert shared == library.memory_bytes()
    time = ctypes.c_longlong(nanoseconds)
    status = library.emulate(shared, ctypes.byref(step), index, phase, seed, time)
    assert status == 0, library.failure()


def emulate_at_once(
    build: Build, cut: Cut, net: StepNetwork, step: StepArguments, first: int, seed: int
) -> None:
    """A chain's kernels from the first-th on, none of which waits for those in front of it to end."""
    library, shared, count = build(net.spec, cut), shared_bytes(net.spec, cut), len(launches(net.spec, cut))
    time = ctypes.c_longlong(1)
    status = library.emulate_at_once(shared, ctypes.byref(step), first, count - first, seed, time)
    assert status == 0, library.failure()


def emulate(
    build: Build, cut: Cut, net: StepNetwork, given: Case, seed: int = 0, memory: StepMemory | None = None
) -> Case:
    """Runs a step; what it writes is in `given`."""
    memory = memory or memory_of(net, given, cut.team, cut.rows)
    run(build, cut, net, given, memory, seed)
    assert int(memory.failed) == 0
    return given


def check(net: StepNetwork, given: Case) -> None:
    """Logits, keys and values, and positions of a step that has run, against float64."""
    logits, new = expected(net, given)
    off = (given.logits[live_entries(given)].double() - logits).norm() / logits.norm()
    assert off < (4e-2 if net.spec.fp8_kv else 2e-2), off
    for index, wanted in enumerate(new):
        off = (stored_of(net.spec, given, index) - wanted).norm(dim=(-1, -2)) / wanted.norm(dim=(-1, -2))
        assert off.max() < (6e-2 if net.spec.fp8_kv else 2e-2)
    positions = torch.where(given.entry_tokens >= 0, given.positions + 1, 0)
    assert torch.equal(given.entry_positions, positions.int())


def same(first: Case, second: Case) -> None:
    """Everything that two steps have written is equal, bit for bit."""
    live = first.rows >= 0
    assert torch.equal(first.logits[live].view(torch.int16), second.logits[live].view(torch.int16))
    for a, b in zip((*first.pages, *first.scales), (*second.pages, *second.scales), strict=True):
        assert torch.equal(a.view(torch.int16), b.view(torch.int16))


def widened(spec: StepSpec, kind: WeightKind) -> StepSpec:
    """As wide as weights of eight bits need it."""
    if kind == "bf16":
        return spec
    inner = 1024 if spec == WIDE else 2 * spec.inner
    padded = max(512, spec.padded_inner * 2)
    width = 512 if spec == WIDE else 256
    return replace(spec, kind=kind, width=width, heads=width // 64, inner=inner, padded_inner=padded)


def not_narrowed(spec: StepSpec, kind: WeightKind) -> StepSpec:
    """The same for networks that are wider than that."""
    if spec in (WIDER, EIGHT):
        return replace(spec, kind=kind)
    wide = widened(spec, kind)
    return replace(wide, width=max(spec.width, wide.width))
