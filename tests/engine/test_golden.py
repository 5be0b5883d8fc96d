"""Upstream's own logits and greedy tokens, in float32."""

import json

import pytest
import torch

from engine.loader import load_model
from engine.messages import SamplingParams
from tests.engine.golden import GOLDEN
from tests.engine.serving import Ask, answers, started
from tests.tiers import tiered

CONFIGS: list[dict[str, object]] = [
    {},
    {"max_chunk": 1},
    {"max_chunk": 7, "block_size": 1},
    {"max_chunk": 64, "block_size": 32},
    {"num_blocks": 17},
    {"num_blocks": 269, "block_size": 1, "max_chunk": 7},
]


@pytest.mark.parametrize("name", ["g1", "g5"])
def test_logits(name: str) -> None:
    model, _, meta = load_model(GOLDEN / name, dtype="float32")
    assert meta.generation == name.upper()
    for case in json.loads((GOLDEN / name / "expected.json").read_text())["prompts"]:
        with torch.no_grad():
            logits = model(torch.tensor([case["prompt"]]))[0]
        torch.testing.assert_close(logits[-1], torch.tensor(case["logits_last"]), rtol=0, atol=5e-5)
        torch.testing.assert_close(logits.mean(-1), torch.tensor(case["logits_mean"]), rtol=0, atol=5e-5)


@pytest.mark.parametrize(
    "config", tiered([(config,) for config in CONFIGS], range(0, len(CONFIGS), 2)), ids=str
)
@pytest.mark.parametrize("name", ["g1", "g5"])
async def test_greedy_tokens(name: str, config: dict[str, object]) -> None:
    model, tokenizer, _ = load_model(GOLDEN / name, dtype="float32")
    cases = json.loads((GOLDEN / name / "expected.json").read_text())["prompts"]
    asks = [
        Ask(case["prompt"], SamplingParams(max_tokens=40, temperature=0, ignore_eos=True)) for case in cases
    ]
    engine = await started(model, tokenizer, **config)
    for together in (False, True):
        result = await answers(engine, asks * 2, together=together)
        for choices, case in zip(result, cases * 2, strict=True):
            assert choices[0].tokens == case["greedy"]
    await engine.close()
