"""Steps over given tokens through an engine's own runner, as graphs or outside of them."""

import torch

from engine.async_engine import AsyncEngine
from engine.forced import forced_plans
from engine.gpu.runner import GpuRunner


def texts(rows: int, length: int = 40) -> list[list[int]]:
    return [[(7 * i + 31 * row + i * i) % 500 for i in range(length)] for row in range(rows)]


def forced(served: AsyncEngine, rows: int, eager: bool = False) -> torch.Tensor:
    """[positions, rows, vocabulary] of the first `rows` texts."""
    runner = served.backend.runner
    assert isinstance(runner, GpuRunner)
    found = []
    for plan in forced_plans(texts(8)[:rows], served.info.block_size):
        if eager:
            runner.force(plan)
        else:
            runner.launch(plan).future.result()
        found.append(runner.network.scratch.logits[:rows, : served.info.vocab_size].float().clone())
    return torch.stack(found)
