"""Grammars, scores, choices, tools, aborts and steps without memory, all in one engine: who is let finish
gets what it gets alone, and nothing is left behind.
"""

import asyncio
import random
import threading

import pytest

from engine.async_engine import AsyncEngine
from engine.messages import Request, SamplingParams
from engine.plan import Plan
from engine.runner import ModelRunner, StagedStep
from engine.steps import StepHandle, StepResult
from engine.text import load_tokenizer
from tests.engine.checkpoints import make_model
from tests.engine.golden import G1
from tests.engine.serving import Answer, Ask, answers, read, started
from tests.tiers import tiered

TOKENIZER = load_tokenizer(G1 / "tokenizer")
TOOL_START, TOOL_END = (TOKENIZER.encode_special(f"<|python_{side}|>") for side in ("start", "end"))
FORMS = ["start: /[a-z]{3,9}/", 'start: "yes" | "no"', r'start: "[" /[0-9]{1,7}/ ("," /[1-9]{2}/){1,4} "]"']
BROKEN = "start: /(?=x)/"
MODEL = make_model("G1", 1, n_layer=1, n_head=2, n_kv_head=2, n_embd=32, vocab_size=512, sequence_len=64)


def random_ask(rng: random.Random) -> Ask:
    """Of a few prompts that share their beginnings."""
    prompt = [(3 + rng.randrange(2) + 7 * k) % 500 for k in range(rng.choice([1, 2, 17, 33, 48, 60]))]
    values: dict[str, object] = {
        "max_tokens": rng.randrange(1, 30),
        "temperature": rng.choice([0.0, 0.8, 1.2]),
        "seed": rng.randrange(100),
        "min_tokens": rng.choice([0, 0, 4]),
        "logprobs": rng.choice([None, None, 2]),
        "prompt_logprobs": rng.choice([None, None, 0, 3]),
        "repetition_penalty": rng.choice([1.0, 1.0, 1.3]),
    }
    tools = False
    match rng.randrange(5):
        case 0:
            values["ignore_eos"] = True
        case 1:
            tools = values["ignore_eos"] = True
            values["logit_bias"] = {TOOL_START: 9.0, TOOL_END: 9.0} | {ord(c): 8.0 for c in "0123456789"}
        case 2 | 3:
            values["grammar"] = rng.choice([*FORMS, *FORMS, BROKEN])
        case _:
            values["stop_token_ids"] = tuple(range(40, 60))
    return Ask(prompt, SamplingParams(**values), n=rng.choice([1, 1, 2, 3]), tools=tools)  # type: ignore[arg-type]


ASKS = [random_ask(random.Random(seed)) for seed in range(40)]


def random_config(rng: random.Random) -> dict[str, object]:
    sizes = rng.choice(
        [
            {},
            {"num_blocks": 10},
            {"num_blocks": 3, "max_num_blocks": 512},
            {"num_blocks": 128, "block_size": 1},
        ]
    )
    return sizes | {
        "enable_prefix_caching": rng.random() < 0.6,
        "lookahead": rng.random() < 0.7,
        "max_rows": rng.choice([1, 3, 8]),
        "max_chunk": rng.choice([None, 1, 7]),
        "max_batched_tokens": rng.choice([8, 24, 256]),
        "batching": rng.choice(["continuous", "continuous", "static", "single"]),
        "weight_dtype": "auto",
        "threads": 1,
    }


class Faults:
    """Makes launches and launched steps run out of memory, now and then."""

    def __init__(self, rng: random.Random, patch: pytest.MonkeyPatch) -> None:
        launch, execute = ModelRunner.launch, ModelRunner._execute

        def hit() -> None:
            if rng.random() < 0.04:
                raise MemoryError("no room")

        def launching(runner: ModelRunner, plan: Plan) -> StepHandle:
            hit()
            return launch(runner, plan)

        def executing(runner: ModelRunner, step: StagedStep) -> StepResult:
            hit()
            return execute(runner, step)

        patch.setattr(ModelRunner, "launch", launching)
        patch.setattr(ModelRunner, "_execute", executing)


@pytest.fixture(scope="module")
def reference() -> list[list[tuple[object, ...]]]:
    async def run() -> list[list[tuple[object, ...]]]:
        plain = {"enable_prefix_caching": False, "lookahead": False, "max_rows": 1, "threads": 1}
        engine = await started(MODEL, TOKENIZER, **plain)
        result = await answers(engine, ASKS, together=False)
        await engine.close()
        return [[answer.content for answer in choices] for choices in result]

    return asyncio.run(run())


async def ask_and_perhaps_leave(engine: AsyncEngine, ask: Ask, rng: random.Random) -> list[Answer | None]:
    """Answers; None for those that were given up, after some turns of the loop."""
    for _ in range(rng.randrange(40)):
        await asyncio.sleep(0)
    request = Request(
        id=engine.next_id(ask.n), prompt=ask.prompt, params=ask.params, n=ask.n, tools=ask.tools
    )
    streams = engine.submit(request)
    reading = [asyncio.ensure_future(read(stream)) for stream in streams]
    left: set[int] = set()
    if rng.random() < 0.3:
        for _ in range(rng.randrange(60)):
            await asyncio.sleep(0)
        left = {stream.id for stream in streams if rng.random() < 0.7}
        engine.abort(left)
    result: list[Answer | None] = []
    for stream, task in zip(streams, reading, strict=True):
        if stream.id in left and not task.done():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            result.append(None)
        else:
            result.append(await task)
    return result


@pytest.mark.parametrize("seed", tiered(range(12), range(6)))
async def test_whatever_comes_together(
    seed: int, reference: list[list[tuple[object, ...]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(seed)
    config = random_config(rng)
    before = set(threading.enumerate())  # other tests' engines may still be open
    engine = await started(MODEL, TOKENIZER, **config)
    engine.core.forms.early = rng.random() < 0.5  # as on a GPU
    if seed % 3:
        Faults(rng, monkeypatch)
    try:
        async with asyncio.timeout(60):
            given = await asyncio.gather(*(ask_and_perhaps_leave(engine, ask, rng) for ask in ASKS))
        for index, (choices, wanted) in enumerate(zip(given, reference, strict=True)):
            for answer, content in zip(choices, wanted, strict=True):
                if answer is None:
                    continue
                assert answer.finish is not None
                if answer.finish.code == "out_of_memory":
                    assert seed % 3
                elif ASKS[index].params.grammar == BROKEN:
                    assert answer.finish.reason == "error" and not answer.tokens
                else:
                    assert answer.content == content, (index, config, answer.finish)
        core = engine.core
        core.scheduler.check()
        stats = engine.stats()
        assert (stats.running, stats.waiting, stats.blocks_used) == (0, 0, 0)
        assert (len(core.forms), len(core.forms._working), len(core._stops), len(core._tools)) == (0, 0, 0, 0)
        assert stats.step_age_seconds == 0
    finally:
        await engine.close()
    left = set(threading.enumerate()) - before
    assert not [thread.name for thread in left if thread.name.startswith(("step", "grammar"))]
