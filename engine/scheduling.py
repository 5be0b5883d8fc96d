"""How a scheduler is configured, what it counts, and some of its rules: limits, victims, the budget."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import NamedTuple

from engine.blocks import BlockPool
from engine.messages import BatchingMode
from engine.sequence import Sequence

RESTORE_AFTER = 256  # launched steps
IMMUNE_AFTER = 2  # preemptions


@dataclass(frozen=True, slots=True)
class SchedulerConfig:
    """max_rows: most sequences that run at once. max_batched_tokens: most positions in one step.
    max_model_len: most tokens of a sequence. max_chunk: most positions of one sequence in one step.
    batch_timeout: seconds that an idle engine waits for company while fewer than max_rows sequences wait.
    prefill_stretch: how many times longer than its decoding rows alone a step may take because of prefill, as
    predicted, while about as many run as before; None: prefill is limited by tokens only.
    """

    max_rows: int
    max_batched_tokens: int
    max_model_len: int
    batching: BatchingMode = "continuous"
    max_chunk: int | None = None
    batch_timeout: float = 0.0
    prefill_stretch: float | None = None

    def __post_init__(self) -> None:
        if self.max_rows < 1 or (self.max_chunk is not None and self.max_chunk < 1):
            raise ValueError("max_rows and max_chunk must be at least 1")
        if self.max_batched_tokens < self.max_rows:
            # The decoding rows alone could fill every step, and a prefill would never progress.
            raise ValueError(f"max_batched_tokens {self.max_batched_tokens} < max_rows {self.max_rows}")
        if self.prefill_stretch is not None and self.prefill_stretch < 1:
            raise ValueError(f"prefill_stretch {self.prefill_stretch} is less than 1")


class SchedulerStats(NamedTuple):
    """Totals count from the start; prompt tokens count once, at their sequence's first admission."""

    running: int
    waiting: int
    deferred: int  # of those that wait: the gather window is open
    oldest_arrival: float | None  # of those that wait
    blocks_used: int
    blocks_cached: int  # free ones that the prefix cache may serve again
    blocks_free: int  # free ones without content
    preemptions: int
    late_tokens: int
    prompt_tokens: int
    prefix_queries: int  # of those, looked up in the prefix cache
    cached_tokens: int  # of those, found there


def sequence_limit(sequence: Sequence, max_model_len: int, pool: BlockPool) -> int:
    """Most tokens that it can have, prompt included. Raises ValueError where that is none beyond its prompt,
    or more than the largest pool holds.
    """
    prompt = sequence.prompt_length
    limit = min(prompt + sequence.request.params.max_tokens, max_model_len)
    if prompt < 1:
        raise ValueError("an empty prompt gives nothing to start from")
    if limit <= prompt:
        raise ValueError(f"{prompt} prompt tokens of at most {max_model_len}: at least one must be sampled")
    need = pool.blocks_for(limit - 1)  # the last token is never read back
    if need >= pool.max_blocks:
        raise ValueError(
            f"{prompt} prompt tokens and up to {limit - prompt} sampled ones need {need} KV blocks of "
            f"{pool.block_size}; the pool {'grows to' if pool.may_grow else 'has'} {pool.max_blocks - 1}"
        )
    return limit


def cheapest(needy: Sequence, running: Collection[Sequence], refs: list[int]) -> Sequence:
    """Whom to preempt for `needy`: itself, or one that frees at least one block. refs: holders by block."""
    candidates = [s for s in running if s is needy or any(refs[b] == 1 for b in reversed(s.block_table))]
    vulnerable = [s for s in candidates if s.preemptions < IMMUNE_AFTER]
    return max(vulnerable or candidates, key=lambda s: (s.request.priority, -s.num_computed, s.order))


class StepBudget:
    """Most positions in one step: `most`, or fewer for a while after a step found no memory."""

    __slots__ = ("_least", "_most", "_restore_in", "tokens")

    def __init__(self, most: int, least: int) -> None:
        self.tokens = self._most = most
        self._least = least
        self._restore_in = 0

    def shrink(self) -> None:
        """Halves it."""
        self.tokens = max(self.tokens // 2, min(self._least, self._most))
        self._restore_in = RESTORE_AFTER

    def launched(self) -> None:
        """A step went well: after some of them what was taken comes back, twice as much each time."""
        if self._restore_in:
            self._restore_in -= 1
            if not self._restore_in:
                self.tokens = min(2 * self.tokens, self._most)
                self._restore_in = RESTORE_AFTER * (self.tokens < self._most)
