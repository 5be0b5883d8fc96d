"""Row F9 on a GPU: a replayed graph computes what the same step computes outside of it."""

import pytest
import torch

from engine.async_engine import AsyncEngine
from engine.config import Generation
from engine.gpu.runner import GpuRunner
from engine.messages import EngineConfig
from engine.text import load_tokenizer
from tests.engine.checkpoints import make_model
from tests.engine.golden import G1
from tests.gpu.forced import forced

# Of the largest number: kernels are the same, but cuBLAS may take another one inside a graph.
CLOSE = {torch.float32: 1e-5, torch.bfloat16: 2.0**-7}


@pytest.mark.parametrize("dtype", CLOSE, ids=str)
@pytest.mark.parametrize("generation", ["G1", "G3", "G5"])
async def test_f9_replays_give_the_logits_and_keys_of_plain_steps(
    generation: Generation, dtype: torch.dtype
) -> None:
    """Forty steps, each bucket captured once and never again."""
    model = make_model(
        generation, 1, sequence_len=64, vocab_size=512, n_layer=3, n_head=4, n_kv_head=2, n_embd=256
    ).to("cuda", dtype)
    config = EngineConfig(num_blocks=256, max_rows=8, max_batched_tokens=64, decode_path="graph")
    engine = AsyncEngine(model, load_tokenizer(G1 / "tokenizer"), config)
    runner = engine.backend.runner
    assert isinstance(runner, GpuRunner)
    cache = runner.network.cache
    assert cache is not None
    try:
        captured = runner.graphs
        assert captured > 0
        for rows in (8, 3, 1):
            results = []
            for eager in (True, False):
                with torch.inference_mode():
                    for keys, values in cache.layers:
                        keys.zero_()
                        values.zero_()
                torch.cuda.synchronize()  # the runner has a stream of its own
                logits = forced(engine, rows, eager=eager)
                results.append([logits, *(part.float() for layer in cache.layers for part in layer)])
            for plain, replayed in zip(*results, strict=True):
                assert plain.count_nonzero() > 0
                assert (plain - replayed).abs().max() <= CLOSE[dtype] * plain.abs().max()
        assert runner.graphs == captured and runner.graph_recaptures == 0
    finally:
        await engine.close()
