"""How many KV blocks fit into a CPU's memory. Sized once at start; the result is printed and exported."""

import os

import torch

from engine.decoder import DecoderConfig
from engine.messages import EngineConfig

CPU_SHARE = 0.25  # of the machine's memory
SEQUENCES_PER_ROW = 2  # room for what the prefix cache keeps beside the running rows


def block_bytes(model: DecoderConfig, block_size: int, dtype: torch.dtype) -> int:
    """Bytes of one block over all layers, keys and values."""
    return 2 * model.n_layer * model.n_kv_head * model.head_dim * block_size * dtype.itemsize


def pool_blocks(
    model: DecoderConfig,
    config: EngineConfig,
    block_size: int,
    max_rows: int,
    max_model_len: int,
    dtype: torch.dtype,
) -> int:
    """Blocks to allocate on a CPU, the write-off block included. Raises ValueError if not even one sequence
    fits.
    """
    per_sequence = -(-max_model_len // block_size)
    if config.num_blocks is not None:
        if config.num_blocks < 1:
            raise ValueError(f"num_blocks is {config.num_blocks}; at least 1 is needed")
        blocks = 1 + config.num_blocks
    else:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        fitting = int(memory * CPU_SHARE) // block_bytes(model, block_size, dtype)
        blocks = 1 + min(SEQUENCES_PER_ROW * max_rows * per_sequence, fitting)
        # Some models know contexts that no machine here can hold; unless one was asked for, the pool is the
        # limit.
        if blocks <= (per_sequence if config.max_model_len is not None else 1):
            raise ValueError(
                f"a sequence of {max_model_len} tokens needs {per_sequence} KV blocks and memory holds "
                f"{blocks - 1}; lower max_model_len or set num_blocks"
            )
    return whole_pages(blocks, block_size, config.kv_page_size or model.kv_page_size)


def whole_pages(blocks: int, block_size: int, page: int | None) -> int:
    """blocks, the write-off block included, with the rest rounded up to a multiple of `page` tokens."""
    if not page:
        return blocks
    tokens = -(-(blocks - 1) * block_size // page) * page
    return 1 + -(-tokens // block_size)
