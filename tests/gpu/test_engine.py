"""The whole engine on a GPU: answers do not depend on their company, within what bfloat16 rounds.

Two answers to the same request agree if their tokens are the same and their logprobs close, up to the first
token where they differ; there, the two candidates must have been nearly equal.
"""

import asyncio
import json
import math
import random
from collections.abc import Iterator
from dataclasses import replace

import msgspec
import pytest
import torch

from engine.async_engine import AsyncEngine
from engine.gpu.graphs import GraphPool
from engine.gpu.inputs import StepShape
from engine.gpu.path_choice import OURS
from engine.loader import load_model
from engine.messages import Request, SamplingParams
from engine.model import GPT
from engine.text import load_tokenizer
from tests.engine.checkpoints import make_model
from tests.engine.golden import G1, GOLDEN
from tests.engine.serving import Answer, Ask, answers, read, started
from tests.gpu.paths import why_not

TOKENIZER = load_tokenizer(G1 / "tokenizer")
VOCAB = 512
# Logprobs of a tiny model in bfloat16: logits of size 5 carry 2^-8 relative, some layers add to it.
TOLERANCE = {torch.bfloat16: 0.12, torch.float32: 2e-3}
BEST = 8  # candidates that come with a token: one that rounding preferred is among them
# Of thousands of answers a few dozen are off by more than the tolerance, by chance; none may be far off.
RARE, FAR = 0.01, 4.0
POOL = {"num_blocks": 2048, "max_batched_tokens": 256}
EAGER = {"use_cuda_graphs": False}
ROOMY = {"max_batched_tokens": 1024}  # all prompts of a test in one step

AXES: dict[str, dict[str, object]] = {
    "graphs": {},
    "no graphs": {"flags": EAGER},
    "no lookahead": {"lookahead": False},
    "no lookahead, no graphs": {"lookahead": False, "flags": EAGER},
    "chunks of 7, blocks of 1": {"max_chunk": 7, "block_size": 1, "num_blocks": 8192},
    "chunks of 64, blocks of 32": {"max_chunk": 64, "block_size": 32},
    "no prefix cache": {"enable_prefix_caching": False},
    "three rows": {"max_rows": 3},
    "preemption": {"num_blocks": 16},
    "preemption without lookahead": {"num_blocks": 16, "lookahead": False},
    "growth": {"num_blocks": 16, "max_num_blocks": 2048},
    "growth without lookahead": {"num_blocks": 16, "max_num_blocks": 2048, "lookahead": False},
    "growth, no graphs": {"num_blocks": 16, "max_num_blocks": 2048, "flags": EAGER},
    "growth under the user's own attention": {
        "num_blocks": 16,
        "max_num_blocks": 2048,
        "flags": {
            "use_clustered_attention_kernel": True,
            "clustered_attention_impl": "kernels.clustered_attention",
        },
    },
    "cublas": {"linear_backend": "cublas"},
    "torch's flash attention": {"attention_backend": "sdpa"},
    "torch's plain attention": {"attention_backend": "sdpa", "flags": {"use_flash_sdp": False}},
    "rotation inside of attention": {"attention_backend": "triton-rotating"},
    "rotation in front of attention": {"attention_backend": "triton"},
    "rotation inside of attention, preemption": {
        "attention_backend": "triton-rotating",
        "num_blocks": 16,
    },
    "buffers anew": {"flags": EAGER | {"enable_persistent_decode": False}},
    "our attention as the user's own": {
        "flags": {
            "use_clustered_attention_kernel": True,
            "clustered_attention_impl": "kernels.clustered_attention",
        }
    },
    "the reference step as the user's own": {
        "flags": {
            "use_persistent_decode_kernel": True,
            "allow_kernel_stub_fallback": True,
        }
    },
    "clusters": {"flags": {"use_cta_clustering": True, "cta_cluster_seq_threshold": 16}},
    "plain decode steps": {"decode_path": "graph"},
    "chained": {"decode_path": "chained"},
    "chained without lookahead": {"decode_path": "chained", "lookahead": False},
    "chained, no graphs": {"decode_path": "chained", "flags": EAGER},
    "chained, preemption": {"decode_path": "chained", "num_blocks": 16},
    "persistent": {"decode_path": "persistent"},
    "persistent without lookahead": {"decode_path": "persistent", "lookahead": False},
    "persistent, growth": {"decode_path": "persistent", "num_blocks": 16, "max_num_blocks": 2048},
    "static batches": {"batching": "static", "batch_timeout_ms": 1.0},
}


def asks(seed: int) -> list[Ask]:
    """Greedy and sampled, short and long, sharing prompts, with penalties, biases, bans and a grammar."""
    rng = random.Random(seed)

    def prompt(length: int) -> list[int]:
        return [rng.randrange(503) for _ in range(length)]

    shared = prompt(70)
    greedy = [
        Ask(prompt(n), SamplingParams(max_tokens=24, temperature=0, ignore_eos=True, logprobs=BEST))
        for n in (2, 17, 33, 64, 120)
    ]
    return [
        *greedy,
        Ask(shared, SamplingParams(max_tokens=20, temperature=0.9, seed=1, top_k=40, logprobs=3)),
        Ask(
            shared + prompt(5),
            SamplingParams(max_tokens=12, temperature=1.3, seed=2, top_p=0.8, logprobs=0),
            n=3,
        ),
        Ask(shared[:48], SamplingParams(max_tokens=15, temperature=0.7, seed=3, min_p=0.02, logprobs=0)),
        Ask(
            prompt(33),
            SamplingParams(
                max_tokens=20,
                temperature=0,
                repetition_penalty=1.3,
                presence_penalty=0.5,
                frequency_penalty=0.4,
                logit_bias={7: 3.0, 9: -100.0},
                ignore_eos=True,
                logprobs=BEST,
            ),
        ),
        Ask(prompt(20), SamplingParams(max_tokens=10, min_tokens=6, temperature=0, logprobs=BEST)),
        Ask(
            prompt(17),
            SamplingParams(max_tokens=20, temperature=0, ignore_eos=True, logprobs=BEST),
            tools=True,
        ),
        Ask(
            prompt(11),
            SamplingParams(max_tokens=30, temperature=0, logprobs=BEST, grammar="start: /([0-9]{3} ){2}x/"),
        ),
        # Short prompts that grow: what a small pool runs out of blocks with.
        *(
            Ask(prompt(5), SamplingParams(max_tokens=70, temperature=0, ignore_eos=True, logprobs=BEST))
            for _ in range(4)
        ),
    ]


def loose(ask: Ask) -> bool:
    """Whether the raw logprobs do not tell how close the second choice was: drawn, penalised, or masked."""
    params = ask.params
    moved = bool(params.logit_bias) or params.repetition_penalty != 1.0 or params.grammar is not None
    return params.temperature > 0 or moved


def apart(answer: Answer, reference: Answer, tolerance: float, loose: bool = False) -> float:
    """How far two answers to one request are apart, to be compared with the tolerance; infinite if it cannot
    be rounding.

    It is the largest difference of two logprobs, relative to their size, up to the first token that differs.
    That token's candidates must have been nearly equal in the reference: a quarter of the gap between them
    counts. Where it cannot be told (`loose`), float32 admits no difference, and bfloat16 any. The reference
    has logprobs, the answer may have none.
    """
    own = answer.logprobs or [None] * len(answer.tokens)
    trios = zip(answer.tokens, own, reference.tokens, reference.logprobs, strict=False)
    most = 0.0
    for token, logprob, token_r, logprob_r in trios:
        if token != token_r:
            if logprob_r is None:
                return math.inf
            if loose:
                return most if tolerance > 0.01 else math.inf
            best = dict(zip(logprob_r[1], logprob_r[2], strict=True))
            return max(most, (logprob_r[0] - best[token]) / 4) if token in best else math.inf
        if logprob is not None and logprob_r is not None:
            most = max(most, abs(logprob[0] - logprob_r[0]) / max(1.0, abs(logprob_r[0])))
    return most if len(answer.tokens) == len(reference.tokens) else math.inf


def agree(answer: Answer, reference: Answer, tolerance: float, loose: bool = False) -> bool:
    return apart(answer, reference, tolerance, loose) <= tolerance


def without_logprobs(ask: Ask) -> Ask:
    """The same request on the graphs that serve requests with nothing special."""
    return replace(ask, params=msgspec.structs.replace(ask.params, logprobs=None))


@pytest.fixture(scope="module", params=["G1", "G3", "G5"])
def model(request: pytest.FixtureRequest) -> Iterator[GPT]:
    heads = {"G1": (4, 4), "G3": (4, 2), "G5": (4, 1)}[request.param]
    made = make_model(
        request.param,
        1,
        sequence_len=64,
        vocab_size=VOCAB,
        n_layer=3,
        n_head=heads[0],
        n_kv_head=heads[1],
        n_embd=256,
        window_pattern="L" if request.param == "G1" else "SSL",
    )
    yield made.to("cuda")


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=str)
def served(request: pytest.FixtureRequest, model: GPT) -> GPT:
    if request.param == torch.float32:
        return model
    copy = GPT(model.config)
    copy.load_state_dict(model.state_dict())
    return copy.to("cuda", torch.bfloat16).requires_grad_(False).eval()


@pytest.fixture(scope="module")
def reference(served: GPT) -> list[list[Answer]]:
    """Each ask alone: no cache, no lookahead, no graphs, one row."""

    async def run() -> list[list[Answer]]:
        engine = await started(
            served,
            TOKENIZER,
            enable_prefix_caching=False,
            lookahead=False,
            flags=EAGER,
            max_rows=1,
            **POOL,
        )
        result = await answers(engine, asks(0), together=False)
        await engine.close()
        return result

    return asyncio.run(run())


@pytest.mark.parametrize("axis", AXES)
async def test_answers_do_not_depend_on_company(
    served: GPT, reference: list[list[Answer]], axis: str
) -> None:
    if axis == "clusters" and next(served.parameters()).dtype == torch.float32:
        pytest.skip("clusters need bfloat16")
    if AXES[axis].get("decode_path") in OURS and (reason := why_not(served)) is not None:
        pytest.skip(reason)
    engine = await started(served, TOKENIZER, **({"max_rows": 16} | POOL | AXES[axis]))
    tolerance = TOLERANCE[next(served.parameters()).dtype]
    try:
        for together, order, plain in (
            (False, 1, False),
            (True, 1, False),
            (True, -1, False),
            (True, 1, True),
        ):
            wanted = [without_logprobs(ask) if plain else ask for ask in asks(0)[::order]]
            result = await answers(engine, wanted, together=together)
            trios = zip(result[::order], reference, asks(0), strict=True)
            wrong = [
                (index, choice, a.tokens, b.tokens, a.logprobs, b.logprobs)
                for index, (choices, expected, ask) in enumerate(trios)
                for choice, (a, b) in enumerate(zip(choices, expected, strict=True))
                if not agree(a, b, tolerance, loose(ask))
            ]
            assert not wrong, (together, order, plain)
            engine.core.scheduler.check()
            stats = engine.stats()
            assert (stats.running, stats.waiting, stats.blocks_used) == (0, 0, 0)
        if "preemption" in axis:
            assert engine.stats().preemptions > 0
        if "growth" in axis:
            stats = engine.stats()
            graphs = "no graphs" not in axis and "own attention" not in axis
            assert stats.kv_growths > 0 and stats.preemptions == 0
            assert stats.graph_recaptures == (stats.kv_growths if graphs else 0)
    finally:
        await engine.close()


@pytest.mark.parametrize("plain", [True, False])
async def test_every_bucket_gives_the_same_greedy_tokens(
    served: GPT, monkeypatch: pytest.MonkeyPatch, plain: bool
) -> None:
    """The same prompt in 1 to 48 rows at once, so that every decode bucket up to 48 is used."""
    engine = await started(
        served, TOKENIZER, max_rows=48, enable_prefix_caching=False, prefill_stretch=0.0, **(POOL | ROOMY)
    )
    tolerance = TOLERANCE[next(served.parameters()).dtype]
    params = SamplingParams(max_tokens=24, temperature=0, ignore_eos=True, logprobs=BEST)
    ask = Ask(list(range(40, 60)), params)
    ((alone,),) = await answers(engine, [ask], together=False)
    graphs = engine.core.runner._decode_graphs  # type: ignore[attr-defined]
    used: set[int] = set()
    original = type(graphs).run
    monkeypatch.setattr(
        type(graphs),
        "run",
        lambda self, shape, full: (used.add(shape.tokens), original(self, shape, full))[1],
    )
    try:
        for rows, bucket in ((2, 2), (3, 4), (5, 8), (9, 12), (13, 16), (17, 24), (25, 32), (33, 48)):
            used.clear()
            wanted = [without_logprobs(ask) if plain else ask] * rows
            for choices in await answers(engine, wanted, together=True):
                assert agree(choices[0], alone, tolerance), rows
            assert bucket in used, (rows, used)
    finally:
        await engine.close()


@pytest.mark.parametrize(
    "config", [{}, {"flags": EAGER}, {"max_chunk": 7, "block_size": 1, "num_blocks": 4096}]
)
@pytest.mark.parametrize("name", ["g1", "g5"])
async def test_golden_greedy_tokens(name: str, config: dict[str, object]) -> None:
    """Upstream's own greedy tokens, in float32."""
    model, tokenizer, _ = load_model(GOLDEN / name, dtype="float32", device="cuda")
    cases = json.loads((GOLDEN / name / "expected.json").read_text())["prompts"]
    wanted = SamplingParams(max_tokens=40, temperature=0, ignore_eos=True)
    engine = await started(model, tokenizer, **({"max_rows": 16} | POOL | config))
    try:
        for together in (False, True):
            result = await answers(
                engine, [Ask(case["prompt"], wanted) for case in cases] * 2, together=together
            )
            for choices, case in zip(result, cases * 2, strict=True):
                assert choices[0].tokens == case["greedy"]
    finally:
        await engine.close()


async def test_no_step_waits_for_the_device(served: GPT) -> None:
    """torch raises on any of its calls that synchronise; a warm engine decodes and prefills without one."""
    engine = await started(served, TOKENIZER, max_rows=16, enable_prefix_caching=False, **POOL)
    try:
        expected = await answers(engine, asks(1), together=True)
        torch.cuda.set_sync_debug_mode("error")
        try:
            result = await answers(engine, asks(1), together=True)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        tolerance = TOLERANCE[next(served.parameters()).dtype]
        for ask, choices, before in zip(asks(1), result, expected, strict=True):
            for ours, theirs in zip(choices, before, strict=True):
                assert agree(ours, theirs, tolerance, loose(ask)), ours.finish
    finally:
        await engine.close()


async def test_f8_buffers_keep_their_addresses(served: GPT) -> None:
    """Of ids, logits and samples. Or activations are allocated in each step; the tokens are the same."""

    async def run(persistent: bool) -> tuple[Answer, int]:
        """The answer, and at how many places its steps' buffers were."""
        flags = EAGER | {"enable_persistent_decode": persistent}
        engine = await started(served, TOKENIZER, max_rows=4, flags=flags, **POOL)
        network = engine.core.runner.network  # type: ignore[attr-defined]
        kept: list[object] = []  # alive, so that no two have one address
        places: set[tuple[int, ...]] = set()
        original = network._sample

        def sample(*given: object) -> None:
            scratch = network.scratch
            kept.append(scratch)
            tensors = (scratch.ids, scratch.logits, network.sampled.tokens)
            places.add(tuple(tensor.data_ptr() for tensor in tensors))
            original(*given)

        network._sample = sample
        try:
            ask = Ask([1, 2, 3], SamplingParams(max_tokens=12, temperature=0, ignore_eos=True, logprobs=BEST))
            ((answer,),) = await answers(engine, [ask], together=False)
            rows = {name: used for name, _, used, _ in engine.info.features}
            assert rows["enable_persistent_decode"] == ("on" if persistent else "off")
            assert rows["use_cuda_graphs"] == "off" and len(kept) >= 12
            return answer, len(places)
        finally:
            await engine.close()

    (kept, one), (anew, many) = await run(True), await run(False)
    assert one == 1 < many
    assert agree(kept, anew, TOLERANCE[next(served.parameters()).dtype])


async def test_f10_both_flags_share_one_stream_and_graphs_win(
    served: GPT, monkeypatch: pytest.MonkeyPatch
) -> None:
    streams: set[int] = set()
    original = GraphPool.run

    def run(self: GraphPool, shape: StepShape, full: bool) -> None:
        streams.add(torch.cuda.current_stream().cuda_stream)
        original(self, shape, full)

    monkeypatch.setattr(GraphPool, "run", run)
    flags = {"use_cuda_graphs": True, "enable_persistent_decode": True}
    engine = await started(served, TOKENIZER, max_rows=4, flags=flags, **POOL)
    try:
        ask = Ask([1, 2, 3], SamplingParams(max_tokens=12, temperature=0, ignore_eos=True))
        ((answer,),) = await answers(engine, [ask], together=False)
        assert len(answer.tokens) == 12 and len(streams) == 1
        rows = {name: (used, why) for name, _, used, why in engine.info.features}
        assert rows["enable_persistent_decode"] == ("on", "graphs hold the addresses of every buffer")
        assert rows["use_cuda_graphs"][0].endswith("graphs")
    finally:
        await engine.close()


async def test_f10_with_graphs_the_buffers_persist_anyway(served: GPT) -> None:
    flags = {"use_cuda_graphs": True, "enable_persistent_decode": False}
    engine = await started(served, TOKENIZER, max_rows=4, flags=flags, **POOL)
    try:
        rows = {name: (used, why) for name, _, used, why in engine.info.features}
        assert rows["enable_persistent_decode"] == ("on", "graphs hold the addresses of every buffer")
        assert rows["use_cuda_graphs"][0].endswith("graphs")
        assert engine.core.runner.network.persistent  # type: ignore[attr-defined]
    finally:
        await engine.close()


async def test_a_steady_step_uploads_nothing(served: GPT, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that go on decoding send their numbers once; only new blocks are uploaded after that."""
    engine = await started(served, TOKENIZER, max_rows=4, block_size=64, **POOL)
    staging = engine.core.runner._staging  # type: ignore[attr-defined]
    uploads: list[object] = []
    original = staging._take
    monkeypatch.setattr(
        type(staging), "_take", lambda self, shape: (uploads.append(shape), original(shape))[1]
    )
    try:
        ask = Ask([1, 2, 3], SamplingParams(max_tokens=50, temperature=0, ignore_eos=True))
        await answers(engine, [ask], together=False)
        assert len(uploads) <= 3, uploads
    finally:
        await engine.close()


@pytest.mark.parametrize("count", [10_000])
async def test_random_requests_with_aborts(served: GPT, count: int) -> None:
    """Requests of random shape, some aborted at random: every block is free afterwards, and the others'
    answers equal those of a run without the aborted ones.
    """
    rng = random.Random(5)
    engine = await started(served, TOKENIZER, max_rows=64, num_blocks=1024, max_batched_tokens=512)
    tolerance = TOLERANCE[next(served.parameters()).dtype]
    requests = [
        Ask(
            [rng.randrange(503) for _ in range(rng.randint(1, 60))],
            SamplingParams(
                max_tokens=rng.randint(1, 20),
                temperature=rng.choice([0.0, 0.0, 0.9]),
                top_k=rng.choice([0, 5, 50]),
                seed=index,
                ignore_eos=True,
                logprobs=BEST if index % 2 else None,
            ),
        )
        for index in range(count)
    ]
    doomed = {index for index in range(count) if rng.random() < 0.2}
    gate = asyncio.Semaphore(400)

    async def run(ask: Ask, abort: bool) -> Answer | None:
        async with gate:
            request = Request(id=engine.next_id(1), prompt=ask.prompt, params=ask.params)
            (stream,) = engine.submit(request)
            if not abort:
                return await read(stream)
            # While it waits or prefills, or in the middle of its answer.
            for _ in range(rng.choice([0, 0, rng.randint(1, 6)])):
                if (await stream.next()).finish is not None:
                    break
            engine.abort([stream.id])
            return None

    try:
        mixed = await asyncio.gather(*(run(ask, index in doomed) for index, ask in enumerate(requests)))
        engine.core.scheduler.check()
        stats = engine.stats()
        assert (stats.running, stats.waiting, stats.blocks_used) == (0, 0, 0)
        kept = [index for index in range(count) if index not in doomed]
        # With logprobs, which tell where two tokens were nearly equal.
        telling = [
            replace(ask, params=msgspec.structs.replace(ask.params, logprobs=BEST)) for ask in requests
        ]
        alone = await asyncio.gather(*(run(telling[index], False) for index in kept))
        # The second run is the reference.
        distances = [
            math.inf
            if answer is None or (other := mixed[index]) is None
            else apart(other, answer, tolerance, loose(requests[index]))
            for index, answer in zip(kept, alone, strict=True)
        ]
        off = sum(distance > tolerance for distance in distances)
        allowed = RARE * len(kept) if tolerance > 0.01 else 0
        assert off <= allowed, f"{off} of {len(kept)} answers changed with their company"
        assert max(distances) <= FAR * tolerance
    finally:
        await engine.close()


async def test_long_prompts_in_chunks_whose_keys_are_shared_out(served: GPT) -> None:
    """Prompts of hundreds of tokens in small chunks, beside rows that decode: tiles of few queries over many
    keys, which several programs share in bfloat16. Chunks of another size share them differently.
    """
    rng = random.Random(9)
    greedy = SamplingParams(max_tokens=12, temperature=0, ignore_eos=True, logprobs=BEST)
    asks = [Ask([rng.randrange(503) for _ in range(length)], greedy) for length in (620, 9, 600, 45, 577)]
    tolerance = TOLERANCE[next(served.parameters()).dtype]
    results = []
    for settings in ({"max_chunk": 600}, {"max_chunk": 24}, {"max_chunk": 7, "max_batched_tokens": 64}):
        engine = await started(
            served, TOKENIZER, max_rows=8, max_model_len=640, enable_prefix_caching=False, **(POOL | settings)
        )
        try:
            results.append(await answers(engine, asks, together=True))
        finally:
            await engine.close()
    for other in results[1:]:
        for (ours,), (theirs,) in zip(other, results[0], strict=True):
            assert agree(ours, theirs, tolerance), ours.finish


async def test_a_row_that_is_not_finite_fails_alone(served: GPT) -> None:
    """A poisoned embedding row makes every sequence that holds its token fail, and nobody else."""
    poisoned = 500
    network_engine: AsyncEngine = await started(served, TOKENIZER, max_rows=8, **POOL)
    runner = network_engine.core.runner
    table = runner.network.weights.embedding  # type: ignore[attr-defined]
    saved = table[poisoned].clone()
    good = Ask(list(range(30)), SamplingParams(max_tokens=10, temperature=0, ignore_eos=True, logprobs=BEST))
    bad = Ask(
        [*range(10), poisoned, *range(10)], SamplingParams(max_tokens=10, temperature=0, ignore_eos=True)
    )
    tolerance = TOLERANCE[next(served.parameters()).dtype]
    try:
        ((expected,),) = await answers(network_engine, [good], together=False)
        table[poisoned] = float("nan")
        first, second, third = await answers(network_engine, [good, bad, good], together=True)
        assert agree(first[0], expected, tolerance) and agree(third[0], expected, tolerance)
        finish = second[0].finish
        assert finish is not None and finish.reason == "error" and "not finite" in (finish.message or "")
        table[poisoned] = saved
        # The blocks that the poisoned sequence wrote are handed out again.
        for choices in await answers(network_engine, [good] * 6, together=True):
            assert agree(choices[0], expected, tolerance)
    finally:
        table[poisoned] = saved
        await network_engine.close()


async def test_a_launch_that_finds_no_memory_is_repeated(
    served: GPT, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody fails, answers stay the same, and the results of later steps are found where they are put."""
    engine = await started(served, TOKENIZER, max_rows=8, **POOL)
    tolerance = TOLERANCE[next(served.parameters()).dtype]
    params = SamplingParams(max_tokens=20, temperature=0, ignore_eos=True, logprobs=BEST)
    wanted = [Ask(list(range(first, first + 20)), params) for first in (0, 40, 80)]
    expected = await answers(engine, wanted, together=True)
    staging = type(engine.core.runner._staging)  # type: ignore[attr-defined]
    original, calls = staging.stage, 0

    def stage(self: object, plan: object) -> object:
        nonlocal calls
        calls += 1
        if calls in (2, 9):
            raise torch.OutOfMemoryError("no memory for this step")
        return original(self, plan)

    monkeypatch.setattr(staging, "stage", stage)
    try:
        for choices, before in zip(await answers(engine, wanted, together=True), expected, strict=True):
            assert agree(choices[0], before[0], tolerance), choices[0].finish
        assert calls > 9
        engine.core.scheduler.check()
    finally:
        await engine.close()


async def test_closing_while_steps_run_ends_every_stream(served: GPT) -> None:
    engine = await started(served, TOKENIZER, max_rows=8, **POOL)
    params = SamplingParams(max_tokens=500, temperature=0, ignore_eos=True)
    requests = [Request(id=engine.next_id(1), prompt=[1, 2, 3], params=params) for _ in range(12)]
    streams = [stream for request in requests for stream in engine.submit(request)]
    await streams[0].next()
    await engine.close()
    for stream in streams:
        finish = (await read(stream)).finish
        assert finish is not None and finish.reason == "error"


async def test_two_engines_serve_side_by_side(served: GPT) -> None:
    tolerance = TOLERANCE[next(served.parameters()).dtype]
    first = await started(served, TOKENIZER, max_rows=4, **POOL)
    second = await started(served, TOKENIZER, max_rows=8, **POOL)
    params = SamplingParams(max_tokens=20, temperature=0, ignore_eos=True, logprobs=BEST)
    wanted = [Ask(list(range(start, start + 30)), params) for start in (0, 60)]
    try:
        one, other = await asyncio.gather(
            answers(first, wanted, together=True), answers(second, wanted, together=True)
        )
        for ours, theirs in zip(one, other, strict=True):
            assert agree(ours[0], theirs[0], tolerance)
    finally:
        await first.close()
        await second.close()
