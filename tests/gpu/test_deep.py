"""Models of many layers: what a layer's own scalars and tables need is compiled before the capture."""

import asyncio

import pytest
import torch

from engine.gpu.runner import GpuRunner
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


def test_x2_weights_keys_and_values_take_two_bytes_a_number() -> None:
    """As the engine says, and as its tensors are; small tables of other kinds are a hundredth at most."""
    model = make_model("G1", 2, vocab_size=512, n_layer=4, n_head=8, n_kv_head=8, n_embd=1024)
    model = model.to("cuda", torch.bfloat16)
    numbers = sum(parameter.numel() for parameter in model.parameters())
    blocks, size = 64, 16

    async def memory() -> tuple[dict[str, int], set[torch.dtype]]:
        tokenizer = load_tokenizer(G1 / "tokenizer")
        engine = await started(model, tokenizer, max_rows=4, num_blocks=blocks, max_batched_tokens=64)
        try:
            runner = engine.backend.runner
            assert isinstance(runner, GpuRunner)
            network = runner.network
            assert network.cache is not None
            used = [*network.weights.matrices, *(part for layer in network.cache.layers for part in layer)]
            return engine.backend.memory, {part.dtype for part in used}
        finally:
            await engine.close()

    found, dtypes = asyncio.run(memory())
    assert dtypes == {torch.bfloat16}
    assert 2 * numbers <= found["weights"] <= 2.02 * numbers
    assert found["kv"] == (blocks + 1) * size * 2 * 4 * 1024 * 2
