"""Models of many layers: what a layer's own scalars and tables need is compiled before the capture."""

import asyncio

import pytest
import torch

from engine.messages import SamplingParams
from engine.text import load_tokenizer
from tests.engine.checkpoints import make_model
from tests.engine.golden import G1
from tests.engine.serving import Answer, Ask, answers, started
from tests.gpu.test_engine import BEST, EAGER, TOLERANCE, agree

LAYERS = 14  # addresses of per-layer scalars differ in what they are divisible by


@pytest.mark.parametrize("generation", ["G1", "G2", "G3", "G4", "G5"])
def test_a_deep_model_starts_with_graphs(generation: str) -> None:
    """And answers as it does without them."""
    model = make_model(
        generation, 2, sequence_len=64, vocab_size=512, n_layer=LAYERS, n_head=4, n_kv_head=2, n_embd=256
    ).to("cuda", torch.bfloat16)
    tokenizer = load_tokenizer(G1 / "tokenizer")
    params = SamplingParams(max_tokens=16, temperature=0, ignore_eos=True, logprobs=BEST)
    asks = [Ask(list(range(40, 40 + length)), params) for length in (1, 5, 33, 64)]

    async def serve(flags: dict[str, bool]) -> tuple[list[Answer], str]:
        engine = await started(
            model, tokenizer, max_rows=8, num_blocks=256, max_batched_tokens=256, flags=flags
        )
        try:
            found = await answers(engine, asks, together=True)
            rows = {name: used for name, _, used, _ in engine.info.features}
            return [choices[0] for choices in found], rows["use_cuda_graphs"]
        finally:
            await engine.close()

    expected, without = asyncio.run(serve(EAGER))
    got, captured = asyncio.run(serve({}))
    assert without == "off" and captured.endswith("graphs")
    for ours, theirs in zip(got, expected, strict=True):
        assert agree(ours, theirs, TOLERANCE[torch.bfloat16])
