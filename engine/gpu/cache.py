"""The paged keys and values on a GPU.

Per layer [blocks, kv_heads, block_size, head_dim] in memory, so that what one head reads of a block lies
together; kernels see it as [blocks, block_size, kv_heads, head_dim] and go by strides. Zeroed at start:
kernels may read unused slots of a block, and masking does not silence a NaN.
"""

import torch


class PagedKV:
    """`layers[i]` holds views of layer i's keys and values, each [blocks, block_size, kv_heads, head_dim]."""

    def __init__(
        self,
        layers: int,
        blocks: int,
        block_size: int,
        kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.block_size = block_size
        self.blocks = blocks
        shape = (layers, 2, blocks, kv_heads, block_size, head_dim)
        self.memory = torch.zeros(shape, dtype=dtype, device=device)
        self.layers = [(pair[0].transpose(1, 2), pair[1].transpose(1, 2)) for pair in self.memory.unbind(0)]
