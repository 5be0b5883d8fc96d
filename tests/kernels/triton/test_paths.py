"""Decode paths around their kernels, which plain torch stands for: what may serve, and what does."""

import itertools
import logging
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from engine.decoder import Decoder
from engine.fastpath import FlagUnavailable
from engine.gpu.cache import PagedKV
from engine.gpu.inputs import StepInputs, StepShape
from engine.gpu.network import Network
from engine.gpu.path_choice import Wanted, choose_paths, fastest, read_times, write_times
from engine.gpu.path_trial import FIRST_DIFFERENCE, Fault, Trial, Wrote, different, fill
from engine.gpu.paths import spec_of
from engine.gpu.weights import Keeper, network_weights
from kernels.kv8 import FORMAT
from kernels.step_spec import StepPath
from tests.kernels.plain_step import Done, library
from tests.kernels.quick_network import quicken
from tests.kernels.triton.path_cases import (
    BF16,
    BLOCK,
    BUCKETS,
    CLOCK,
    KINDS,
    LENGTH,
    Clock,
    cache_of,
    choose,
    gpt,
    llama,
    network_of,
)

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="tests/gpu/test_paths.py has the real one")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    quicken(monkeypatch, samples=False)


@pytest.mark.parametrize("name", ["G1", "llama", "qwen2", "qwen3"])
def test_plain_torch_agrees_with_the_networks_own_kernels(name: str, tmp_path: Path) -> None:
    """Those of Triton. Everywhere below they are torch's, too, to be quick."""
    model, kind = KINDS[name]()
    network = network_of(model, kind)
    choose(model, network, tmp_path, "persistent", buckets=(1, 3))
    assert network.paths.table == {1: "persistent", 3: "persistent"}


@pytest.mark.parametrize("name", KINDS)
def test_what_is_right_serves(quick: None, name: str, tmp_path: Path) -> None:
    model, kind = KINDS[name]()
    network = network_of(model, kind)
    kept = network.cache
    choices, kernels = choose(model, network, tmp_path)
    assert kernels is not None and network.paths.kernels is kernels and network.cache is kept
    assert network.paths.table == {1: "persistent", 2: "persistent", 4: "persistent", 5: "chained"}
    assert kernels.prepared == {
        *((path, rows) for path in ("chained", "persistent") for rows in (1, 2, 4)),
        ("chained", 5),
    }
    assert network.step_counter.item() == 0
    assert [row[:3] for row in choices.explain("auto")] == [
        ("decode path M=1", "auto", "persistent"),
        ("decode path M=2", "auto", "persistent"),
        ("decode path M=4", "auto", "persistent"),
        ("decode path M=5", "auto", "chained"),
    ]
    assert not network.rows.block_tables.any()
    assert choices.explain("auto")[0][3] == "graph 3.000 ms, chained 2.000 ms, persistent 1.000 ms"


@pytest.mark.parametrize("name", ["G1", "llama fp8"])
def test_keys_and_values_of_eight_bits(quick: None, name: str, tmp_path: Path) -> None:
    """Found right where they are, and wrong where a scale or a number is."""
    model, kind = KINDS[name]()
    network = network_of(model, kind, FORMAT)
    choose(model, network, tmp_path, "persistent")
    assert set(network.paths.table.values()) == {"persistent"}

    def other_scale(done: Done) -> None:
        slot = int(done.slots[0])
        scales = done.by.scales[-1]
        assert scales is not None
        scales[1][slot // BLOCK, slot % BLOCK] *= 1.25

    with pytest.raises(FlagUnavailable, match="keys and values of layer 1 are off"):
        choose(model, network_of(model, kind, FORMAT), tmp_path, "persistent", fault=other_scale)


# -- what may not serve


def spoiled(spoil: Callable[[Done], None], path: StepPath = "persistent") -> Callable[[Done], None]:
    def fault(done: Done) -> None:
        if done.path == path and done.logits.size(0) == 4:
            spoil(done)

    return fault


def last_row(done: Done) -> torch.Tensor:
    return done.logits[int((done.slots >= 0).sum()) - 1]


def write_for_padding(done: Done) -> None:
    if (done.slots < 0).any():
        done.by.pages[0][0][1] += 1.0


FAULTS: dict[str, tuple[Callable[[Done], None], str]] = {
    "one row a little off": (lambda done: last_row(done).mul_(1.05), "logits are off by 0.05"),
    "one number": (lambda done: last_row(done)[7].add_(0.1 * last_row(done).abs().max()), "a number"),
    "no number": (lambda done: last_row(done)[7].fill_(float("nan")), "logits are not finite"),
    "values not written": (lambda done: done.page(0).fill_(7.0), "keys and values of layer 1"),
    "a neighbour's place": (lambda done: done.page(0, -1).add_(1.0), "nobody's was written"),
    "a place for padding": (write_for_padding, "nobody's was written at 3 of 4 rows"),
    "positions": (lambda done: done.entry_positions[0].add_(1), "next positions are wrong"),
    "gave up": (lambda done: done.by.failed.fill_(1), "took too long"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_wrong_does_not_serve(
    quick: None, fault: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """At the one number of rows where it is wrong; where it was asked for, that is an error."""
    spoil, message = FAULTS[fault]
    model, options = gpt(), {"fault": spoiled(spoil), "buckets": (2, 4)}
    network = network_of(model)
    with caplog.at_level(logging.WARNING, "fastpath.engine"):
        choices, kernels = choose(model, network, tmp_path, **options)  # type: ignore[arg-type]
    assert message in choices.by_rows[4].reason and message in caplog.text
    assert network.paths.table == {2: "persistent", 4: "chained"}
    assert kernels is not None and not kernels.failed.item()
    network = network_of(model)
    with pytest.raises(FlagUnavailable, match=f"decode_path is persistent, but .*4 rows: .*{message}"):
        choose(model, network, tmp_path, "persistent", **options)  # type: ignore[arg-type]
    assert network.paths.kernels is None and not network.paths.table


@pytest.mark.parametrize(
    ("said", "serves"),
    [([1, 0, 0], True), ([0], True), ([1, 0, 1], False), ([1, 1], False), ([2], False), ([1, 2], False)],
    ids=str,
)
def test_a_small_difference_is_tried_with_other_tokens(
    quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: list[int], serves: bool
) -> None:
    """said: of each trial of the first positions whether the path is right, a little apart, or wrong."""
    asked = [*said, 0]  # the second positions are right
    tried: list[int] = []

    def disagreement(trial: Trial, path: StepPath, want: Wrote) -> Fault | None:
        tried.append(asked[len(tried)])
        return Fault("apart", final=tried[-1] == 2) if tried[-1] else None

    monkeypatch.setattr(Trial, "disagreement", disagreement)
    model, _ = KINDS["G1"]()
    if not serves:
        with pytest.raises(FlagUnavailable, match="persistent cannot serve 2 rows: apart"):
            choose(model, network_of(model), tmp_path, "persistent", buckets=(2,))
        return
    choices, _ = choose(model, network_of(model), tmp_path, "persistent", buckets=(2,))
    assert choices.table == {2: "persistent"} and tried == asked


def test_what_is_wrong_is_told_before_what_is_a_little_apart() -> None:
    want = torch.ones(2, 8)
    assert different(want, want, 0) is None
    little, wrong = want * (1 + 1.5 * FIRST_DIFFERENCE), want.clone()
    wrong[1, 3] = 9.0
    apart = different(little, want, 0)
    assert apart is not None and not apart.final
    for got, right in ((wrong, want), (want / 0, want), (want, want * float("nan"))):
        fault = different(got, right, 0)
        assert fault is not None and fault.final


def test_what_gives_other_bits_each_time_does_not_serve(quick: None, tmp_path: Path) -> None:
    """Also where each is as near to what is right as rounding may bring it."""
    turn = itertools.count()

    def restless(done: Done) -> None:
        if next(turn) % 2:
            last_row(done)[7] *= 1.01

    model, options = gpt(), {"fault": spoiled(restless), "buckets": (2, 4)}
    network = network_of(model)
    choices, _ = choose(model, network, tmp_path, **options)  # type: ignore[arg-type]
    assert network.paths.table == {2: "persistent", 4: "chained"}
    told = r"^persistent: the second time its bits are others: logits \(row 3 by \S+, half of it in 1 of 512"
    assert re.search(told, choices.by_rows[4].reason)


@pytest.mark.parametrize("when", [0, 1, 2, 3])
def test_a_step_of_the_networks_own_that_went_wrong_once_speaks_against_no_path(
    quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, when: int
) -> None:
    """And is told. when: which of the four steps, two a test, that say what is right."""
    step, calls = Network.step, itertools.count()

    def once(self: Network, shape: StepShape, inputs: StepInputs, full: bool) -> None:
        step(self, shape, inputs, full)
        if shape.tokens == 4 and next(calls) == when:
            slot = int(self.scratch.slots[0])
            assert self.cache is not None
            self.cache.layers[1][0][slot // BLOCK, slot % BLOCK] += 1.0

    monkeypatch.setattr(Network, "step", once)
    model = gpt()
    network = network_of(model)
    with caplog.at_level(logging.WARNING, "fastpath.engine"):
        choose(model, network, tmp_path, buckets=(2, 4))
    assert network.paths.table == {2: "persistent", 4: "persistent"}
    told = "own kernels gave other bits the second time at . of 4 rows: keys and values of layer 1 \\(row 0"
    assert len(re.findall(told, caplog.text)) == 1


def test_a_network_that_is_always_otherwise_is_not_followed(
    quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody can tell then who is right; the network's own kernels stay."""
    step = Network.step

    def otherwise(self: Network, shape: StepShape, inputs: StepInputs, full: bool) -> None:
        step(self, shape, inputs, full)
        self.scratch.logits.neg_()

    monkeypatch.setattr(Network, "step", otherwise)
    model = gpt()
    network = network_of(model)
    choices, _ = choose(model, network, tmp_path, buckets=(2, 4))
    assert not network.paths.table and "logits are off by 2 of their size" in choices.by_rows[4].reason


@pytest.mark.parametrize("kept", [BF16, FORMAT], ids=str)
def test_tests_find_the_same_keys_and_values_at_every_start(kept: torch.dtype) -> None:
    first, second = (cache_of(gpt(), 5, kept) for _ in range(2))
    for cache in (first, second):
        fill(cache)
        torch.randn(3)  # whatever else the program draws
    parts = [
        [
            part.view(torch.int8) if part.dtype == FORMAT else part
            for layer in (*cache.layers, *cache.scales)
            for part in layer or ()
        ]
        for cache in (first, second)
    ]
    assert len(parts[0]) == (4 if kept == BF16 else 8)
    assert all(torch.equal(a, b) for a, b in zip(*parts, strict=True))
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(parts[0][:4], 2))


def test_what_does_not_compile_does_not_serve(quick: None, tmp_path: Path) -> None:
    model = gpt()
    network = network_of(model)
    broken: frozenset[StepPath] = frozenset(("persistent",))
    choices, _ = choose(model, network, tmp_path, broken=broken)
    assert network.paths.table == dict.fromkeys(BUCKETS, "chained")
    assert "persistent does not compile" in choices.by_rows[1].reason
    with pytest.raises(FlagUnavailable, match="does not compile"):
        choose(model, network_of(model), tmp_path, "persistent", broken=broken)


def test_what_gives_up_while_it_is_measured_does_not_serve(quick: None, tmp_path: Path) -> None:
    model = gpt()
    network = network_of(model)
    failed = torch.zeros(1, dtype=torch.int32)
    clock = Clock(CLOCK, gives_up=("persistent", failed))
    given, made = library()
    inner = given.make
    object.__setattr__(given, "make", lambda *parts: _with_flag(inner(*parts), failed))
    choices = choose_paths(
        network,
        Wanted("auto", None, BUCKETS, LENGTH, "auto"),
        lambda blocks: cache_of(model, blocks),
        given,
        timer=clock,
        capability=(9, 0),
        file=tmp_path / "times.json",
    )
    assert made and network.paths.table == dict.fromkeys(BUCKETS, "chained") and not failed.item()
    assert "took too long" in choices.by_rows[1].reason
    assert all("persistent" not in times for times in read_times(tmp_path / "times.json").values())


def _with_flag(kernels: object, failed: torch.Tensor) -> object:
    kernels.failed = failed  # type: ignore[attr-defined]
    return kernels


REFUSED: dict[str, tuple[Callable[[], Decoder], str]] = {
    "float32": (lambda: gpt().float(), "in float32"),
    "G3": (lambda: gpt("G3"), "residual lambdas"),
    "G5": (lambda: gpt("G5"), "residual lambdas"),
    "window": (
        lambda: llama("mistral", sliding_window=20),
        "window of 19 keys",
    ),
    "bias": (lambda: llama(attention_bias=True), "layer 0 has a bias behind a product other"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_networks_that_cannot_be_told(quick: None, name: str, tmp_path: Path) -> None:
    make, message = REFUSED[name]
    model = make()
    network = network_of(model)
    assert network.cache is not None
    reason = spec_of(network.weights, network.cache)
    assert isinstance(reason, str) and message in reason
    choices, kernels = choose(model, network, tmp_path)
    assert kernels is None and choices.explain("auto") == [("decode path", "auto", "graph", reason)]
    with pytest.raises(FlagUnavailable, match="decode_path is chained"):
        choose(model, network, tmp_path, "chained")


def test_a_cache_or_a_weight_of_another_kind_is_refused() -> None:
    model = gpt()
    network = network_of(model)
    network.cache = cache_of(model, 2, torch.float32)
    assert spec_of(network.weights, network.cache) == "keys and values are kept in float32"
    keeper = Keeper(frozenset(("o",)), Keeper.eight_bits("int8").make)
    weights = network_weights(model, keeper=keeper)
    assert spec_of(weights, cache_of(model, 2)) == "projections are of several kinds: bf16, int8"


def test_reasons_of_others_are_told(quick: None, tmp_path: Path) -> None:
    model = gpt()
    for options, reason in (({"reason": "needs 9.0"}, "needs 9.0"), ({"blocked": "because"}, "because")):
        network = network_of(model)
        choices, _ = choose(model, network, tmp_path, **options)  # type: ignore[arg-type]
        assert choices.explain("auto") == [("decode path", "auto", "graph", reason)]
        assert network.paths.kernels is None
    choices, kernels = choose(model, network_of(model), tmp_path, "graph")
    assert kernels is None and choices.explain("graph") == [("decode path", "graph", "graph", "as asked")]
    choices, _ = choose(model, network_of(model), tmp_path, "persistent", blocked="because")
    assert choices.table == dict.fromkeys((1, 2, 4), "persistent")  # who asks is not held back
    last = ("decode path M>4", "persistent", "graph", "persistent takes up to 4 rows")
    assert choices.explain("persistent")[-1] == last


def test_without_memory_for_its_test_no_path_serves() -> None:
    network, (given, made) = network_of(gpt()), library()
    kept = network.cache

    def no_room(blocks: int) -> PagedKV:
        raise torch.OutOfMemoryError(f"no room for {blocks} blocks")

    for asked in ("auto", "chained"):
        wanted = Wanted(asked, None, BUCKETS, LENGTH, "auto")  # type: ignore[arg-type]
        try:
            choices = choose_paths(network, wanted, no_room, given, capability=(9, 0))
        except FlagUnavailable as error:
            assert asked == "chained" and "no room for 21 blocks" in str(error)
        else:
            assert asked == "auto" and choices.rest == "no room for 21 blocks" and not choices.table
        assert network.paths.kernels is None and network.cache is kept
    assert len(made) == 2


# -- what is measured, and kept


def test_the_fastest_serves_and_a_tie_goes_to_the_networks_own() -> None:
    assert fastest({"graph": 1.0, "chained": 0.991}) == "graph"
    assert fastest({"graph": 1.0, "chained": 0.989}) == "chained"
    assert fastest({"graph": 1.0, "chained": 0.98, "persistent": 0.97}) == "persistent"
    assert fastest({"graph": 1.0, "chained": 2.0, "persistent": 3.0}) == "graph"


def test_measurements_are_kept(quick: None, tmp_path: Path) -> None:
    model, clock = gpt(), Clock(CLOCK)
    first, _ = choose(model, network_of(model), tmp_path, timer=clock)
    assert clock.measured == 3 + 3 + 3 + 2
    again, _ = choose(model, network_of(model), tmp_path, timer=clock)
    assert clock.measured == 11 and again == first
    other = gpt(n_embd=128)
    choose(other, network_of(other), tmp_path, timer=clock)
    assert clock.measured == 22
    broken: frozenset[StepPath] = frozenset(("persistent",))
    fewer, _ = choose(model, network_of(model), tmp_path, timer=clock, broken=broken)
    assert clock.measured == 22 and set(fewer.by_rows[1].ms) == {"graph", "chained"}
    for damage in ("", "[]", '{"a": 3}', '{"a": {"graph": "x"}}'):
        (tmp_path / "times.json").write_text(damage)
        assert read_times(tmp_path / "times.json") == {}
    choose(model, network_of(model), tmp_path, timer=clock)
    assert clock.measured == 33


def test_the_file_says_what_was_written(tmp_path: Path) -> None:
    times: dict[str, dict[StepPath, float]] = {"a": {"graph": 1.5, "chained": 0.25}, "b": {"graph": 2.0}}
    write_times(tmp_path / "new" / "times.json", times)
    assert read_times(tmp_path / "new" / "times.json") == times


# -- serving
