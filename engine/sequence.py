"""A sequence: one continuation of a request, and how far it has been computed.

One rule covers prefill, decode, resume after a preemption and prefix hits: a sequence wants
`len(tokens) + in_flight - num_computed` positions. Tokens are only ever appended; a preemption drops keys and
values, never a token. This module knows nothing about text or devices.
"""

from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

from engine.blocks import BlockId
from engine.messages import Request

if TYPE_CHECKING:
    from engine.grammar import GrammarState


class State(Enum):
    WAITING = "waiting"  # in the queue, without row or blocks
    RUNNING = "running"  # holds a row
    FINISHED = "finished"


@dataclass(slots=True, eq=False)
class Sequence:
    """Choice `choice` of `request`. The scheduler writes all the fields below `leader`; others only read.
    (But for `first_token`, `steps_before` and `rows_before`, which the core measures.)

    leader: choice 0 of the same request, for its other choices: they share its prompt blocks.
    tokens: the prompt and the output ids that the host has seen.
    num_computed: positions whose keys and values are written, or will be by a launched step.
    in_flight: tokens that launched steps sample and the host has not seen.
    block_table: position p lives in block `block_table[p // block_size]`. Append-only while the row is held;
        a release replaces the list, so that a plan in flight keeps the one it was made with.
    epoch: moves when tokens in flight become void (extension, end); results of an older epoch are late.
    limit: most tokens that the sequence may reach, prompt included.
    admitted, first_token: when it first got a row, and when its first token was seen (monotonic; 0: not yet).
    steps_before, rows_before: steps of the engine, and rows of all of them, until it first got a row.
    cached_tokens: prompt tokens that its first admission found in the prefix cache.
    extended: forced tokens were appended since the row's state was last built.
    digests: hash chain over the full blocks of tokens, as far as it was needed.
    grammar: what its answer has to look like, if that was asked for. Which tokens may come next is known only
        when the last one was seen, so such a sequence is planned without tokens in flight.
    published: leading blocks of the table that came from the prefix cache or were offered to it.
    unscored: index of the first prompt token whose logprobs are wanted and not known to the host yet; the
        prompt's length when there is none.
    """

    request: Request
    choice: int = 0
    leader: "Sequence | None" = None

    id: int = field(init=False)  # the stream id
    prompt_length: int = field(init=False)
    tokens: list[int] = field(init=False)
    num_computed: int = field(init=False, default=0)
    in_flight: int = field(init=False, default=0)
    block_table: list[BlockId] = field(init=False, default_factory=list)
    row: int | None = field(init=False, default=None)
    epoch: int = field(init=False, default=0)
    state: State = field(init=False, default=State.WAITING)
    limit: int = field(init=False, default=0)
    arrival: float = field(init=False, default=0.0)
    order: int = field(init=False, default=-1)
    admitted: float = field(init=False, default=0.0)
    first_token: float = field(init=False, default=0.0)
    steps_before: int = field(init=False, default=0)
    rows_before: int = field(init=False, default=0)
    cached_tokens: int = field(init=False, default=0)
    preemptions: int = field(init=False, default=0)
    extended: bool = field(init=False, default=False)
    digests: list[bytes] = field(init=False, default_factory=list)
    published: int = field(init=False, default=0)
    unscored: int = field(init=False)
    grammar: "GrammarState | None" = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.id = self.request.id + self.choice
        self.prompt_length = len(self.request.prompt)
        self.tokens = list(self.request.prompt)
        self.unscored = min(1, self.prompt_length) if self.scores_prompt else self.prompt_length

    @classmethod
    def of(cls, request: Request) -> "list[Sequence]":
        """All choices of a request, the leader first; they are added to the scheduler in this order."""
        leader = cls(request)
        return [leader, *(cls(request, choice, leader) for choice in range(1, request.n))]

    @property
    def rank(self) -> tuple[int, int]:
        """Who goes first: smaller priority numbers, then earlier arrivals."""
        return self.request.priority, self.order

    @property
    def scores_prompt(self) -> bool:
        """Whether the prompt's logprobs are reported with this choice: once, with choice 0."""
        return self.choice == 0 and self.request.params.prompt_logprobs is not None

    @property
    def reach(self) -> int:
        """Tokens known and in flight; positions from `num_computed` to here are wanted, below `limit`."""
        return len(self.tokens) + self.in_flight

    @property
    def waits_for_leader(self) -> bool:
        """Whether choice 0 is about to compute the prompt blocks that this choice could share, or logprobs of
        the prompt, which come before any token.
        """
        leader = self.leader
        if leader is None or leader.state is State.FINISHED:
            return False
        return leader.num_computed < leader.prompt_length
