"""From a plan to what its step reads on the device; queued, never waited for."""

from dataclasses import dataclass

import numpy as np
import torch

from engine.gpu.graphs import Buckets
from engine.gpu.inputs import HostInputs, PinnedRing, StepShape, buffer_size, host_inputs
from engine.plan import Chunk, Plan


@dataclass(frozen=True, slots=True)
class Staged:
    """entries: the chunks that sample, in the order of the step's sampling entries. decode: single positions
    only.
    """

    shape: StepShape
    decode: bool
    entries: list[Chunk]


class StepStaging:
    """Two packed input buffers: `decode` survives the steps in between, so rows that go on need no upload."""

    def __init__(self, buckets: Buckets, device: torch.device) -> None:
        self.buckets = buckets
        largest = max(buffer_size(shape) for shape in buckets.shapes())
        self.decode = torch.full((largest,), -1, dtype=torch.int32, device=device)
        self.mixed = torch.full((largest,), -1, dtype=torch.int32, device=device)
        self._ring = PinnedRing(largest, pinned=device.type == "cuda")
        self._on_device: tuple[StepShape, list[int]] | None = None  # what the decode buffer describes

    def clear(self) -> None:
        """Describes empty steps, as graphs are captured with."""
        self.decode.fill_(-1)
        self.mixed.fill_(-1)
        self._on_device = None

    def stage(self, plan: Plan) -> Staged:
        """Queues the upload of what the step needs, on the current stream."""
        chunks = plan.chunks
        entries = [chunk for chunk in chunks if chunk.samples]
        if plan.num_tokens == len(chunks):
            shape = self.buckets.decode_shape(len(chunks), lambda: 1 + max(chunk.start for chunk in chunks))
            self._stage_decode(shape, chunks, len(entries) == len(chunks))
            return Staged(shape, True, entries)
        shape = self.buckets.mixed_shape(plan.num_tokens)
        self._stage_mixed(shape, chunks)
        return Staged(shape, False, entries)

    def _stage_decode(self, shape: StepShape, chunks: tuple[Chunk, ...], all_sample: bool) -> None:
        rows = [chunk.row for chunk in chunks]
        fed = all_sample and all(chunk.feeds_back for chunk in chunks)
        if fed and self._on_device == (shape, rows):
            return
        tensor, host = self._take(shape)
        _fill_singles(host, chunks)
        host.cu_queries[:] = 0
        sampling = [index for index, chunk in enumerate(chunks) if chunk.samples]
        host.entry_tokens[: len(sampling)] = sampling
        host.entry_rows[: len(sampling)] = [rows[index] for index in sampling]
        self.decode[: tensor.numel()].copy_(tensor, non_blocking=True)
        self._on_device = (shape, rows) if fed else None

    def _stage_mixed(self, shape: StepShape, chunks: tuple[Chunk, ...]) -> None:
        singles = [chunk for chunk in chunks if chunk.length == 1]
        longer = [chunk for chunk in chunks if chunk.length > 1]
        tensor, host = self._take(shape)
        _fill_singles(host, singles)
        last = {chunk.row: index for index, chunk in enumerate(singles)}  # by row: its last token here
        begin = len(singles)
        host.cu_queries[0] = begin
        for index, chunk in enumerate(longer):
            stop = begin + chunk.length
            _fill_tokens(host, chunk, begin, stop)
            host.chunk_rows[index] = chunk.row
            host.contexts[index] = chunk.start + chunk.length
            host.cu_queries[index + 1] = stop
            last[chunk.row] = stop - 1
            begin = stop
        host.cu_queries[len(longer) + 1 :] = begin
        sampling = [chunk.row for chunk in chunks if chunk.samples]
        host.entry_rows[: len(sampling)] = sampling
        host.entry_tokens[: len(sampling)] = [last[row] for row in sampling]
        self.mixed[: tensor.numel()].copy_(tensor, non_blocking=True)

    def _take(self, shape: StepShape) -> tuple[torch.Tensor, HostInputs]:
        tensor, array = self._ring.take()
        size = buffer_size(shape)
        array[:size] = -1
        return tensor[:size], host_inputs(array, shape)


def _fill_singles(host: HostInputs, chunks: "tuple[Chunk, ...] | list[Chunk]") -> None:
    """Rows that feed back take token, position and predecessor from the device's own state."""
    count = len(chunks)
    if not count:
        return
    host.token_rows[:count] = [chunk.row for chunk in chunks]
    host.decode_rows[:count] = host.token_rows[:count]
    for index, chunk in enumerate(chunks):
        if not chunk.feeds_back:
            tokens, start = chunk.sequence.tokens, chunk.start
            host.token_ids[index] = tokens[start]
            host.token_positions[index] = start
            host.token_previous[index] = tokens[start - 1] if start else -1


def _fill_tokens(host: HostInputs, chunk: Chunk, begin: int, stop: int) -> None:
    start, end = chunk.start, chunk.start + chunk.length
    # One token more on the left, if there is one: each token's predecessor is needed, too.
    ids = np.array(chunk.sequence.tokens[max(start - 1, 0) : end], dtype=np.int32)
    host.token_ids[begin:stop] = ids[-chunk.length :]
    host.token_previous[stop - len(ids) + 1 : stop] = ids[:-1]
    host.token_rows[begin:stop] = chunk.row
    host.token_positions[begin:stop] = np.arange(start, end, dtype=np.int32)
