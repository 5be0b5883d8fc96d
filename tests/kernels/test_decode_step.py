"""kernels/cuda/decode_step.cu, run thread by thread on the host (emulation.h), against float64 and itself."""

import ctypes
import subprocess
from collections.abc import Callable, Iterable
from dataclasses import replace

import pytest
import torch
from _pytest.mark import ParameterSet

from kernels.decode_arguments import SPENT, STAGES, StepArguments, StepMemory, StepNetwork
from kernels.decode_shape import EXCHANGES, SHARED_LIMIT, Cut, defines, shared_bytes
from kernels.decode_step import cut_of, launches, most_rows, team_of
from kernels.quantize import WeightKind
from kernels.step_spec import StepSpec
from tests.kernels.conftest import HostCode
from tests.kernels.decode_cases import (
    BROAD,
    BROADER,
    KINDS,
    LLAMA,
    SMALL,
    SPECS,
    WIDE,
    WIDER,
    Case,
    arguments_of,
    case,
    check_phases,
    expected,
    live_entries,
    memory_of,
    network,
    stored_of,
)

RESIDENT = Cut(rows=1, team=2, warps=8, slots=4)
CHAINED = Cut(rows=1, team=2, warps=8, slots=4, resident=False)
Build = Callable[[StepSpec, Cut], ctypes.CDLL]


@pytest.fixture(scope="module")
def build(host_code: HostCode) -> Build:
    def get(spec: StepSpec, cut: Cut) -> ctypes.CDLL:
        library = host_code("emulate_decode.cpp", defines(spec, cut))
        library.failure.restype = ctypes.c_char_p
        return library

    return get


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


slow = pytest.mark.slow  # compiling a form takes a second or two; each run has one of each sort


def some(forms: Iterable[tuple[str, StepSpec, object]], quick: set[str]) -> list[ParameterSet]:
    """Parameters called by the forms' names; those that are not quick are slow."""
    return [pytest.param(*form, id=name, marks=[] if name in quick else slow) for name, *form in forms]


@pytest.mark.parametrize(
    ("spec", "cut"),
    some(
        (
            (f"{name}-{path}", spec, cut)
            for name, spec in SPECS.items()
            for path, cut in (("resident", RESIDENT), ("chained", CHAINED))
        ),
        {"nanochat-resident", "llama-chained"},
    ),
)
def test_one_row(build: Build, spec: StepSpec, cut: Cut) -> None:
    net = network(spec)
    check(net, emulate(build, cut, net, case(spec, [37])))


def widened(spec: StepSpec, kind: WeightKind) -> StepSpec:
    """As wide as weights of eight bits need it."""
    if kind == "bf16":
        return spec
    inner = 1024 if spec == WIDE else 2 * spec.inner
    padded = max(512, spec.padded_inner * 2)
    width = 512 if spec == WIDE else 256
    return replace(spec, kind=kind, width=width, heads=width // 64, inner=inner, padded_inner=padded)


POSITIONS = [37, 0, -1, 95]  # a page's end, the first token, padding, several chunks for each rank


@pytest.mark.parametrize(
    ("spec", "kind"),
    some(
        ((f"{name}-{kind}", spec, kind) for name, spec in SPECS.items() for kind in KINDS),
        {"wide-bf16", "llama-fp8"},
    ),
)
def test_a_chain_gives_the_bits_of_the_resident_kernel(
    build: Build, spec: StepSpec, kind: WeightKind
) -> None:
    net = network(widened(spec, kind))
    resident, chained = (replace(cut, rows=4) for cut in (RESIDENT, CHAINED))
    first = emulate(build, resident, net, case(net.spec, POSITIONS))
    check(net, first)
    second = emulate(build, chained, net, case(net.spec, POSITIONS), seed=3)
    same(first, second)


@pytest.mark.parametrize("cut", [RESIDENT, CHAINED], ids=["resident", "chained"])
def test_phases_leave_when_they_ended(build: Build, cut: Cut) -> None:
    net = network(SMALL)
    given, cut = case(SMALL, [40, 5]), replace(cut, rows=2)
    memory = memory_of(net, given, cut.team, cut.rows)
    memory.timeline.fill_(-1)
    emulate(build, cut, net, given, memory=memory)
    *ends, begun, ended = memory.timeline.tolist()
    assert len(ends) == SMALL.layers * EXCHANGES + 2
    assert min(ends) >= 0 and min(begun, ended) >= 0
    if cut.resident:  # the clock here begins anew with each launch
        assert ends == sorted(ends) and begun <= ended


@pytest.mark.parametrize(
    ("spec", "kind"),
    some(
        ((f"{name}-{kind}", spec, kind) for name, spec in SPECS.items() for kind in KINDS),
        {
            "wide-bf16",
            "nanochat-int8",
            "llama-fp8",
            "qwen3-bf16",
            "qwen2-int8",
            "nanochat-kv8-bf16",
            "llama-kv8-fp8",
        },
    ),
)
def test_every_phase(build: Build, spec: StepSpec, kind: WeightKind) -> None:
    net = network(widened(spec, kind))
    given, cut = case(net.spec, POSITIONS), replace(CHAINED, rows=4)
    memory = memory_of(net, given, cut.team, cut.rows)

    def launch(index: int, phase: int) -> None:
        emulate_launch(build, cut, net, arguments_of(net, memory, given), index, phase)

    check_phases(net, given, memory, launch)


def same(first: Case, second: Case) -> None:
    """Everything that two steps have written is equal, bit for bit."""
    live = first.rows >= 0
    assert torch.equal(first.logits[live].view(torch.int16), second.logits[live].view(torch.int16))
    for a, b in zip((*first.pages, *first.scales), (*second.pages, *second.scales), strict=True):
        assert torch.equal(a.view(torch.int16), b.view(torch.int16))


@pytest.mark.parametrize("rows", [*(pytest.param(rows, marks=slow) for rows in (1, 2, 8)), 16])
def test_a_row_alone_gets_what_it_gets_among_others(build: Build, rows: int) -> None:
    net, positions = network(SMALL), (POSITIONS * 4)[: max(rows, 4)]
    among = emulate(build, replace(CHAINED, rows=max(rows, 4)), net, case(SMALL, positions))
    for entry in (0, 3):
        alone = case(SMALL, positions).only([entry])
        emulate(build, replace(RESIDENT, rows=1 if rows != 2 else 2), net, alone)
        assert torch.equal(alone.logits[0].view(torch.int16), among.logits[entry].view(torch.int16))


@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=slow) for seed in range(2, 9))])
@pytest.mark.parametrize("clustered", [False, True])
def test_any_order_of_blocks_and_warps_gives_the_same_bits(build: Build, seed: int, clustered: bool) -> None:
    net = network(WIDE)
    cut = replace(RESIDENT, rows=4, clustered=clustered)
    wanted = emulate(build, cut, net, case(WIDE, [70, 15]))
    same(wanted, emulate(build, cut, net, case(WIDE, [70, 15]), seed))
    chain = replace(CHAINED, rows=4, clustered=clustered)
    same(wanted, emulate(build, chain, net, case(WIDE, [70, 15]), seed))


@pytest.mark.parametrize("kind", [pytest.param("bf16", marks=slow), "fp8"])
@pytest.mark.parametrize(
    "spec",
    [pytest.param(BROAD, marks=slow), WIDER, pytest.param(BROADER, marks=slow)],
    ids=["broad", "wider", "broader"],
)
def test_rows_whose_warps_wait_for_their_own_channels(build: Build, spec: StepSpec, kind: WeightKind) -> None:
    spec = replace(spec, kind=kind) if spec == WIDER else replace(widened(spec, kind), width=spec.width)
    net = network(spec)
    among = emulate(build, replace(RESIDENT, rows=2), net, case(spec, [70, 15]), seed=3)
    check(net, among)
    same(among, emulate(build, replace(CHAINED, rows=2), net, case(spec, [70, 15]), seed=4))
    for entry in (0, 1):
        alone = emulate(build, RESIDENT, net, case(spec, [70, 15]).only([entry]), seed=5)
        assert torch.equal(alone.logits[0].view(torch.int16), among.logits[entry].view(torch.int16))


@pytest.mark.parametrize("spec", [WIDER, pytest.param(BROAD, marks=slow)], ids=["wider", "broad"])
def test_warps_that_lag_behind_find_what_they_left(build: Build, spec: StepSpec) -> None:
    """Others of their block may be a product ahead (emulation.h holds warps up behind barriers)."""
    net, cut = network(spec), replace(RESIDENT, rows=2)
    wanted = emulate(build, cut, net, case(spec, [70, 15]))
    for seed in range(6, 16):
        same(wanted, emulate(build, cut, net, case(spec, [70, 15]), seed))


@pytest.mark.parametrize("spoilt", [float("inf"), float("nan")])
def test_what_is_not_finite_is_not_hidden_by_eight_bits(build: Build, spoilt: float) -> None:
    net = network(widened(SMALL, "fp8"))
    given = case(net.spec, [37, 15])
    given.x[0, 5] = spoilt
    emulate(build, replace(RESIDENT, rows=2), net, given)
    assert given.logits[0].isnan().all() and given.logits[1].isfinite().all()


@pytest.mark.parametrize("seed", [2, pytest.param(5, marks=slow)])
def test_who_is_traced_gives_the_same_bits(build: Build, seed: int) -> None:
    net, cut = network(WIDE), replace(RESIDENT, rows=4)
    wanted = emulate(build, cut, net, case(WIDE, [70, 15]))
    given = case(WIDE, [70, 15])
    memory = memory_of(net, given, cut.team, cut.rows)
    same(wanted, emulate(build, replace(cut, traced=True), net, given, seed, memory))
    spent = dict(zip(SPENT, memory.trace.unbind(2), strict=True))
    assert all(spent[name].min() >= 0 and (name == "pace" or spent[name].sum() > 0) for name in SPENT)
    assert (spent["words"] + spent["team"] + spent["weights"] <= spent["all"]).all()
    assert (sum(spent[stage] for stage in STAGES) <= spent["all"]).all()
    assert (spent["team"][:, [1, 2, 4]] == 0).all()  # only attention and the MLP's end ask the team


@pytest.mark.parametrize("wrong", [{"slots": 7}, {"slots": 2}], ids=str)
def test_forms_that_would_never_end_do_not_compile(build: Build, wrong: dict[str, int]) -> None:
    with pytest.raises(subprocess.CalledProcessError) as error:
        build(SMALL, replace(RESIDENT, **wrong))
    assert "static assertion" in error.value.stderr


def test_steps_follow_each_other_over_the_same_memory(build: Build) -> None:
    """What a step left in the exchange is not taken for the next one's."""
    net = network(SMALL)
    cases = [case(SMALL, positions, seed) for seed, positions in enumerate(([5, 40], [80, 3], [16, 17]))]
    memory = memory_of(net, cases[0], 2, 2)
    for step, (given, cut) in enumerate(zip(cases, (RESIDENT, CHAINED, RESIDENT), strict=True)):
        memory.bind(given.views, given.scale_views)
        check(net, emulate(build, replace(cut, rows=2), net, given, step, memory))


@pytest.mark.parametrize("team", [pytest.param(1, marks=slow), 4])
def test_teams_of_other_sizes(build: Build, team: int) -> None:
    net = network(replace(SMALL, inner=512, padded_inner=512))
    check(net, emulate(build, replace(RESIDENT, team=team), net, case(net.spec, [200])))


@pytest.mark.parametrize("cut", [RESIDENT, pytest.param(CHAINED, marks=slow)], ids=["resident", "chained"])
def test_blocks_without_outputs_of_attention(build: Build, cut: Cut) -> None:
    """Half of each team: they go from attention to the MLP, whose sums then lie where attention's did."""
    net = network(replace(SMALL, heads=4, kv_heads=4, inner=512, padded_inner=512))
    cut = replace(cut, team=4, rows=2)
    wanted = emulate(build, cut, net, case(net.spec, [70, 15]))
    check(net, wanted)
    for seed in (1, 2, 3):
        same(wanted, emulate(build, cut, net, case(net.spec, [70, 15]), seed))


# Kernels of a chain run one after the other here, and never wait.
@pytest.mark.parametrize(
    ("cut", "before"),
    [(RESIDENT, True), pytest.param(CHAINED, True, marks=slow), (RESIDENT, False)],
    ids=["resident, failed before", "chained, failed before", "resident, too slow"],
)
def test_a_step_whose_waits_are_given_up_ends_and_the_next_is_right(
    build: Build, cut: Cut, before: bool
) -> None:
    net, cut = network(SMALL), replace(cut, rows=2)
    wanted = emulate(build, cut, net, case(SMALL, [40, 5]))
    given = case(SMALL, [40, 5])
    memory = memory_of(net, given, cut.team, cut.rows)
    memory.failed.fill_(before)
    # A round of the emulation takes little, or so long that every wait takes more than two seconds.
    run(build, cut, net, given, memory, nanoseconds=10**5 if before else 10**7)
    assert int(memory.failed) == 1
    memory.failed.zero_()
    given = case(SMALL, [40, 5])
    memory.bind(given.views, given.scale_views)
    same(wanted, emulate(build, cut, net, given, 0, memory))


@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim", "width", "inner"),
    [
        (16, 16, 128, 2048, 8192),
        (16, 8, 128, 2048, 6144),
        (16, 8, 128, 1024, 3072),
        (32, 8, 64, 2048, 8192),
        (32, 8, 128, 4096, 14336),
    ],
)
@pytest.mark.parametrize("kind", ["bf16", "fp8"])
def test_paths_take_as_many_rows_as_fit_into_a_blocks_memory(
    heads: int, kv_heads: int, dim: int, width: int, inner: int, kind: WeightKind
) -> None:
    """Models that people serve."""
    model = replace(LLAMA, heads=heads, kv_heads=kv_heads, head_dim=dim, width=width, kind=kind)
    model = replace(model, inner=inner, padded_inner=inner, head_rows=65536, layers=32)
    team = team_of(model, 132)
    assert isinstance(team, int), team
    for path, most in most_rows(model, team).items():
        assert most >= 2
        for rows in range(1, most + 1):
            assert shared_bytes(model, cut_of(model, path, rows, team)) <= SHARED_LIMIT
