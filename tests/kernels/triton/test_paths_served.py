"""Decode paths in an engine, with plain torch for their kernels: tokens are those of the network's own."""

import asyncio
from collections.abc import Callable, Iterator
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
from engine.gpu.network import Network
from engine.gpu.path_choice import Choices, Wanted, choose_paths
from engine.gpu.runner import GpuRunner
from engine.gpu.staging import StepStaging
from engine.messages import EngineConfig, SamplingParams
from engine.messages.config import DecodePathName
from kernels.kv8 import FORMAT
from tests.engine.checkpoints import make_model
from tests.engine.made_up_gpu import made_up
from tests.engine.serving import Ask, answers, started
from tests.kernels.plain_step import Done, PlainStep, library
from tests.kernels.quick_network import quicken
from tests.kernels.triton.path_cases import (
    BF16,
    BLOCK,
    CLOCK,
    CPU,
    LENGTH,
    ROWS,
    TOKENS,
    Clock,
    cache_of,
    choose,
    gpt,
    llama,
    network_of,
)
from tests.seed.test_k_stubs import FiveMethods

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="tests/gpu/test_paths.py has the real one")


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
