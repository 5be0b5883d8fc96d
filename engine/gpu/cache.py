"""The paged keys and values on a GPU.

Per layer [blocks, kv_heads, block_size, head_dim] in memory, so that what one head reads of a block lies
together; kernels see it as [blocks, block_size, kv_heads, head_dim] and go by strides. Zeroed at start:
kernels may read unused slots of a block, and masking does not silence a NaN. Each layer has memory of its
own, so that a cache can move to larger memory one layer at a time.

Keys and values of eight bits (kernels.kv8) have their scales beside them, [blocks, kv_heads, block_size] in
memory: those of what one head reads of a block lie together, too.
"""

import torch

from kernels.kv8 import FORMAT, SCALE_FORMAT, Scales


class PagedKV:
    """`layers[i]` holds views of layer i's keys and values, each [blocks, block_size, kv_heads, head_dim].
    `scales[i]`, where dtype is of eight bits: those of their scales, each [blocks, block_size, kv_heads].

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
        self._memory = [_zeros(shape, dtype, device) for _ in range(layers)]
        self._scales = [
            _zeros(shape[:-1], SCALE_FORMAT, device) if dtype == FORMAT else None for _ in range(layers)
        ]
        self.layers = [_views(memory) for memory in self._memory]
        self.scales = [_scale_views(memory) for memory in self._scales]

    def bytes_to_grow(self, blocks: int) -> int:
        """Free memory that `grow` needs: at its end there is one layer of the old cache too much."""
        of_a_block = sum(
            one.nbytes // one.size(1) for one in (self._memory[0], self._scales[0]) if one is not None
        )
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
        """Both a layer's numbers and their scales, or neither."""
        old, old_scales = self._memory[index], self._scales[index]
        new, new_scales = _larger(old, blocks), None
        if old_scales is not None:
            new_scales = _larger(old_scales, blocks)
        if old.is_cuda:
            # The allocator may hand out the old memory the moment it is dropped, to any stream.
            torch.cuda.current_stream(old.device).synchronize()
        self._memory[index], self.layers[index] = new, _views(new)
        self._scales[index], self.scales[index] = new_scales, _scale_views(new_scales)
        self.moves += 1


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Of any type: torch fills no tensors of eight bits on every device."""
    if dtype == FORMAT:
        return torch.zeros(shape, dtype=torch.uint8, device=device).view(dtype)
    return torch.zeros(shape, dtype=dtype, device=device)


def _larger(old: torch.Tensor, blocks: int) -> torch.Tensor:
    """[2, blocks, ...] with the old ones in front."""
    new = _zeros((2, blocks, *old.shape[2:]), old.dtype, old.device)
    if old.dtype == FORMAT:
        new.view(torch.uint8)[:, : old.size(1)].copy_(old.view(torch.uint8))
    else:
        new[:, : old.size(1)].copy_(old)
    return new


def _views(memory: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values of a layer, from [2, blocks, kv_heads, block_size, head_dim]."""
    return memory[0].transpose(1, 2), memory[1].transpose(1, 2)


def _scale_views(memory: torch.Tensor | None) -> Scales | None:
    """Their scales, from [2, blocks, kv_heads, block_size]."""
    return None if memory is None else (memory[0].transpose(1, 2), memory[1].transpose(1, 2))
