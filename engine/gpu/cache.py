"""The paged keys and values on a GPU.

Per layer [blocks, kv_heads, block_size, head_dim] in memory, so that what one head reads of a block lies
together; kernels see it as [blocks, block_size, kv_heads, head_dim] and go by strides. Zeroed at start:
kernels may read unused slots of a block, and masking does not silence a NaN. Each layer has memory of its
own, so that a cache can move to larger memory one layer at a time.
"""

import torch


class PagedKV:
    """`layers[i]` holds views of layer i's keys and values, each [blocks, block_size, kv_heads, head_dim].

    blocks: what every layer has. moves: layers that were moved to larger memory since the start.
    """

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
        self.moves = 0
        shape = (2, blocks, kv_heads, block_size, head_dim)
        self._memory = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(layers)]
        self.layers = [_views(memory) for memory in self._memory]

    def bytes_to_grow(self, blocks: int) -> int:
        """Free memory that `grow` needs: at its end there is one layer of the old cache too much."""
        one = self._memory[0]
        of_a_block = one.nbytes // one.size(1)
        return ((blocks - self.blocks) * len(self._memory) + self.blocks) * of_a_block

    def grow(self, blocks: int) -> None:
        """Moves one layer after the other to memory for this many blocks, on the current stream; numbers and
        contents of the present ones stay. Every step before must have ended.

        Raises what the allocator raises. Layers that have moved until then stay where they are, which harms
        nobody: they hold more blocks than are in use.
        """
        for index in range(len(self.layers)):
            self._move(index, blocks)
        self.blocks = blocks

    def _move(self, index: int, blocks: int) -> None:
        old = self._memory[index]
        new = torch.zeros((2, blocks, *old.shape[2:]), dtype=old.dtype, device=old.device)
        new[:, : old.size(1)].copy_(old)
        if old.is_cuda:
            # The allocator may hand out the old memory the moment it is dropped, to any stream.
            torch.cuda.current_stream(old.device).synchronize()
        self._memory[index], self.layers[index] = new, _views(new)
        self.moves += 1


def _views(memory: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values of a layer, from [2, blocks, kv_heads, block_size, head_dim]."""
    return memory[0].transpose(1, 2), memory[1].transpose(1, 2)
