"""How many KV blocks there are: at the start, sized from a CPU's memory unless asked for, and later, where
the pool may grow. The result is printed and exported.
"""

import os
from pathlib import Path

import torch

from engine.decoder import DecoderConfig
from engine.messages import EngineConfig
from kernels.kv8 import FORMAT, SCALE_FORMAT

CPU_SHARE = 0.25  # of the machine's memory
SEQUENCES_PER_ROW = 2  # room for what the prefix cache keeps beside the running rows
LEAST_GROWTH = 1024  # tokens


def block_bytes(model: DecoderConfig, block_size: int, dtype: torch.dtype) -> int:
    """Bytes of one block over all layers, keys and values, and their scales where `dtype` is of eight
    bits.
    """
    of_a_head = model.head_dim * dtype.itemsize + (SCALE_FORMAT.itemsize if dtype == FORMAT else 0)
    return 2 * model.n_layer * model.n_kv_head * of_a_head * block_size


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


def largest_pool(config: EngineConfig, blocks: int, block_size: int, page: int | None) -> int:
    """Blocks that a pool of `blocks` may grow to; both count the write-off block."""
    if config.max_num_blocks is None:
        return blocks
    return whole_pages(1 + config.max_num_blocks, block_size, page)


def grown_pool(blocks: int, wanted: int, most: int, block_size: int, page: int | None) -> int:
    """Blocks that a pool of `blocks` grows to, so that `wanted` can be used: twice as many, or what is wanted
    or a step more if that is larger, but at most `most`. All but `wanted` count the write-off block.

    A step is a block, a page or 1,024 tokens, whatever is largest. To double keeps growth rare: it moves the
    pool, and on a GPU it costs the graphs.
    """
    step = -(-max(LEAST_GROWTH, page or 0) // block_size)
    usable = max(2 * (blocks - 1), wanted, blocks - 1 + step)
    return min(whole_pages(1 + usable, block_size, page), most)


def free_memory() -> int | None:
    """Bytes that the machine can give without swapping; None where the system does not say. Linux gives more,
    and ends the process when it is used.
    """
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    found = [line for line in lines if line.startswith("MemAvailable:")]
    return int(found[0].split()[1]) * 1024 if found else None


def whole_pages(blocks: int, block_size: int, page: int | None) -> int:
    """blocks, the write-off block included, with the rest rounded up to a multiple of `page` tokens."""
    if not page:
        return blocks
    tokens = -(-(blocks - 1) * block_size // page) * page
    return 1 + -(-tokens // block_size)
