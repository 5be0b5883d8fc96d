"""What the scheduler decided for one step: the whole interface towards whoever runs the step.

A plan stays valid whatever happens to its sequences after it was made: it carries the row, the positions and
the block table of each chunk, and tokens are only ever appended.
"""

from typing import NamedTuple

from engine.blocks import BlockId
from engine.estimator import NOTHING, StepLoad
from engine.sequence import Sequence


class Chunk(NamedTuple):
    """Positions `start`..`start + length - 1` of one sequence, computed in one step.

    samples: a token is sampled at its end. feeds_back: its single token is still in flight, so it comes from
        the row's device state; otherwise the ids are `sequence.tokens[start : start + length]`.
    block_table: where its keys and values go, and those before it are; it may be longer than this step needs.
    epoch: the sequence's; `Scheduler.token` recognises late results by it.
    """

    sequence: Sequence
    row: int
    epoch: int
    start: int
    length: int
    samples: bool
    feeds_back: bool
    block_table: list[BlockId]

    @property
    def scores(self) -> bool:
        """Whether logprobs are wanted of prompt tokens behind its positions."""
        unscored, length = self.sequence.unscored, self.sequence.prompt_length
        return unscored < length and self.start + 1 < length and self.start + self.length >= unscored

    @classmethod
    def of(cls, sequence: Sequence, length: int) -> "Chunk":
        """The next `length` positions that a running sequence wants."""
        row, start = sequence.row, sequence.num_computed
        if row is None:
            raise RuntimeError(f"stream {sequence.id} is not running")
        samples = start + length == sequence.reach
        return cls(
            sequence,
            row,
            sequence.epoch,
            start,
            length,
            samples,
            sequence.in_flight > 0,
            sequence.block_table,
        )


class Plan(NamedTuple):
    """One step: its chunks, single positions first.

    Before the step, the state of a row is built from `sequence.tokens` for those in `admitted` (they got a
    row in this plan) and in `extended` (forced tokens may have taken the place of a sampled one). Rows of
    `preempted` are free, or already someone else's. load: what the step has to do. predicted: the seconds
    that it was expected to take, 0 where nobody knows. scored: those of the chunks behind whose positions
    there are prompt tokens whose logprobs are wanted; none of them is a single position of `load`.
    """

    chunks: tuple[Chunk, ...]
    admitted: tuple[Sequence, ...]
    extended: tuple[Sequence, ...]
    preempted: tuple[Sequence, ...]
    num_tokens: int
    load: StepLoad = NOTHING
    predicted: float = 0.0
    scored: tuple[Chunk, ...] = ()
