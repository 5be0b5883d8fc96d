"""The kernels of whole decode steps on a device, each form against float64 and against the others."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from kernels.cuda_driver import architecture
from kernels.decode_arguments import StepNetwork
from kernels.decode_shape import Cut, defines, fitted, may_be_whole
from kernels.decode_step import CLUSTERED_SHARE, ROWS, StepKernels, cut_of, source, team_of
from kernels.nvrtc import compile_many
from kernels.quantize import WeightKind
from kernels.step_spec import StepPath, StepSpec
from tests.kernels.decode_cases import (
    BROAD,
    BROADER,
    D32,
    KINDS,
    LARGE_KV8,
    LLAMA_D32,
    SMALL,
    SPECS,
    WIDE,
    WIDER,
    Case,
    arguments_of,
    case,
    check_phases,
    expected,
    network,
    poison,
)

DEVICE = torch.device("cuda")
POSITIONS = [37, 0, -1, 95]
DELAY = 20_000  # nanoseconds that blocks are late at most
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


def forms_of(spec: StepSpec, rows: int, team: int) -> list[Cut]:
    """Every way to run a step of so many rows, those included that are not chosen here: clusters, the other
    way to share the MLP, and of one network those that count what they wait for."""
    paths: list[StepPath] = ["chained", "persistent"] if rows <= max(ROWS["persistent"]) else ["chained"]
    found = [cut_of(spec, path, rows, team) for path in paths]
    others = [replace(cut, clustered=True) for cut in found]
    if may_be_whole(spec, team, rows):
        others += [replace(cut, mlp_out_whole=not cut.mlp_out_whole) for cut in found]
    if spec == SMALL:
        others += [replace(cut, traced=True) for cut in found]
    return [fits for cut in (*found, *others) if (fits := fitted(spec, cut)) is not None]


def forms(kernels: StepKernels, rows: int) -> list[Cut]:
    """Those that the device has room for: clusters that do not all run would be waited for in vain."""
    spec, team = kernels.network.spec, kernels.team
    clusters = spec.kv_heads * team <= CLUSTERED_SHARE * kernels.multiprocessors
    return [cut for cut in forms_of(spec, rows, team) if clusters or not cut.clustered]


def served(spec: StepSpec, kind: WeightKind) -> StepSpec:
    """As much wider as eight bits need it, and deep enough for teams of several blocks."""
    if kind == "bf16":
        return replace(spec, kind=kind)
    inner, padded = (1024, 1024) if spec.activation == "relu2" else (416, 1024)
    return replace(spec, kind=kind, width=512, heads=8, inner=inner, padded_inner=padded)


# More rows of the large heads do not fit into a block's memory.
NETWORKS = [
    pytest.param(served(spec, kind), rows, id=f"{name}-{kind}-{rows}")
    for name, spec in SPECS.items()
    for kind in KINDS
    for rows in (1, 4, 16)
    if rows < 16 or spec is not LARGE_KV8
]
# Whose warps gather the channels that they multiply, in one piece or two.
NETWORKS += [
    pytest.param(replace(served(spec, kind), width=spec.width), rows, id=f"{name}-{kind}-{rows}")
    for name, spec in (("broad", BROAD), ("broader", BROADER))
    for kind in KINDS
    for rows in (1, 2, 4)
]
# The same of eight warps, which models that people serve have; the MLP's channels are gathered so, too.
NETWORKS += [
    pytest.param(
        replace(WIDER, kind=kind, width=width, inner=4080, padded_inner=4096),
        rows,
        id=f"wider-{width}-{kind}-{rows}",
    )
    for kind in KINDS
    for width, rows in ((1024, 1), (1024, 2), (1024, 4), (1024, 16), (4096, 4))
]
# One layer of the benchmarks' models, whose teams are of eight.
NETWORKS += [
    pytest.param(replace(spec, kind=kind, layers=1, head_rows=2048), rows, id=f"{name}-{kind}-{rows}")
    for name, spec in (("d32", D32), ("llama-d32", LLAMA_D32))
    for kind in KINDS
    for rows in (1, 2, 4)
]
# Those of all other tests, and those that are run with blocks that come late.
LATE = [WIDE, BROAD, WIDER]
OTHERS = [(SMALL, 1), (SMALL, 4), (WIDE, 1), (WIDE, 16), *((spec, 4) for spec in LATE)]


def needed(chosen: Sequence[pytest.Item], multiprocessors: int) -> list[dict[str, int]]:
    """Compile-time constants of all forms that these tests run."""
    given = [getattr(item, "callspec", None) for item in chosen]
    params = [spec.params if spec is not None else {} for spec in given]
    wanted = {(one["spec"], one["rows"]) for one in params if "rows" in one}
    if any("spec" not in one or "delay" in one for one in params):
        wanted |= set(OTHERS)
    found: list[dict[str, int]] = []
    for spec, rows in wanted:
        team = team_of(spec, multiprocessors)
        assert isinstance(team, int), team
        cuts = forms_of(spec, rows, team)
        found += [defines(spec, cut) for cut in cuts]
        if spec in LATE and rows == 4:
            found += [defines(spec, replace(cut, delay=DELAY)) for cut in cuts]
    return found


@pytest.fixture(scope="module", autouse=True)
def compiled(cuda: None, request: pytest.FixtureRequest) -> None:
    """On all cores: one after the other, each form takes more than a second where a test first needs it."""
    multiprocessors = torch.cuda.get_device_properties(DEVICE).multi_processor_count
    chosen = [item for item in request.session.items if item.path == request.path]
    arch = architecture(torch.cuda.current_device())
    compile_many(source(), "decode_step", arch, needed(chosen, multiprocessors))()


def check(net: StepNetwork, given: Case) -> None:
    """The logits of a step that has run, against float64 of the same inputs."""
    logits, new = expected(net, given)
    live = given.rows >= 0
    # A number rounded to eight bits may go the other way, if what it is made of was off by a little.
    most = 4e-2 if net.spec.fp8_kv else 2e-2
    assert (given.logits[live].double().cpu() - logits).norm() / logits.norm() < most
    assert len(new) == net.spec.layers


@pytest.mark.parametrize(("spec", "rows"), NETWORKS)
def test_every_form_gives_the_same_bits(spec: StepSpec, rows: int) -> None:
    net, positions = network(spec, device="cuda"), (POSITIONS * 4)[:rows]
    kernels = kernels_for(net)
    results = [run(kernels, cut, case(spec, positions, device="cuda")) for cut in forms(kernels, rows)]
    check(net, results[0])
    for other in results[1:]:
        same(results[0], other)


@pytest.mark.parametrize(("spec", "rows"), NETWORKS)
def test_every_phase(spec: StepSpec, rows: int) -> None:
    net = network(spec, device="cuda")
    kernels, given = kernels_for(net), case(spec, (POSITIONS * 4)[:rows], device="cuda")
    kernels.bind(given.views, given.scale_views)
    cut, step = cut_of(spec, "chained", rows, kernels.team), arguments_of(net, kernels.memory, given)

    def launch(index: int, phase: int) -> None:
        kernels.launch(cut, step, [(index, phase)])
        torch.cuda.synchronize()
        assert int(kernels.failed) == 0

    check_phases(net, given, kernels.memory, launch)


@pytest.mark.parametrize("position", EDGES)
def test_contexts_across_borders(position: int) -> None:
    net = network(SMALL, device="cuda")
    kernels = kernels_for(net)
    for cut in forms(kernels, 1):
        check(net, run(kernels, cut, case(SMALL, [position], device="cuda")))


@pytest.mark.parametrize(
    ("spec", "delay"),
    [(WIDE, 0), *((spec, DELAY) for spec in LATE)],
    ids=["wide", "wide-late", "broad-late", "wider-late"],
)
def test_a_thousand_steps_give_the_same_bits(spec: StepSpec, delay: int) -> None:
    """Also where blocks come late; what the steps before left in the exchange is not taken for their own."""
    net = network(spec, device="cuda")
    kernels = kernels_for(net)
    wanted = run(kernels, cut_of(spec, "persistent", 4, kernels.team), case(spec, POSITIONS, device="cuda"))
    for cut in forms(kernels, 4):
        given = case(spec, POSITIONS, device="cuda")
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
