"""Weights as the tiles read them, one block of 32 outputs behind the other."""

import mmap
from contextlib import suppress
from dataclasses import dataclass

import torch

from kernels.cpu.isa import OUTPUTS
from kernels.quantize import in_pairs, quantize

HUGE = 2 << 20


@dataclass(frozen=True, slots=True, eq=False)
class Packed:
    """A projection [outputs, inputs] in blocks of 32 outputs.

    weights: [blocks, inputs / group, 32, group] uint8 or bfloat16; a group is the four int8 (plus 128) or the
    two bf16 numbers of neighbouring inputs. scales: [blocks * 32] float32, ones for bf16.
    """

    weights: torch.Tensor
    scales: torch.Tensor
    outputs: int
    inputs: int

    @property
    def nbytes(self) -> int:
        return self.weights.nbytes + self.scales.nbytes


def pack_int8(weight: torch.Tensor, name: str = "a weight") -> Packed:
    """weight: [outputs, inputs], inputs a multiple of 4. Rounded as kernels.quantize does; raises ValueError
    where it does.
    """
    outputs, inputs = weight.shape
    rounded = quantize(weight, "int8", name)
    values = (in_pairs(rounded.values).to(torch.int16) + 128).to(torch.uint8)
    padded = torch.full((_padded(outputs), inputs), 128, dtype=torch.uint8)
    padded[:outputs] = values
    scales = torch.zeros(padded.size(0))
    scales[:outputs] = rounded.scales
    return Packed(_blocks(padded, 4), scales, outputs, inputs)


def pack_bf16(weight: torch.Tensor) -> Packed:
    """weight: [outputs, inputs], inputs a multiple of 2."""
    outputs, inputs = weight.shape
    padded = torch.zeros((_padded(outputs), inputs), dtype=torch.bfloat16)
    padded[:outputs] = weight
    return Packed(_blocks(padded, 2), torch.ones(padded.size(0)), outputs, inputs)


def _padded(outputs: int) -> int:
    return -(-outputs // OUTPUTS) * OUTPUTS


def _blocks(padded: torch.Tensor, group: int) -> torch.Tensor:
    outputs, inputs = padded.shape
    split = padded.view(outputs // OUTPUTS, OUTPUTS, inputs // group, group).transpose(1, 2)
    packed = huge(split.shape, padded.dtype)
    packed.copy_(split)
    return packed


def huge(shape: torch.Size | tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Zeroed memory on large pages where the system has them, which saves a stream through it its misses of
    the page table.
    """
    size = dtype.itemsize * torch.Size(shape).numel()
    area = mmap.mmap(-1, max(1, -(-size // HUGE)) * HUGE)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a kernel built without them
            area.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(area, dtype=torch.uint8, count=size).view(dtype).view(shape)
