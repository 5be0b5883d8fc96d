"""Grammars on a GPU: what ends by itself has its form, with and without graphs, alone and in company."""

import re

import pytest
import torch

from engine.messages import SamplingParams
from engine.text import load_tokenizer
from tests.engine.checkpoints import make_model
from tests.engine.golden import G1
from tests.engine.serving import Ask, answers, started

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
    "our decode step as the user's own": {
        "flags": {"use_persistent_decode_kernel": True, "persistent_decode_impl": "kernels.persistent_decode"}
    },
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("axis", AXES)
async def test_answers_have_their_form_and_the_others_do_not_notice(axis: str, dtype: torch.dtype) -> None:
    model = make_model("G5", 1, n_layer=3, n_head=4, n_kv_head=1, n_embd=256).to("cuda", dtype)
    engine = await started(model, TOKENIZER, **(POOL | AXES[axis]))
    prompt = [(7 * k) % 500 for k in range(40)]
    formed = [
        Ask(
            prompt[: 8 + seed],
            SamplingParams(
                max_tokens=60,
                seed=seed,
                temperature=0.5 * (seed % 3),
                top_k=5 * (seed % 2),
                min_tokens=5 * (seed % 4),
                grammar=f"start: /{pattern}/",
            ),
            n=1 + seed % 2,
        )
        for seed in range(8)
        for pattern in PATTERNS
    ]
    greedy = SamplingParams(max_tokens=60, temperature=0, ignore_eos=True)
    free = [Ask(prompt[k : k + 9], greedy) for k in range(3)]
    try:
        alone = [[a.tokens for a in choices] for choices in await answers(engine, free, together=False)]
        together = await answers(engine, [*free, *formed], together=True)
        for wanted, choices in zip(formed, together[len(free) :], strict=True):
            pattern = (wanted.params.grammar or "").removeprefix("start: /").removesuffix("/")
            for answer in choices:
                assert answer.finish is not None and answer.finish.reason == "stop", answer.finish
                text = TOKENIZER.decode(answer.tokens[:-1])
                assert re.fullmatch(pattern, text), (pattern, text)
        if dtype == torch.float32:  # other sums in bfloat16 may prefer another token
            assert [[a.tokens for a in choices] for choices in together[: len(free)]] == alone
        engine.core.scheduler.check()
        assert len(engine.core.forms) == 0
        if axis == "preemption":
            assert engine.stats().preemptions > 0
    finally:
        await engine.close()
