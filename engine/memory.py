"""How many KV blocks fit. Sized once at start; the result is printed and exported."""

import os

import torch

from engine.config import GPTConfig
from engine.messages import EngineConfig

CPU_SHARE = 0.25  # of the machine's memory
CUDA_SHARE = 0.85  # of what is free after the weights
SEQUENCES_PER_ROW = 2  # room for what the prefix cache keeps beside the running rows, on a CPU


def block_bytes(model: GPTConfig, block_size: int, dtype: torch.dtype) -> int:
    """Bytes of one block over all layers, keys and values."""
    return 2 * model.n_layer * model.n_kv_head * model.head_dim * block_size * dtype.itemsize


def pool_blocks(
    model: GPTConfig,
    config: EngineConfig,
    block_size: int,
    max_rows: int,
    max_model_len: int,
    dtype: torch.dtype,
    device: torch.device,
) -> int:
    """Blocks to allocate, the write-off block included. Raises ValueError if not even one sequence fits."""
    per_sequence = -(-max_model_len // block_size)
    if config.num_blocks is not None:
        if config.num_blocks < 1:
            raise ValueError(f"num_blocks is {config.num_blocks}; at least 1 is needed")
        blocks = 1 + config.num_blocks
    else:
        fitting = _budget(device) // block_bytes(model, block_size, dtype)
        wanted = SEQUENCES_PER_ROW * max_rows * per_sequence
        blocks = 1 + (fitting if device.type == "cuda" else min(wanted, fitting))
        if blocks <= per_sequence:
            raise ValueError(
                f"a sequence of {max_model_len} tokens needs {per_sequence} KV blocks and memory holds "
                f"{blocks - 1}; lower max_model_len or set num_blocks"
            )
    page = config.kv_page_size or model.kv_page_size
    if page:
        tokens = -(-(blocks - 1) * block_size // page) * page
        blocks = 1 + -(-tokens // block_size)
    return blocks


def _budget(device: torch.device) -> int:
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free * CUDA_SHARE)
    return int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * CPU_SHARE)
