"""What an engine stands on: a runner on some device, and the KV pool that fits there."""

from dataclasses import dataclass, field

import torch

from engine.decoder import DecoderConfig
from engine.steps import Runner

# Start-up table: feature, asked for, used, why.
Feature = tuple[str, str, str, str]


@dataclass(frozen=True, slots=True)
class Backend:
    """blocks: KV blocks of block_size tokens, the write-off block included; max_blocks: as many may the pool
    grow to, through the runner's `grow`. memory: bytes by purpose, where
    known. spread: see `BlockPool`. weights_bytes, step_bytes: what the weights take, and what a decode
    step reads of them, where that is not what the model's own take, else 0. kept: the type that projections
    are served in, where that is not `dtype`.
    """

    runner: Runner
    device: torch.device
    dtype: torch.dtype
    blocks: int
    max_blocks: int
    block_size: int
    max_rows: int
    max_batched_tokens: int
    max_model_len: int
    spread: int
    features: list[Feature]
    memory: dict[str, int] = field(default_factory=dict)
    weights_bytes: int = 0
    step_bytes: int = 0
    kept: str = ""


MIN_MODEL_LEN = 1024
DEFAULT_BLOCK_SIZE = 16


def short(dtype: torch.dtype) -> str:
    """A type's name as it is said to people: bfloat16."""
    return str(dtype).removeprefix("torch.")


def most_tokens(model: DecoderConfig, asked: int | None) -> int:
    """Most tokens of a sequence. A model trained on little context is served with 1,024 all the same: its
    rotary table covers ten times that of its training. Raises ValueError for more than the table.
    """
    covered = model.rope_len
    if asked is None:
        return max(model.sequence_len, min(MIN_MODEL_LEN, covered))
    if not 2 <= asked <= covered:
        raise ValueError(f"max_model_len {asked} is outside 2..{covered}, the model's rotary table")
    return asked
