"""kernels/cuda/decode_step.cu, run thread by thread on the host (emulation.h), against float64 and itself."""

import subprocess
from collections.abc import Iterable
from dataclasses import replace

import pytest
import torch
from _pytest.mark import ParameterSet

from kernels.decode_arguments import SPENT, STAGES
from kernels.decode_shape import EXCHANGES, SHARED_LIMIT, Cut, may_be_whole, shared_bytes, unsupported
from kernels.decode_step import WHOLE_ROWS, cut_of, most_rows, team_of
from kernels.quantize import Weight8, WeightKind
from kernels.step_spec import StepSpec
from tests.kernels.decode_cases import (
    BROAD,
    BROADER,
    EIGHT,
    KINDS,
    LLAMA,
    SMALL,
    SPECS,
    WIDE,
    WIDER,
    arguments_of,
    case,
    check_phases,
    memory_of,
    network,
)
from tests.kernels.decode_host import (
    CHAINED,
    RESIDENT,
    WHOLE,
    WHOLE_CHAINED,
    Build,
    check,
    emulate,
    emulate_at_once,
    emulate_launch,
    not_narrowed,
    run,
    same,
    widened,
)

# Half of each team of four has no outputs of attention.
NARROW = replace(SMALL, heads=4, kv_heads=4, inner=512, padded_inner=512)
AT_ONCE = 3  # the first of a chain's kernels that run at once
BROAD_SPECS = {"broad": BROAD, "wider": WIDER, "broader": BROADER, "eight": EIGHT}
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


@pytest.mark.parametrize(
    ("spec", "kind", "team", "rows"),
    some(
        (
            (f"{name}-{kind}-{team}-{rows}", spec, kind, team, rows)
            for name, spec in (SPECS | BROAD_SPECS).items()
            for kind in KINDS
            for team in (2, 4, 8)
            for rows in (2, 4)
            if unsupported(not_narrowed(spec, kind), team) is None
        ),
        {"wide-bf16-4-2", "llama-fp8-2-4", "wider-fp8-4-2", "eight-int8-8-2"},
    ),
)
def test_all_inputs_give_the_bits_of_shares(
    build: Build, spec: StepSpec, kind: WeightKind, team: int, rows: int
) -> None:
    """Of the MLP's second product, for each number of rows that there are forms for."""
    spec = not_narrowed(spec, kind)
    net, positions = network(spec), [70, 15, -1, 37][:rows]
    wanted = emulate(build, replace(RESIDENT, team=team, rows=rows), net, case(spec, positions))
    check(net, wanted)
    for seed, cut in enumerate((WHOLE, WHOLE_CHAINED), 3):
        same(wanted, emulate(build, replace(cut, team=team, rows=rows), net, case(spec, positions), seed))
    alone = emulate(build, replace(WHOLE, team=team), net, case(spec, positions).only([1]), 5)
    assert torch.equal(alone.logits[0].view(torch.int16), wanted.logits[1].view(torch.int16))


@pytest.mark.parametrize("kind", ["int8", "fp8"])
@pytest.mark.parametrize("cut", [CHAINED, WHOLE_CHAINED], ids=["shares", "all inputs"])
def test_outputs_join_the_residual_stream_with_one_rounding(build: Build, cut: Cut, kind: WeightKind) -> None:
    """A compiler that may choose gives forms of its own bits. Here the stream cancels an output to all but
    what a rounding of its factor's product would take.
    """
    spec, cut = widened(SMALL, kind), replace(cut, rows=4)
    net, given = network(spec), case(spec, [3] * cut.rows)
    memory, random = memory_of(net, given, cut.team, cut.rows), torch.Generator().manual_seed(2)
    tag, layer = int(memory.epoch) * (spec.layers + 1) * EXCHANGES, net.layers[0]
    powers = 2.0 ** torch.arange(cut.rows)[:, None]

    def fill(name: str, rows: torch.Tensor, tag: int) -> None:
        pairs = rows.bfloat16().contiguous().view(torch.int32)
        words = torch.stack((pairs, torch.full_like(pairs, tag)), dim=-1)
        memory.exchange[name].view(torch.int32)[: words.numel()] = words.flatten()

    def first_only(channels: int) -> torch.Tensor:
        return torch.cat((powers, torch.zeros(cut.rows, channels - 1)), dim=1)

    for weight, phase, found in ((layer.o, 1, "middle"), (layer.mlp_out, 3, "stream")):
        assert isinstance(weight, Weight8)
        outputs = torch.randn(spec.width, generator=random).bfloat16().float()
        odd = torch.randint(1, 8, (spec.width,), generator=random) * 2.0 + 1
        weight.values[:, 0] = odd.to(weight.values.dtype)
        weight.scales.copy_(outputs / odd)
        given.x.copy_(-outputs * powers)
        fill("attended", first_only(spec.heads * spec.head_dim), tag + 1)
        fill("middle", -outputs * powers, tag + 2)
        fill("inner", first_only(spec.inner), tag + 3)
        emulate_launch(build, cut, net, arguments_of(net, memory, given), 0, phase)
        words = memory.exchange[found][: given.x.numel() // 2].view(torch.bfloat16)
        wanted = (odd.double() * weight.scales.double() - outputs.double()) * powers
        assert (wanted != 0).float().mean() > 0.5
        assert torch.equal(words.view(cut.rows, -1, 4)[:, :, :2].flatten(1).double(), wanted)


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
@pytest.mark.parametrize("cuts", [(RESIDENT, CHAINED), (WHOLE, WHOLE_CHAINED)], ids=["shares", "all inputs"])
def test_any_order_of_blocks_and_warps_gives_the_same_bits(
    build: Build, seed: int, clustered: bool, cuts: tuple[Cut, Cut]
) -> None:
    net = network(WIDE)
    wanted = emulate(build, replace(RESIDENT, rows=4), net, case(WIDE, [70, 15]))
    for cut in cuts:
        cut = replace(cut, rows=4, clustered=clustered)
        same(wanted, emulate(build, cut, net, case(WIDE, [70, 15]), seed))


@pytest.mark.parametrize("kind", [pytest.param("bf16", marks=slow), "fp8"])
@pytest.mark.parametrize(
    "spec",
    [pytest.param(BROAD, marks=slow), WIDER, pytest.param(BROADER, marks=slow)],
    ids=["broad", "wider", "broader"],
)
def test_rows_whose_warps_wait_for_their_own_channels(build: Build, spec: StepSpec, kind: WeightKind) -> None:
    spec = not_narrowed(spec, kind)
    net = network(spec)
    among = emulate(build, replace(RESIDENT, rows=2), net, case(spec, [70, 15]), seed=3)
    check(net, among)
    same(among, emulate(build, replace(CHAINED, rows=2), net, case(spec, [70, 15]), seed=4))
    for entry in (0, 1):
        alone = emulate(build, RESIDENT, net, case(spec, [70, 15]).only([entry]), seed=5)
        assert torch.equal(alone.logits[0].view(torch.int16), among.logits[entry].view(torch.int16))


@pytest.mark.parametrize(
    ("spec", "cut"),
    [
        (WIDER, RESIDENT),
        (WIDER, WHOLE),
        pytest.param(BROAD, RESIDENT, marks=slow),
        pytest.param(BROAD, WHOLE, marks=slow),
    ],
    ids=["wider", "wider, all inputs", "broad", "broad, all inputs"],
)
def test_warps_that_lag_behind_find_what_they_left(build: Build, spec: StepSpec, cut: Cut) -> None:
    """Others of their block may be a product ahead (emulation.h holds warps up behind barriers)."""
    net, cut = network(spec), replace(cut, rows=2)
    wanted = emulate(build, cut, net, case(spec, [70, 15]))
    for seed in range(6, 16):
        same(wanted, emulate(build, cut, net, case(spec, [70, 15]), seed))


@pytest.mark.parametrize(("spoilt", "cut"), [(float("inf"), RESIDENT), (float("nan"), WHOLE)], ids=str)
def test_what_is_not_finite_is_not_hidden_by_eight_bits(build: Build, spoilt: float, cut: Cut) -> None:
    net = network(widened(SMALL, "fp8"))
    given = case(net.spec, [37, 15])
    given.x[0, 5] = spoilt
    emulate(build, replace(cut, rows=2), net, given)
    assert given.logits[0].isnan().all() and given.logits[1].isfinite().all()


@pytest.mark.parametrize("cut", [RESIDENT, pytest.param(WHOLE, marks=slow)], ids=["shares", "all inputs"])
@pytest.mark.parametrize("seed", [2, pytest.param(5, marks=slow)])
def test_who_is_traced_gives_the_same_bits(build: Build, seed: int, cut: Cut) -> None:
    net, cut = network(WIDE), replace(cut, rows=4)
    wanted = emulate(build, cut, net, case(WIDE, [70, 15]))
    given = case(WIDE, [70, 15])
    memory = memory_of(net, given, cut.team, cut.rows)
    same(wanted, emulate(build, replace(cut, traced=True), net, given, seed, memory))
    spent = dict(zip(SPENT, memory.trace.unbind(2), strict=True))
    assert all(spent[name].min() >= 0 and (name == "pace" or spent[name].sum() > 0) for name in SPENT)
    assert (spent["words"] + spent["team"] + spent["weights"] <= spent["all"]).all()
    assert (sum(spent[stage] for stage in STAGES) <= spent["all"]).all()
    # Only attention and the MLP's end ask the team, and that only where it has shares.
    assert (spent["team"][:, [1, 2, 4, *([3] if cut.mlp_out_whole else [])]] == 0).all()


@pytest.mark.parametrize("wrong", [{"slots": 7}, {"slots": 2}], ids=str)
def test_forms_that_would_never_end_do_not_compile(build: Build, wrong: dict[str, int]) -> None:
    with pytest.raises(subprocess.CalledProcessError) as error:
        build(SMALL, replace(RESIDENT, **wrong))
    assert "static assertion" in error.value.stderr


@pytest.mark.parametrize(
    "cuts", [(RESIDENT, CHAINED, RESIDENT), (WHOLE, RESIDENT, WHOLE_CHAINED)], ids=["shares", "all inputs"]
)
def test_steps_follow_each_other_over_the_same_memory(build: Build, cuts: tuple[Cut, ...]) -> None:
    """What a step left in the exchange is not taken for the next one's."""
    net = network(SMALL)
    cases = [case(SMALL, positions, seed) for seed, positions in enumerate(([5, 40], [80, 3], [16, 17]))]
    memory = memory_of(net, cases[0], 2, 2)
    for step, (given, cut) in enumerate(zip(cases, cuts, strict=True)):
        memory.bind(given.views, given.scale_views)
        check(net, emulate(build, replace(cut, rows=2), net, given, step, memory))


@pytest.mark.parametrize("team", [pytest.param(1, marks=slow), 4])
def test_teams_of_other_sizes(build: Build, team: int) -> None:
    net = network(replace(SMALL, inner=512, padded_inner=512))
    check(net, emulate(build, replace(RESIDENT, team=team), net, case(net.spec, [200])))


@pytest.mark.parametrize(
    "cut",
    [RESIDENT, WHOLE, *(pytest.param(cut, marks=slow) for cut in (CHAINED, WHOLE_CHAINED))],
    ids=["resident", "all inputs", "chained", "chained, all inputs"],
)
def test_blocks_without_outputs_of_attention(build: Build, cut: Cut) -> None:
    """They go from attention to the MLP, whose sums then lie where attention's did."""
    net = network(NARROW)
    cut = replace(cut, team=4, rows=2)
    wanted = emulate(build, cut, net, case(net.spec, [70, 15]))
    check(net, wanted)
    for seed in (1, 2, 3):
        same(wanted, emulate(build, cut, net, case(net.spec, [70, 15]), seed))


@pytest.mark.parametrize(
    ("spec", "cut"),
    some(
        (
            ("two ranks have no inputs", replace(SMALL, inner=416, padded_inner=1024), CHAINED),
            ("all have some", replace(SMALL, inner=1024, padded_inner=1024), CHAINED),
            ("all inputs", replace(SMALL, inner=416, padded_inner=1024), WHOLE_CHAINED),
            ("blocks without outputs", NARROW, CHAINED),
            ("all inputs, blocks without outputs", NARROW, WHOLE_CHAINED),
            ("swiglu", replace(LLAMA, inner=416, padded_inner=1024), CHAINED),
        ),
        {"two ranks have no inputs"},
    ),
)
def test_kernels_of_a_chain_may_run_at_once(build: Build, spec: StepSpec, cut: Cut) -> None:
    """All but the first layer's up to the MLP's last product: no block writes where another has to read."""
    net, cut = network(spec), replace(cut, team=4, rows=2)
    wanted = emulate(build, cut, net, case(net.spec, [70, 15]))
    for seed in (1, 2, 3):
        given = case(net.spec, [70, 15])
        memory = memory_of(net, given, cut.team, cut.rows)
        step = arguments_of(net, memory, given)
        for phase in range(AT_ONCE):
            emulate_launch(build, cut, net, step, 0, phase, seed)
        emulate_at_once(build, cut, net, step, AT_ONCE, seed)
        assert int(memory.failed) == 0
        same(wanted, given)


# Kernels of a chain run one after the other here, and never wait.
@pytest.mark.parametrize(
    ("cut", "before"),
    [
        (RESIDENT, True),
        pytest.param(CHAINED, True, marks=slow),
        (RESIDENT, False),
        pytest.param(WHOLE, True, marks=slow),
        (WHOLE, False),
    ],
    ids=[
        "resident, failed before",
        "chained, failed before",
        "resident, too slow",
        "all inputs, failed before",
        "all inputs, too slow",
    ],
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


def test_blocks_take_all_inputs_where_these_leave_room_for_a_ring() -> None:
    spec = replace(LLAMA, heads=16, kv_heads=16, head_dim=128, width=2048, inner=6144, padded_inner=6144)
    assert not cut_of(replace(spec, inner=8192, padded_inner=8192), "persistent", 1, 8).mlp_out_whole
    assert cut_of(spec, "persistent", 1, 8).mlp_out_whole and cut_of(spec, "chained", 1, 8).mlp_out_whole
    assert not cut_of(spec, "persistent", WHOLE_ROWS + 1, 8).mlp_out_whole
    assert [rows for rows in (1, 2, 4, 8, 16) if may_be_whole(spec, 8, rows)] == [1, 2, 4]  # warps' sums
    assert not may_be_whole(replace(spec, width=2048 + 256), 8, 1)  # some would have twice as many outputs
    larger = replace(spec, inner=32768, padded_inner=32768, kind="fp8")
    assert may_be_whole(larger, 8, 1) and not cut_of(larger, "persistent", 1, 8).mlp_out_whole
