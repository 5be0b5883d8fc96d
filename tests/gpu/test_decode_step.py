"""The kernels of whole decode steps on a device, each form against float64 and against the others."""

from dataclasses import replace

import pytest
import torch

from kernels.decode_arguments import StepNetwork
from kernels.decode_shape import Cut
from kernels.decode_step import StepKernels, cut_of
from kernels.quantize import WeightKind
from kernels.step_spec import StepPath, StepSpec
from tests.kernels.decode_cases import (
    LARGE_KV8,
    LLAMA,
    LLAMA_KV8,
    QWEN2,
    QWEN3,
    SMALL,
    SMALL_KV8,
    WIDE,
    Case,
    arguments_of,
    case,
    check_phases,
    expected,
    network,
    poison,
)

DEVICE = torch.device("cuda")
SPECS = [SMALL, WIDE, LLAMA, QWEN3, QWEN2, SMALL_KV8, LLAMA_KV8, LARGE_KV8]
NAMES = ["nanochat", "wide", "llama", "qwen3", "qwen2", "nanochat-kv8", "llama-kv8", "large-kv8"]
POSITIONS = [37, 0, -1, 95]
# Contexts at and around the borders of blocks, chunks (32 keys) and rounds of the ring.
EDGES = [0, 1, 15, 16, 17, 31, 32, 33, 63, 64, 255, 256, 257, 1023, 1500, 3000]


def kernels_for(net: StepNetwork) -> StepKernels:
    made = StepKernels(net.spec, net.layers, net.head, net.final_norm, net.own, net.other, DEVICE)
    poison(made.memory)
    return made


def run(kernels: StepKernels, cut: Cut, given: Case, times: int = 1) -> Case:
    """A step, or several of the same inputs, in one form; what it writes is in `given`."""
    kernels.bind(given.views, given.scale_views)
    step = arguments_of(kernels.network, kernels.memory, given)
    for _ in range(times):
        kernels.launch(cut, step)
    torch.cuda.synchronize()
    assert int(kernels.failed) == 0
    return given


def bits(given: Case) -> list[torch.Tensor]:
    live = given.rows >= 0
    kept = (*given.pages, *given.scales)
    return [given.logits[live].view(torch.int16), *(memory.view(torch.int16) for memory in kept)]


def same(first: Case, second: Case) -> None:
    assert all(torch.equal(a, b) for a, b in zip(bits(first), bits(second), strict=True))


def forms(kernels: StepKernels, rows: int) -> list[Cut]:
    """Every way to run a step of so many rows, those included that are not chosen here."""
    spec, team = kernels.network.spec, kernels.team
    found = [cut_of(spec, "chained", rows, team)]
    if rows <= 4:
        found.append(cut_of(spec, "persistent", rows, team))
    others = [replace(cut, hurry=2) for cut in found] + [replace(cut, traced=True) for cut in found]
    return [*found, *others, *(replace(cut, clustered=True) for cut in found)]


def served(spec: StepSpec, kind: WeightKind) -> StepSpec:
    """As much wider as eight bits need it, and deep enough for teams of several blocks."""
    if kind == "bf16":
        return replace(spec, kind=kind)
    inner, padded = (1024, 1024) if spec.activation == "relu2" else (416, 1024)
    return replace(spec, kind=kind, width=512, heads=8, inner=inner, padded_inner=padded)


@pytest.mark.parametrize("kind", ["bf16", "int8", "fp8"])
@pytest.mark.parametrize("spec", SPECS, ids=NAMES)
@pytest.mark.parametrize("rows", [1, 4, 16])
def test_every_form_gives_the_same_bits(spec: StepSpec, kind: WeightKind, rows: int) -> None:
    net = network(served(spec, kind), device="cuda")
    kernels, positions = kernels_for(net), (POSITIONS * 4)[:rows]
    results = [run(kernels, cut, case(net.spec, positions, device="cuda")) for cut in forms(kernels, rows)]
    logits, new = expected(net, case(net.spec, positions, device="cuda"))
    live = results[0].rows >= 0
    assert (results[0].logits[live].double().cpu() - logits).norm() / logits.norm() < 2e-2
    assert len(new) == net.spec.layers
    for other in results[1:]:
        same(results[0], other)


@pytest.mark.parametrize("kind", ["bf16", "int8", "fp8"])
@pytest.mark.parametrize("spec", SPECS, ids=NAMES)
@pytest.mark.parametrize("rows", [1, 4, 16])
def test_every_phase(spec: StepSpec, kind: WeightKind, rows: int) -> None:
    net = network(served(spec, kind), device="cuda")
    kernels, given = kernels_for(net), case(net.spec, (POSITIONS * 4)[:rows], device="cuda")
    kernels.bind(given.views, given.scale_views)
    cut, step = cut_of(net.spec, "chained", rows, kernels.team), arguments_of(net, kernels.memory, given)

    def launch(index: int, phase: int) -> None:
        kernels.launch(cut, step, [(index, phase)])
        torch.cuda.synchronize()
        assert int(kernels.failed) == 0

    check_phases(net, given, kernels.memory, launch)


@pytest.mark.parametrize(("readers", "chains"), [(2, 1), (2, 2), (8, 1)])
def test_other_readers_and_chains(readers: int, chains: int) -> None:
    net = network(WIDE, device="cuda")
    kernels = kernels_for(net)
    cuts = [replace(cut, readers=readers, chains=chains) for cut in forms(kernels, 4)]
    results = [run(kernels, cut, case(WIDE, POSITIONS, device="cuda")) for cut in cuts]
    logits, _ = expected(net, case(WIDE, POSITIONS, device="cuda"))
    live = results[0].rows >= 0
    assert (results[0].logits[live].double().cpu() - logits).norm() / logits.norm() < 2e-2
    for other in results[1:]:
        same(results[0], other)


@pytest.mark.parametrize("position", EDGES)
def test_contexts_across_borders(position: int) -> None:
    net = network(SMALL, device="cuda")
    kernels = kernels_for(net)
    for cut in forms(kernels, 1):
        given = run(kernels, cut, case(SMALL, [position], device="cuda"))
        logits, _ = expected(net, case(SMALL, [position], device="cuda"))
        assert (given.logits.double().cpu() - logits).norm() / logits.norm() < 2e-2


@pytest.mark.parametrize("delay", [0, 20_000])
def test_a_thousand_steps_give_the_same_bits(delay: int) -> None:
    """Also where blocks come late; what the steps before left in the exchange is not taken for their own."""
    net = network(WIDE, device="cuda")
    kernels = kernels_for(net)
    wanted = run(kernels, cut_of(WIDE, "persistent", 4, kernels.team), case(WIDE, POSITIONS, device="cuda"))
    for cut in forms(kernels, 4):
        given = case(WIDE, POSITIONS, device="cuda")
        for _ in range(100 if delay else 1000):
            given.logits.fill_(float("nan"))
            run(kernels, replace(cut, delay=delay), given)
            same(wanted, given)


def test_a_row_alone_gets_what_it_gets_among_others() -> None:
    net = network(WIDE, device="cuda")
    kernels = kernels_for(net)
    among = run(kernels, cut_of(WIDE, "chained", 16, kernels.team), case(WIDE, POSITIONS * 4, device="cuda"))
    for entry in (0, 3, 13):
        for cut in forms(kernels, 1):
            alone = run(kernels, cut, case(WIDE, POSITIONS * 4, device="cuda").only([entry]))
            assert torch.equal(alone.logits[0].view(torch.int16), among.logits[entry].view(torch.int16))


def test_a_step_that_has_failed_ends() -> None:
    """Later ones do not wait for each other any more, and those after the flag is lowered are right again."""
    net = network(SMALL, device="cuda")
    kernels = kernels_for(net)
    for cut in forms(kernels, 4):
        wanted = run(kernels, cut, case(SMALL, POSITIONS, device="cuda"))
        kernels.failed.fill_(1)
        steps = int(kernels.memory.epoch)
        given = case(SMALL, POSITIONS, device="cuda")
        kernels.bind(given.views, given.scale_views)
        with pytest.raises(AssertionError):
            run(kernels, cut, given)
        assert int(kernels.memory.epoch) == steps + 1  # every block has come to its end
        kernels.failed.zero_()
        same(wanted, run(kernels, cut, case(SMALL, POSITIONS, device="cuda")))


@pytest.mark.parametrize("path", ["persistent", "chained"])
def test_the_phases_times_add_up(path: StepPath) -> None:
    net = network(SMALL, device="cuda")
    kernels = kernels_for(net)
    run(kernels, cut_of(SMALL, path, 1, kernels.team), case(SMALL, [20], device="cuda"), times=3)
    times = kernels.phase_times()
    assert set(times) == {"attention", "o", "mlp in", "mlp out", "head"}
    assert all(ms >= 0 for ms in times.values()) and 0 < sum(times.values()) < 1000
