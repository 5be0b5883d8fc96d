"""The decode paths on the device: they are tested before they serve, give the answers of the network's own
kernels, and are left without a trace in any answer when they fail.
"""

import asyncio
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
import torch

from engine.async_engine import AsyncEngine
from engine.fastpath import FlagUnavailable
from engine.gpu.path_choice import OURS
from engine.gpu.path_trial import different
from engine.gpu.runner import GpuRunner
from engine.llama import Llama
from engine.llama_config import llama_config
from engine.messages import EngineConfig, Request, SamplingParams
from engine.messages.config import DecodePathName, WeightName
from engine.model import GPT
from kernels.step_spec import StepPath
from tests.engine.checkpoints import make_model
from tests.engine.serving import Answer, Ask, answers, read, started
from tests.gpu.forced import forced
from tests.gpu.paths import why_not
from tests.gpu.test_engine import BEST, FAR, RARE, TOKENIZER, TOLERANCE, agree, apart, asks, loose

BF16 = torch.bfloat16
POOL: dict[str, object] = {"num_blocks": 2048, "max_batched_tokens": 256, "max_rows": 24}
BUCKETS = (1, 2, 4, 8, 12, 16)
both = pytest.mark.parametrize("path", OURS)


def tiny(family: str) -> GPT | Llama:
    if family == "G1":
        made = make_model(
            "G1", 1, sequence_len=256, vocab_size=512, n_layer=3, n_embd=512, n_head=4, n_kv_head=4
        )
        return made.to("cuda", BF16).requires_grad_(False).eval()
    sizes = {
        "vocab_size": 512,
        "hidden_size": 512,
        "intermediate_size": 1920,  # padded to 2,048
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 128,
        "max_position_embeddings": 640,
        "rms_norm_eps": 1e-5,
    }
    llama = Llama(llama_config(family, sizes)).requires_grad_(False)
    llama.randomize(2)
    return llama.to("cuda", BF16).eval()


@pytest.fixture(scope="module", params=["G1", "llama"])
def model(cuda: None, request: pytest.FixtureRequest) -> Iterator[GPT | Llama]:
    made = tiny(request.param)
    if (reason := why_not(made)) is not None:
        pytest.skip(reason)
    yield made


@pytest.fixture(scope="module")
def expected(model: GPT | Llama) -> list[list[Answer]]:
    """By the network's own kernels."""

    async def run() -> list[list[Answer]]:
        engine = await serving(model, "graph")
        result = await answers(engine, asks(0), together=False)
        await engine.close()
        return result

    return asyncio.run(run())


async def serving(model: GPT | Llama, path: DecodePathName, **settings: object) -> AsyncEngine:
    return await started(model, TOKENIZER, **(POOL | {"decode_path": path} | settings))  # type: ignore[arg-type]


def runner_of(engine: AsyncEngine) -> GpuRunner:
    assert isinstance(engine.backend.runner, GpuRunner)
    return engine.backend.runner


# Rounded to three bits, a number that is off by a step of bfloat16 is now and then off by a sixteenth.
EIGHT_BITS = 0.25


def check(
    result: list[list[Answer]],
    expected: list[list[Answer]],
    asked: list[Ask],
    tolerance: float = TOLERANCE[BF16],
) -> None:
    for choices, right, ask in zip(result, expected, asked, strict=True):
        for answer, reference in zip(choices, right, strict=True):
            assert agree(answer, reference, tolerance, loose(ask)), answer.finish


@both
@pytest.mark.parametrize("lookahead", [True, False])
async def test_a_forced_path_serves_what_it_can(
    model: GPT | Llama, expected: list[list[Answer]], path: StepPath, lookahead: bool
) -> None:
    engine = await serving(model, path, lookahead=lookahead)
    runner = runner_of(engine)
    kernels = runner.network.paths.kernels
    assert kernels is not None
    most = kernels.max_rows[path]
    try:
        assert runner.network.paths.table == {rows: path for rows in BUCKETS if rows <= most}
        rows = {name: (asked, used) for name, asked, used, _ in engine.info.features}
        assert rows["decode path M=1"] == (path, path) and rows[f"decode path M>{most}"] == (path, "graph")
        for together in (False, True):
            check(await answers(engine, asks(0), together=together), expected, asks(0))
        engine.core.scheduler.check()
        assert engine.stats().path_failures == 0
    finally:
        await engine.close()


@both
@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
async def test_families_with_biases_or_with_weights_in_their_norms(
    cuda: None, family: str, path: StepPath
) -> None:
    model, found = tiny(family), []
    for way in ("graph", path):
        engine = await serving(model, way)
        try:
            assert set(runner_of(engine).network.paths.table.values()) == ({way} if way != "graph" else set())
            found.append(await answers(engine, asks(0), together=False))
        finally:
            await engine.close()
    check(found[1], found[0], asks(0))


@both
async def test_keys_and_values_of_eight_bits(model: GPT | Llama, path: StepPath) -> None:
    found = []
    for way in ("graph", path):
        engine = await serving(model, way, kv_dtype="fp8")
        try:
            assert set(runner_of(engine).network.paths.table.values()) == ({way} if way != "graph" else set())
            found.append(await answers(engine, asks(0), together=False))
        finally:
            await engine.close()
    check(found[1], found[0], asks(0), EIGHT_BITS)


async def test_the_seeds_flag_asks_for_the_resident_kernel(model: GPT | Llama) -> None:
    flags = {"use_persistent_decode_kernel": True, "persistent_decode_impl": "kernels.persistent_decode"}
    engine = await serving(model, "auto", flags=flags)
    try:
        assert set(runner_of(engine).network.paths.table.values()) == {"persistent"}
        rows = {name: used for name, _, used, _ in engine.info.features}
        assert rows["use_persistent_decode_kernel"] == "on" and rows["decode path M=1"] == "persistent"
    finally:
        await engine.close()


@both
@pytest.mark.parametrize("weights", ["auto", "int8", "fp8"])
async def test_steps_write_what_the_networks_own_kernels_write(
    model: GPT | Llama, path: StepPath, weights: WeightName
) -> None:
    """Forty positions in a row, as graphs, against plain steps; in buckets with padding and without."""
    engine = await serving(model, path, weight_dtype=weights, max_rows=8)
    cache = runner_of(engine).network.cache
    assert cache is not None
    try:
        for rows in (1, 2, 3, 4, 7):
            results = []
            for eager in (True, False):
                with torch.inference_mode():
                    for layer in cache.layers:
                        for part in layer:
                            part.zero_()
                torch.cuda.synchronize()
                logits = forced(engine, rows, eager=eager)
                results.append([logits, *(part.float() for layer in cache.layers for part in layer)])
            for plain, by_path in zip(*results, strict=True):
                assert plain.count_nonzero() > 0
                assert different(by_path.flatten()[None], plain.flatten()[None], len(cache.layers)) is None
    finally:
        await engine.close()


async def test_a_choice_is_measured_once(
    model: GPT | Llama,
    expected: list[list[Answer]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    tables = []
    for _ in range(2):
        engine = await serving(model, "auto")
        try:
            rows = [row for row in engine.info.features if row[0].startswith("decode path")]
            assert [name for name, *_ in rows] == [
                *(f"decode path M={n}" for n in BUCKETS),
                "decode path M>16",
            ]
            assert all("graph" in why and "chained" in why for *_, why in rows[:-1])
            tables.append(rows)
            check(await answers(engine, asks(0), together=True), expected, asks(0))
        finally:
            await engine.close()
    assert tables[0] == tables[1]
    (file,) = (tmp_path / "fastpath").glob("decode-path-*.json")
    assert file.read_text().count("context=") == len(BUCKETS)
    engine = await serving(model, "auto", profile="seed")
    try:
        assert not runner_of(engine).network.paths.table
    finally:
        await engine.close()


@both
async def test_growth_binds_again(model: GPT | Llama, expected: list[list[Answer]], path: StepPath) -> None:
    engine = await serving(model, path, num_blocks=16, max_num_blocks=2048)
    try:
        check(await answers(engine, asks(0), together=True), expected, asks(0))
        check(await answers(engine, asks(0), together=False), expected, asks(0))
        network = runner_of(engine).network
        assert engine.stats().kv_growths > 0 and network.cache is not None and network.cache.moves > 0
    finally:
        await engine.close()


@both
@pytest.mark.parametrize("lookahead", [True, False])
@pytest.mark.parametrize("after", [1, 7, 16])
async def test_a_failure_is_contained(
    model: GPT | Llama, path: StepPath, lookahead: bool, after: int
) -> None:
    """The flag is raised by hand between two steps, when the first stream has so many tokens."""
    params = SamplingParams(max_tokens=40, temperature=0, ignore_eos=True, logprobs=BEST)
    asked = [Ask(list(range(first, first + 20)), params) for first in (0, 100, 200)]
    again = [replace(ask, params=msgspec.structs.replace(params, logprobs=None)) for ask in asked]
    engine = await serving(model, path, lookahead=lookahead)
    runner = runner_of(engine)
    paths = runner.network.paths
    try:
        right = await answers(engine, asked, together=True)
        assert paths.table and engine.stats().path_failures == 0
        requests = [Request(id=engine.next_id(1), prompt=ask.prompt, params=ask.params) for ask in again]
        streams = [stream for request in requests for stream in engine.submit(request)]
        seen: list[int] = []
        while len(seen) < after:
            seen += (await streams[0].next()).tokens
        with torch.cuda.stream(runner._stream), torch.inference_mode():
            paths.failed.fill_(1)
        rest = await asyncio.gather(*(read(stream) for stream in streams))
        rest[0].tokens[:0], rest[0].logprobs = seen, []
        for answer, (reference,) in zip(rest, right, strict=True):
            assert agree(answer, reference, TOLERANCE[BF16])
        assert engine.stats().path_failures == 1 and not paths.table and paths.lost
        check(await answers(engine, asked, together=True), right, asked)
        assert engine.stats().path_failures == 1
        engine.core.scheduler.check()
    finally:
        await engine.close()


@both
@pytest.mark.parametrize("count", [10_000])
async def test_ten_thousand_requests_that_come_and_go(model: GPT | Llama, path: StepPath, count: int) -> None:
    """A few rows at a time, greedy, with somebody joining or leaving, or being aborted, at every step."""
    rng, most = random.Random(7), {"chained": 16, "persistent": 4}[path]
    requests = [
        Ask(
            [rng.randrange(503) for _ in range(rng.randint(1, 40))],
            SamplingParams(max_tokens=rng.randint(1, 9), temperature=0, ignore_eos=True, logprobs=BEST),
        )
        for _ in range(count)
    ]
    doomed = {index for index in range(count) if rng.random() < 0.2}

    async def run(engine: AsyncEngine, ask: Ask, abort: bool, gate: asyncio.Semaphore) -> Answer | None:
        async with gate:
            (stream,) = engine.submit(Request(id=engine.next_id(1), prompt=ask.prompt, params=ask.params))
            if not abort:
                return await read(stream)
            for _ in range(rng.randint(0, 4)):
                if (await stream.next()).finish is not None:
                    break
            engine.abort([stream.id])
            return None

    results: list[list[Answer | None]] = []
    for name, aborts in (("graph", set[int]()), (path, doomed)):
        engine = await serving(model, name, max_rows=most, num_blocks=256)  # type: ignore[arg-type]
        gate = asyncio.Semaphore(most + 2)
        asked = [
            ask
            if name == "graph"
            else replace(ask, params=msgspec.structs.replace(ask.params, logprobs=None))
            for ask in requests
        ]
        try:
            results.append(
                await asyncio.gather(*(run(engine, ask, i in aborts, gate) for i, ask in enumerate(asked)))
            )
            engine.core.scheduler.check()
            stats = engine.stats()
            assert (stats.running, stats.waiting, stats.blocks_used, stats.path_failures) == (0, 0, 0, 0)
        finally:
            await engine.close()
    pairs = [(got, want) for got, want in zip(results[1], results[0], strict=True) if got is not None]
    distances = [apart(got, want, TOLERANCE[BF16]) for got, want in pairs if want is not None]
    assert len(distances) == count - len(doomed)
    off = sum(distance > TOLERANCE[BF16] for distance in distances)
    assert off <= RARE * count, f"{off} answers differ"
    assert max(distances) <= FAR * TOLERANCE[BF16]


@both
def test_a_network_that_it_cannot_serve_is_an_error(cuda: None, path: StepPath) -> None:
    model = make_model("G1", 1, sequence_len=64, n_layer=1).to("cuda")
    config = EngineConfig(num_blocks=64, max_rows=4, max_batched_tokens=64, decode_path=path)
    with pytest.raises(FlagUnavailable, match=f"decode_path is {path}, but the model is in float32"):
        AsyncEngine(model, TOKENIZER, config)
