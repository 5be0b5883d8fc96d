"""Grammars on a GPU: what ends by itself has its form, with and without graphs, alone and in company."""

import re

import pytest
import torch

from engine.messages import SamplingParams
from engine.text import load_tokenizer
from tests.engine.checkpoints import make_model
from tests.engine.golden import G1
from tests.engine.serving import Answer, Ask, answers, started

TOKENIZER = load_tokenizer(G1 / "tokenizer")
POOL = {"num_blocks": 512, "max_batched_tokens": 256, "max_rows": 16}
PATTERNS = [
    "[a-z]{3,9}",
    r"[0-9]{2}\.[0-9]{1,3}",
    "yes|no",
    r'\{"n": (null|true), "s": "[^"\\\x00-\x1f]{0,6}"\}',
]
AXES: dict[str, dict[str, object]] = {
    "graphs": {},
    "no graphs": {"flags": {"use_cuda_graphs": False}},
    "no lookahead": {"lookahead": False},
    "three rows": {"max_rows": 3},
    "preemption": {"num_blocks": 10},
    "growth": {"num_blocks": 8, "max_num_blocks": 512},
    "chunks of 1, blocks of 1": {"max_chunk": 1, "block_size": 1, "num_blocks": 4096},
    "static batches": {"batching": "static", "batch_timeout_ms": 1.0},
    "buffers anew": {"flags": {"use_cuda_graphs": False, "enable_persistent_decode": False}},
    "the reference step as the user's own": {
        "flags": {"use_persistent_decode_kernel": True, "allow_kernel_stub_fallback": True}
    },
}


def formed_asks(prompt: list[int]) -> list[Ask]:
    """Greedy and drawn, some with choices, bans, and the logprobs of their prompt and of their tokens."""
    return [
        Ask(
            prompt[: 8 + seed],
            SamplingParams(
                max_tokens=60,
                seed=seed,
                temperature=0.5 * (seed % 3),
                top_k=5 * (seed % 2),
                min_tokens=5 * (seed % 4),
                logprobs=3 if seed == 5 else None,
                prompt_logprobs=seed if seed % 4 == 1 else None,
                grammar=f"start: /{pattern}/",
            ),
            n=1 + seed % 2,
        )
        for seed in range(8)
        for pattern in PATTERNS
    ]


def check_forms(asks: list[Ask], given: list[list[Answer]]) -> None:
    for ask, choices in zip(asks, given, strict=True):
        pattern = (ask.params.grammar or "").removeprefix("start: /").removesuffix("/")
        for answer in choices:
            assert answer.finish is not None and answer.finish.reason == "stop", answer.finish
            text = TOKENIZER.decode(answer.tokens[:-1])
            assert re.fullmatch(pattern, text), (pattern, text)
            assert len(answer.logprobs) == (len(answer.tokens) if ask.params.logprobs is not None else 0)
        scored = ask.params.prompt_logprobs is not None
        assert [len(answer.prompt) for answer in choices] == [
            (len(ask.prompt) - 1) * (scored and choice == 0) for choice in range(ask.n)
        ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("axis", AXES)
async def test_answers_have_their_form_and_the_others_do_not_notice(axis: str, dtype: torch.dtype) -> None:
    model = make_model("G5", 1, n_layer=3, n_head=4, n_kv_head=1, n_embd=256).to("cuda", dtype)
    engine = await started(model, TOKENIZER, **(POOL | AXES[axis]))
    prompt = [(7 * k) % 500 for k in range(40)]
    formed = formed_asks(prompt)
    greedy = SamplingParams(max_tokens=60, temperature=0, ignore_eos=True)
    free = [Ask(prompt[k : k + 9], greedy) for k in range(3)]
    try:
        alone = [[a.tokens for a in choices] for choices in await answers(engine, free, together=False)]
        together = await answers(engine, [*free, *formed], together=True)
        check_forms(formed, together[len(free) :])
        if dtype == torch.float32:  # other sums in bfloat16 may prefer another token
            assert [[a.tokens for a in choices] for choices in together[: len(free)]] == alone
        engine.core.scheduler.check()
        assert len(engine.core.forms) == 0
        if axis == "preemption":
            assert engine.stats().preemptions > 0
        if axis == "growth":
            # Graphs of steps with masks were given up with the others, and are captured again.
            again = await answers(engine, formed, together=True)
            check_forms(formed, again)
            assert engine.stats().kv_growths > 0
    finally:
        await engine.close()


async def test_no_step_waits_for_the_device() -> None:
    """Masks go up behind the step in flight, from memory that the device reads by itself."""
    model = make_model("G5", 1, n_layer=3, n_head=4, n_kv_head=1, n_embd=256).to("cuda")
    engine = await started(model, TOKENIZER, enable_prefix_caching=False, **POOL)
    formed = formed_asks([(7 * k) % 500 for k in range(40)])
    try:
        check_forms(formed, await answers(engine, formed, together=True))
        torch.cuda.set_sync_debug_mode("error")
        try:
            again = await answers(engine, formed, together=True)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        check_forms(formed, again)
    finally:
        await engine.close()
