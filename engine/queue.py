"""Sequences that wait for a row: their order, and when an idle engine starts with them.

The order is by (priority, arrival). A preempted sequence keeps its arrival, so it returns to the head of its
priority. In static and single mode the queue also knows the current batch: only its members may be admitted
until all of them have finished.
"""

from bisect import bisect_left, insort
from collections.abc import Iterator
from operator import attrgetter

from engine.messages import BatchingMode
from engine.sequence import Sequence

_rank = attrgetter("rank")

AGEING = 4096  # tokens: a prefill that has been around for a second goes before one that is so much shorter


def urgency(sequence: Sequence, now: float) -> tuple[int, float, int]:
    """Order of the prefills under way: within a priority the shortest first, unless another came long ago."""
    left = sequence.reach - sequence.num_computed
    return sequence.request.priority, left + AGEING * (sequence.arrival - now), sequence.order


class WaitingQueue:
    """wake_at: when the gather window closes that the last `opens` waited for, if it did."""

    __slots__ = ("_batch", "_batch_rows", "_batching", "_sequences", "_timeout", "wake_at")

    def __init__(self, batching: BatchingMode, max_rows: int, batch_timeout: float) -> None:
        self._batching = batching
        self._batch_rows = 1 if batching == "single" else max_rows
        self._timeout = batch_timeout
        self._sequences: list[Sequence] = []  # by rank
        self._batch: set[int] = set()  # stream ids; always empty in continuous mode
        self.wake_at: float | None = None

    def __len__(self) -> int:
        return len(self._sequences)

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self._sequences)

    @property
    def oldest(self) -> float | None:
        """Arrival of the first within the most urgent priority; None where nobody waits."""
        return self._sequences[0].arrival if self._sequences else None

    def push(self, sequence: Sequence) -> None:
        insort(self._sequences, sequence, key=_rank)

    def remove(self, sequence: Sequence) -> None:
        index = bisect_left(self._sequences, sequence.rank, key=_rank)
        if self._sequences[index] is not sequence:
            raise RuntimeError(f"stream {sequence.id} is not in the queue")
        del self._sequences[index]

    def opens(self, now: float, running: int) -> bool:
        """Whether anyone may be admitted beside `running` sequences; forms the next batch if it is time.

        Where nobody runs, the first waits for company until a batch is full or the timeout has passed.
        """
        self.wake_at = None
        if not self._sequences:
            return False
        if self._batch:
            return running < len(self._batch)
        if running:
            return True
        if len(self._sequences) < self._batch_rows:
            closes = min(s.arrival for s in self._sequences) + self._timeout
            if now < closes:
                self.wake_at = closes
                return False
        if self._batching != "continuous":
            self._batch = {s.id for s in self._sequences[: self._batch_rows]}
        return True

    def belongs(self, sequence: Sequence) -> bool:
        """Whether the sequence is a member of the current batch, if there is one."""
        return not self._batch or sequence.id in self._batch

    def leave(self, sequence: Sequence) -> None:
        """The sequence has finished: the batch does not wait for it any more."""
        self._batch.discard(sequence.id)
