"""What a step's kernels read: one packed int32 buffer on the device, filled from pinned memory when it
changed.

A decode step takes a row's last token and length from the device itself (-1 in the arrays below), so as long
as the same rows decode, nothing is uploaded at all.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

Ints = npt.NDArray[np.int32]

RING = 4  # at most two steps are in flight, so a slot is never written while a copy still reads it


class StepShape(NamedTuple):
    """Sizes that one captured graph is made for, all of them upper bounds of what a step really holds.

    tokens: positions computed. entries: sampled tokens. decodes: single positions, which come first. chunks:
    longer pieces of sequences; 0 for a pure decode step. short: a pure decode step, none of whose rows has
    more keys than attention's form for few of them is for (kernels.backends.base.short_keys).
    """

    tokens: int
    entries: int
    decodes: int
    chunks: int
    short: bool = False


@dataclass(frozen=True, slots=True)
class StepInputs:
    """Device views of one step's arrays, int32, padded with -1 (cu_queries with its last value).

    token_rows, token_ids, token_positions, token_previous: [tokens]; an id, position or predecessor of -1
    comes from the row's state. entry_rows, entry_tokens: [entries], who samples and after which token.
    decode_rows: [decodes]. chunk_rows, contexts: [chunks]; cu_queries: [chunks + 1], where each chunk's
    tokens begin.
    """

    token_rows: torch.Tensor
    token_ids: torch.Tensor
    token_positions: torch.Tensor
    token_previous: torch.Tensor
    entry_rows: torch.Tensor
    entry_tokens: torch.Tensor
    decode_rows: torch.Tensor
    chunk_rows: torch.Tensor
    contexts: torch.Tensor
    cu_queries: torch.Tensor


def sizes(shape: StepShape) -> tuple[int, ...]:
    """Lengths of the arrays of `StepInputs`, in order."""
    tokens, entries, decodes, chunks, _ = shape
    return (tokens, tokens, tokens, tokens, entries, entries, decodes, chunks, chunks, chunks + 1)


def buffer_size(shape: StepShape) -> int:
    """Numbers in the packed buffer; every array begins at a multiple of four, 16 bytes."""
    return sum(_aligned(size) for size in sizes(shape))


def device_inputs(buffer: torch.Tensor, shape: StepShape) -> StepInputs:
    return StepInputs(*(buffer[start:end] for start, end in _ranges(shape)))


@dataclass(frozen=True, slots=True)
class HostInputs:
    """The same arrays in one slot of pinned memory."""

    token_rows: Ints
    token_ids: Ints
    token_positions: Ints
    token_previous: Ints
    entry_rows: Ints
    entry_tokens: Ints
    decode_rows: Ints
    chunk_rows: Ints
    contexts: Ints
    cu_queries: Ints


def host_inputs(buffer: Ints, shape: StepShape) -> HostInputs:
    return HostInputs(*(buffer[start:end] for start, end in _ranges(shape)))


def _aligned(size: int) -> int:
    return -(-size // 4) * 4


def _ranges(shape: StepShape) -> list[tuple[int, int]]:
    ranges: list[tuple[int, int]] = []
    start = 0
    for size in sizes(shape):
        ranges.append((start, start + size))
        start += _aligned(size)
    return ranges


class PinnedRing:
    """Slots of pinned int32 memory, used in turn. Nothing is pinned or allocated per step."""

    __slots__ = ("_next", "arrays", "tensors")

    def __init__(self, size: int, pinned: bool = True) -> None:
        self.tensors = [torch.zeros(size, dtype=torch.int32, pin_memory=pinned) for _ in range(RING)]
        self.arrays: list[Ints] = [tensor.numpy() for tensor in self.tensors]
        self._next = 0

    def take(self) -> tuple[torch.Tensor, Ints]:
        index, self._next = self._next, (self._next + 1) % RING
        return self.tensors[index], self.arrays[index]
