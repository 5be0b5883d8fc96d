"""Decode paths around their kernels, which plain torch stands for: what may serve, what does, and that it
gives the tokens of the network's own kernels.
"""

import asyncio
import itertools
import logging
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from engine import async_engine
from engine.backend import Backend
from engine.decoder import Decoder
from engine.fastpath import FlagUnavailable
from engine.gpu import build
from engine.gpu.cache import PagedKV
from engine.gpu.graphs import Buckets
from engine.gpu.inputs import StepInputs, StepShape
from engine.gpu.linears import build_linears
from engine.gpu.network import Network
from engine.gpu.path_choice import Choices, Wanted, choose_paths, fastest, read_times, write_times
from engine.gpu.path_trial import fill
from engine.gpu.paths import spec_of
from engine.gpu.rows import DeviceRows
from engine.gpu.runner import GpuRunner
from engine.gpu.staging import StepStaging
from engine.gpu.weights import Keeper, network_weights
from engine.llama import Llama
from engine.llama_config import llama_config
from engine.messages import EngineConfig, SamplingParams
from engine.messages.config import DecodePathName
from kernels.backends.base import AttentionSpec
from kernels.kv8 import FORMAT
from kernels.quantize import Kind8
from kernels.step_spec import StepPath
from tests.engine.checkpoints import make_model
from tests.engine.made_up_gpu import made_up
from tests.engine.serving import Ask, answers, started
from tests.kernels.plain_step import Done, PlainStep, library
from tests.kernels.quick_network import ExactBackend, quicken
from tests.seed.test_k_stubs import FiveMethods

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="tests/gpu/test_paths.py has the real one")
CPU, BF16, BLOCK, ROWS, TOKENS, LENGTH = torch.device("cpu"), torch.bfloat16, 16, 5, 48, 64
BUCKETS = (1, 2, 4, 5)
LLAMA = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": LENGTH,
    "rms_norm_eps": 1e-5,
}


def gpt(generation: str = "G1", **sizes: object) -> Decoder:
    small = {"sequence_len": LENGTH, "n_layer": 2, "n_embd": 64, "n_head": 2, "n_kv_head": 2} | sizes
    return make_model(generation, 1, **small).to(BF16)  # type: ignore[arg-type]


def llama(family: str = "llama", **sizes: object) -> Decoder:
    model = Llama(llama_config(family, LLAMA | sizes)).requires_grad_(False)  # type: ignore[arg-type]
    model.randomize(2)
    return model.to(BF16).eval()


def network_of(model: Decoder, kind: Kind8 | None = None, kept: torch.dtype | None = None) -> Network:
    """On the CPU, with a cache of one block. kept: what keys and values are kept in, if not the model's."""
    weights = network_weights(model, keeper=Keeper.eight_bits(kind) if kind else None)
    rotary, dtype = weights.layers[0].rotary, weights.embedding.dtype
    spec = AttentionSpec(
        *(rotary.heads, rotary.kv_heads, rotary.head_dim, BLOCK, dtype, ROWS, LENGTH, CPU), kept == FORMAT
    )
    rows = DeviceRows(ROWS, 1 + LENGTH // BLOCK, weights.vocab_size, CPU)
    linears = build_linears(weights, "auto", TOKENS, False)
    network = Network(weights, linears, rows, ExactBackend(spec), TOKENS, ROWS)
    network.cache = cache_of(model, 2, kept or dtype)
    return network


def cache_of(model: Decoder, blocks: int, dtype: torch.dtype = BF16) -> PagedKV:
    config = model.config
    return PagedKV(config.n_layer, blocks, BLOCK, config.n_kv_head, config.head_dim, dtype, CPU)


@dataclass
class Clock:
    """Seconds that steps of each path take; counts the measurements. gives_up: who fails while measured."""

    seconds: dict[StepPath, float]
    measured: int = 0
    gives_up: tuple[StepPath, torch.Tensor] | None = None

    def __call__(self, body: Callable[[], None]) -> float:
        body()
        self.measured += 1
        (path,) = body.args  # type: ignore[attr-defined]
        if self.gives_up is not None and path == self.gives_up[0]:
            self.gives_up[1].fill_(1)
        return self.seconds[path]


CLOCK: dict[StepPath, float] = {"graph": 3e-3, "chained": 2e-3, "persistent": 1e-3}


def choose(
    model: Decoder,
    network: Network,
    file: Path,
    asked: DecodePathName = "auto",
    timer: Clock | None = None,
    reason: str | None = None,
    blocked: str | None = None,
    buckets: tuple[int, ...] = BUCKETS,
    **options: object,
) -> tuple[Choices, PlainStep | None]:
    given, made = library(reason, **options)
    assert network.cache is not None
    kept = network.cache.layers[0][0].dtype
    wanted = Wanted(asked, blocked, buckets, LENGTH, "auto")
    choices = choose_paths(
        network,
        wanted,
        lambda blocks: cache_of(model, blocks, kept),
        given,
        timer=timer or Clock(CLOCK),
        capability=(9, 0),
        file=file / "times.json",
    )
    return choices, made[-1] if made else None


KINDS: dict[str, Callable[[], tuple[Decoder, Kind8 | None]]] = {
    "G1": lambda: (gpt(), None),
    "G1 int8": lambda: (gpt(), "int8"),
    "G1 grouped": lambda: (gpt(n_head=4, n_kv_head=2), None),
    "llama": lambda: (llama(), None),
    "llama fp8": lambda: (llama(), "fp8"),
    "qwen2": lambda: (llama("qwen2"), None),
    "qwen3": lambda: (llama("qwen3", head_dim=32), None),
}


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


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    quicken(monkeypatch)
    with made_up(monkeypatch):
        yield


def asks() -> list[Ask]:
    """More than there are rows. One scores its prompt, whose last chunks may be single positions."""
    made = [
        Ask(
            [(first + 7 * place) % 500 for place in range(length)],
            SamplingParams(max_tokens=new, ignore_eos=True, temperature=heat, seed=first, top_k=20),
        )
        for length, new, first, heat in (
            (17, 19, 1, 0.0),
            (2, 22, 2, 0.8),
            (33, 9, 3, 0.0),
            (16, 12, 4, 0.7),
            (15, 10, 5, 0.0),
            (1, 18, 6, 0.0),
        )
    ]
    scored = SamplingParams(max_tokens=3, temperature=0, ignore_eos=True, prompt_logprobs=2, logprobs=2)
    return [*made, Ask(list(range(30, 41)), scored)]


def serve(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    asked: DecodePathName,
    fails_at: int | None,
    **config: object,
) -> tuple[list[tuple[object, ...]], PlainStep | None, async_engine.AsyncEngine]:
    model = llama()
    made: list[PlainStep | None] = []

    def give_up(done: Done) -> None:
        if serving and len(done.by.steps) == fails_at:
            done.by.failed.fill_(1)
            done.logits.neg_()

    def build(model: Decoder, *rest: object) -> Backend:
        nonlocal serving
        network = network_of(model)
        _, kernels = choose(model, network, tmp_path, asked, fault=give_up)
        serving = True
        made.append(kernels)
        if kernels is not None:
            kernels.steps.clear()
        network.cache = cache_of(model, 65)
        staging = StepStaging(Buckets.up_to(ROWS, TOKENS), CPU)
        runner = GpuRunner(network, staging, (), torch.cuda.Stream(), False)
        runner.capture()
        return Backend(runner, CPU, BF16, 65, 65, BLOCK, ROWS, TOKENS, LENGTH, 1, [])

    async def run() -> tuple[list[tuple[object, ...]], async_engine.AsyncEngine]:
        engine = await started(model, FiveMethods(), num_blocks=64, **config)  # type: ignore[arg-type]
        result = await answers(engine, asks(), together=True)
        engine.core.scheduler.check()
        await engine.close()
        return [(answer.tokens, answer.prompt) for (answer,) in result], engine

    serving = False
    monkeypatch.setattr(async_engine, "_build", build)
    got, engine = asyncio.run(run())
    return got, made[0], engine


@pytest.mark.parametrize(
    ("path", "max_chunk"),
    [
        pytest.param("chained", None, marks=pytest.mark.slow),
        ("persistent", 1),
        pytest.param("persistent", None, marks=pytest.mark.slow),
        pytest.param("chained", 1, marks=pytest.mark.slow),
    ],
)
def test_tokens_are_those_of_the_networks_own_kernels(
    cuda: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, path: DecodePathName, max_chunk: int | None
) -> None:
    """With prompts in single positions, too, where steps of a decode's shape do not sample every token."""
    expected, _, _ = serve(monkeypatch, tmp_path, "graph", None, max_chunk=max_chunk)
    got, kernels, engine = serve(monkeypatch, tmp_path, path, None, max_chunk=max_chunk)
    assert kernels is not None and engine.stats().path_failures == 0
    assert len(kernels.steps) > 5 and got == expected
    # Then with a step that fails among them; what comes behind it goes by the network's own kernels.
    got, kernels, engine = serve(monkeypatch, tmp_path, path, 3, max_chunk=max_chunk)
    assert kernels is not None and engine.stats().path_failures == 1 and engine.stats().preemptions > 0
    assert got == expected


@pytest.mark.parametrize("kept", [BF16, FORMAT], ids=str)
def test_paths_are_tried_over_a_cache_of_the_engines_own_kind(
    cuda: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kept: torch.dtype
) -> None:
    """What the kernels are compiled for and what they are tried with is the same."""
    model = gpt()
    network, (given, made), seen = network_of(model, kept=kept), library(), []

    def choose(network: Network, wanted: Wanted, make_cache: Callable[[int], PagedKV], _: object) -> Choices:
        def noted(blocks: int) -> PagedKV:
            seen.append(make_cache(blocks))
            return seen[-1]

        file = tmp_path / "times.json"
        return choose_paths(network, wanted, noted, given, timer=Clock(CLOCK), capability=(9, 0), file=file)

    monkeypatch.setattr(build, "choose_paths", choose)
    rest = (None, build.Sizes(ROWS, TOKENS, LENGTH, BLOCK), model, kept, torch.cuda.Stream())
    config = EngineConfig(decode_path="persistent")
    build._choose_paths(network, Buckets.up_to(ROWS, TOKENS), config, *rest)  # type: ignore[arg-type]
    assert {cache.layers[0][0].dtype for cache in seen} == {kept} and made[0].spec.fp8_kv == (kept == FORMAT)


async def test_a_path_needs_a_gpu() -> None:
    model = make_model("G1", 1, n_layer=1)
    with pytest.raises(FlagUnavailable, match="decode_path is persistent, but needs a CUDA device"):
        async_engine.AsyncEngine(model, FiveMethods(), EngineConfig(decode_path="persistent"))
