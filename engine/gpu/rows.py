"""What the device knows about each row, and the small uploads that keep it true.

Per row: its last token, the one before, its length, its block table, its sampling parameters and penalty
counts. The sampler updates the first three itself; the host only tells what the device cannot know: a row's
admission, and new blocks.
"""

import numpy as np
import torch

from engine.gpu.inputs import Ints, PinnedRing
from engine.grammar import Mask
from engine.plan import Chunk, Plan
from engine.sampler import has_penalty, stop_ids
from engine.sequence import Sequence
from kernels.triton.sampling import SamplingRows
from kernels.triton.step import apply_updates

ALWAYS = 2**62  # a position that no row reaches

# Order of the packed parameters of some rows: their seeds, two words each, then a line for each of these.
_FLOATS = ("temperature", "top_p", "min_p", "repetition", "presence", "frequency")
_INTS = ("top_k", "choice", "logprobs", "min_position", "stop_count", "bias_count", "penalised", "masked")
_LINES = 1 + len(_FLOATS) + len(_INTS)  # the row's number first
_PACKED = 2 + _LINES


class DeviceRows:
    """last_token, previous_token, seq_len: [rows] int32. block_tables: [rows, max_blocks] int32.

    seq_len counts the positions whose keys and values are written by launched steps; the last token's is
    next.
    """

    def __init__(self, rows: int, max_blocks: int, vocab_size: int, device: torch.device) -> None:
        self.device = device
        self.last_token = torch.zeros(rows, dtype=torch.int32, device=device)
        self.previous_token = torch.zeros(rows, dtype=torch.int32, device=device)
        self.seq_len = torch.zeros(rows, dtype=torch.int32, device=device)
        self.block_tables = torch.zeros(rows, max_blocks, dtype=torch.int32, device=device)
        self.sampling = SamplingRows.allocate(rows, vocab_size, device)
        self.sampling.ensure_penalties()
        self._on_device = [0] * rows  # leading entries of each row's block table
        # Rows that need more than temperature and filters, and the position from which they do not any more.
        self._full: dict[int, int] = {}
        self._formed: set[int] = set()  # rows whose last sequence has a grammar
        self._most_updates = rows * max_blocks
        pinned = device.type == "cuda"
        self._tables = PinnedRing(3 * self._most_updates, pinned)
        self._table_buffer = torch.zeros(3 * self._most_updates, dtype=torch.int32, device=device)
        self._parameters = PinnedRing(rows * _PACKED, pinned)
        self._parameter_buffer = torch.zeros(rows * _PACKED, dtype=torch.int32, device=device)

    def needs_full(self, plan: Plan) -> bool:
        """Whether a row of the step has penalties, biases, bans, a grammar or wants logprobs."""
        full = self._full
        return bool(full) and any(full.get(c.row, 0) > c.start + c.length for c in plan.chunks)

    def stage(self, plan: Plan, terminal_ids: tuple[int, ...]) -> None:
        """Queues everything that the step's rows need on the current stream."""
        fresh = [sequence for sequence in (*plan.admitted, *plan.extended) if sequence.row is not None]
        if fresh:
            for sequence in plan.admitted:
                if sequence.row is not None:
                    self._on_device[sequence.row] = 0
            self._stage_parameters(fresh, terminal_ids)
        self._stage_blocks(plan.chunks)
        if self._formed:
            formed = [chunk for chunk in plan.chunks if chunk.samples and chunk.row in self._formed]
            if formed:
                self._stage_masks(formed)

    def _stage_masks(self, chunks: list[Chunk]) -> None:
        """What the grammars of these rows allow next. The scheduler has waited for it."""
        masks: list[Mask] = []
        for chunk in chunks:
            assert chunk.sequence.grammar is not None
            masks.append(chunk.sequence.grammar.mask.result(timeout=0))
        rows = self._ids([chunk.row for chunk in chunks]).long()
        host = self._pinned(torch.from_numpy(np.stack(masks)))
        self.sampling.masks.index_copy_(0, rows, host.to(self.device, non_blocking=True))

    def _stage_blocks(self, chunks: tuple[Chunk, ...]) -> None:
        """New entries of the block tables, as (row, index, block) triples."""
        known = self._on_device
        triples: list[tuple[int, int, int]] = []
        for chunk in chunks:
            table, row = chunk.block_table, chunk.row
            have = known[row]
            if len(table) > have:
                triples.extend((row, index, table[index]) for index in range(have, len(table)))
                known[row] = len(table)
        if not triples:
            return
        tensor, array = self._tables.take()
        count = len(triples)
        array[: 3 * count] = np.array(triples, dtype=np.int32).reshape(-1)
        buffer = self._table_buffer[: 3 * count]
        buffer.copy_(tensor[: 3 * count], non_blocking=True)
        apply_updates(buffer.view(count, 3), None, self.block_tables)

    def _stage_parameters(self, sequences: list[Sequence], terminal_ids: tuple[int, ...]) -> None:
        sampling = self.sampling
        tensor, array = self._parameters.take()
        count = len(sequences)
        size = count * _PACKED
        array[: 2 * count].view(np.int64)[:] = [sequence.request.params.seed for sequence in sequences]
        for index, sequence in enumerate(sequences):
            self._pack(sequence, array[2 * count : size].reshape(_LINES, count)[:, index], terminal_ids)
        buffer = self._parameter_buffer[:size]
        buffer.copy_(tensor[:size], non_blocking=True)
        lines = buffer[2 * count :].view(_LINES, count)
        rows = lines[0].long()
        for name, line in zip(_FLOATS, lines[1:], strict=False):
            getattr(sampling, name).index_copy_(0, rows, line.view(torch.float32))
        for name, line in zip(_INTS, lines[1 + len(_FLOATS) :], strict=True):
            getattr(sampling, name).index_copy_(0, rows, line)
        sampling.seed.index_copy_(0, rows, buffer[: 2 * count].view(torch.int64))
        for sequence in sequences:
            self._stage_lists(sequence, terminal_ids)

    def _pack(self, sequence: Sequence, column: Ints, terminal_ids: tuple[int, ...]) -> None:
        """Writes one row's parameters. column: [_LINES] int32."""
        params, row = sequence.request.params, sequence.row
        assert row is not None
        bans = stop_ids(params, terminal_ids) if params.min_tokens else ()
        penalised = has_penalty(params)
        floats = np.array(
            (
                params.temperature,
                params.top_p,
                params.min_p,
                params.repetition_penalty,
                params.presence_penalty,
                params.frequency_penalty,
            ),
            dtype=np.float32,
        )
        column[0] = row
        column[1 : 1 + len(_FLOATS)] = floats.view(np.int32)
        column[1 + len(_FLOATS) :] = (
            params.top_k,
            sequence.choice,
            -1 if params.logprobs is None else params.logprobs,
            min(sequence.prompt_length + params.min_tokens, 2**31 - 1),
            len(bans),
            len(params.logit_bias),
            penalised,
            params.grammar is not None,
        )
        if params.grammar is not None:
            self._formed.add(row)
        else:
            self._formed.discard(row)
        if params.grammar is not None or penalised or params.logit_bias or params.logprobs is not None:
            self._full[row] = ALWAYS
        elif bans:
            self._full[row] = sequence.prompt_length + params.min_tokens
        else:
            self._full.pop(row, None)

    def _stage_lists(self, sequence: Sequence, terminal_ids: tuple[int, ...]) -> None:
        """The rare parts: banned ids, biases, penalty counts."""
        params, row, sampling = sequence.request.params, sequence.row, self.sampling
        assert row is not None
        if params.min_tokens and (bans := stop_ids(params, terminal_ids)):
            self._upload(sampling.stop_ids[row, : len(bans)], list(bans))
        if params.logit_bias:
            count = len(params.logit_bias)
            self._upload(sampling.bias_ids[row, :count], list(params.logit_bias))
            values = torch.tensor(list(params.logit_bias.values()), dtype=torch.float32)
            sampling.bias_values[row, :count].copy_(self._pinned(values), non_blocking=True)
        if has_penalty(params):
            length = sequence.prompt_length
            sampling.reset_counts(
                row, self._ids(sequence.tokens[:length]), self._ids(sequence.tokens[length:])
            )

    def _upload(self, target: torch.Tensor, values: list[int]) -> None:
        target.copy_(self._pinned(torch.tensor(values, dtype=torch.int32)), non_blocking=True)

    def _ids(self, values: list[int]) -> torch.Tensor:
        host = self._pinned(torch.tensor(values, dtype=torch.int32))
        return host.to(self.device, non_blocking=True)

    def _pinned(self, values: torch.Tensor) -> torch.Tensor:
        """Copies from pageable memory would wait for the device; these are rare, so pinning each is fine."""
        return values.pin_memory() if self.device.type == "cuda" and values.numel() else values
