"""Logprobs of prompt tokens on a GPU: those of the plain model in float32, in any chunks and any company."""

import random

import pytest
import torch

from engine.messages import SamplingParams
from engine.model import GPT
from engine.text import load_tokenizer
from tests.engine.checkpoints import make_model
from tests.engine.golden import G1
from tests.engine.serving import Answer, Ask, answers, started

TOKENIZER = load_tokenizer(G1 / "tokenizer")
VOCAB = 512
TOLERANCE = {torch.bfloat16: 0.12, torch.float32: 2e-3}
POOL: dict[str, object] = {"num_blocks": 2048, "max_batched_tokens": 256, "max_rows": 8}
AXES: dict[str, dict[str, object]] = {
    "graphs": {},
    "no graphs": {"flags": {"use_cuda_graphs": False}},
    "buffers anew": {"flags": {"use_cuda_graphs": False, "enable_persistent_decode": False}},
    "no lookahead": {"lookahead": False},
    "chunks of 7, blocks of 1": {"max_chunk": 7, "block_size": 1, "num_blocks": 8192},
    "chunks of 1": {"max_chunk": 1},
    "preemption": {"num_blocks": 12, "enable_prefix_caching": False},
    "growth": {"num_blocks": 10, "max_num_blocks": 2048},
    "one row": {"max_rows": 1},
    "two rows": {"max_rows": 2},
}


def asks() -> list[Ask]:
    rng = random.Random(0)

    def prompt(length: int) -> list[int]:
        return [rng.randrange(503) for _ in range(length)]

    def ask(prompt: list[int], scores: int | None, n: int = 1, **params: object) -> Ask:
        values = {"max_tokens": 40, "temperature": 0, "ignore_eos": True, "prompt_logprobs": scores} | params
        return Ask(prompt, SamplingParams(**values), n)  # type: ignore[arg-type]

    shared = prompt(48)
    return [
        ask(shared + prompt(70), 5),
        ask(shared, None),
        ask(shared + prompt(9), 0, temperature=1.0, seed=3, n=3),
        ask(prompt(1), 2),
        ask(prompt(2), 20, logprobs=2),
        ask(prompt(90), None, logprobs=3),
        # Short prompts that grow: what a small pool runs out of blocks with.
        *(ask(prompt(5), 1, max_tokens=80) for _ in range(4)),
    ]


@pytest.fixture(scope="module", params=["G1", "G5"])
def model(request: pytest.FixtureRequest) -> GPT:
    kv_heads = 4 if request.param == "G1" else 1
    sizes = {"vocab_size": VOCAB, "n_layer": 3, "n_head": 4, "n_kv_head": kv_heads, "n_embd": 256}
    return make_model(request.param, 1, sequence_len=128, **sizes).to("cuda")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("axis", AXES)
async def test_scores_are_those_of_the_model(model: GPT, dtype: torch.dtype, axis: str) -> None:
    served = GPT(model.config)
    served.load_state_dict(model.state_dict())
    served = served.to("cuda", dtype).requires_grad_(False).eval()
    engine = await started(served, TOKENIZER, **(POOL | AXES[axis]))
    try:
        for together in (False, True):
            for ask, choices in zip(asks(), await answers(engine, asks(), together=together), strict=True):
                check(model, ask, choices[0], TOLERANCE[dtype])
                assert not any(other.prompt for other in choices[1:])
                assert all(c.finish is not None and c.finish.reason == "length" for c in choices)
        engine.core.scheduler.check()
        if axis == "preemption":
            assert engine.stats().preemptions > 0
    finally:
        await engine.close()


async def test_no_step_waits_for_the_device(model: GPT) -> None:
    engine = await started(model, TOKENIZER, enable_prefix_caching=False, **POOL)
    try:
        await answers(engine, asks(), together=True)
        torch.cuda.set_sync_debug_mode("error")
        try:
            result = await answers(engine, asks(), together=True)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        for ask, choices in zip(asks(), result, strict=True):
            check(model, ask, choices[0], TOLERANCE[torch.float32])
    finally:
        await engine.close()


def check(model: GPT, ask: Ask, answer: Answer, tolerance: float) -> None:
    count = ask.params.prompt_logprobs
    if count is None:
        assert not answer.prompt
        return
    assert len(answer.prompt) == len(ask.prompt) - 1
    with torch.inference_mode():
        wanted = torch.log_softmax(model(torch.tensor([ask.prompt], device="cuda"))[0], -1).cpu()
    for place, (logprob, rank, ids, values) in enumerate(answer.prompt):
        line, target = wanted[place], ask.prompt[place + 1]
        near = tolerance * max(1.0, abs(float(line[target])))
        assert logprob == pytest.approx(float(line[target]), abs=near)
        assert list(values) == pytest.approx(line.topk(count).values.tolist(), abs=near)
        assert list(values) == pytest.approx(line[list(ids)].tolist(), abs=2 * near)
        close = int((line - line[target]).abs().lt(2 * near).sum())
        assert abs(rank - 1 - int((line > line[target]).sum())) <= close
