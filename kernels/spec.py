"""What implementations of attention are chosen by, beside the device."""

from dataclasses import dataclass
from typing import Literal

import torch

CompiledKind = Literal["int8", "bf16"]  # weights of the compiled path on a CPU (kernels.cpu)


@dataclass(frozen=True, slots=True)
class AttentionSpec:
    """A model's attention and the engine's sizes: what a backend is chosen by and allocates for.

    fp8_kv: keys and values are kept in eight bits (kernels.kv8), by the flag `kv_dtype`.
    max_rows: most entries of a decode step and most chunks of a mixed one. max_context: positions of a row.
    """

    heads: int
    kv_heads: int
    head_dim: int
    block_size: int
    dtype: torch.dtype
    max_rows: int
    max_context: int
    device: torch.device
    fp8_kv: bool = False
