"""What a step runner offers the loop, on whatever device."""

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Protocol

from engine.messages import PromptLogprobs
from engine.plan import Plan

NOT_FINITE = "the model's output was not finite"


@dataclass(frozen=True, slots=True)
class SampledToken:
    """What one sampling chunk produced; with an error, no token."""

    token: int
    error: str | None = None
    logprob: float | None = None
    top_ids: list[int] = field(default_factory=list)
    top_logprobs: list[float] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class StepResult:
    """Tokens in the order of the plan's sampling chunks; seconds that the step took on its device or thread,
    and of those the seconds inside the model's forward. scores: one for each of the plan's scored chunks.
    """

    tokens: list[SampledToken]
    seconds: float
    forward_seconds: float
    scores: Sequence[PromptLogprobs] = ()


@dataclass(frozen=True, slots=True)
class StepHandle:
    """A launched step."""

    plan: Plan
    future: "Future[StepResult]"


class Runner(Protocol):
    """Runs steps strictly in launch order; no method blocks the loop.

    graph_recaptures: times that captured graphs were given up because the KV pool had moved. path_failures:
    times that the kernels of a decode path failed and were given up. early_masks: whether a sequence's
    grammar has to be ready before its step is launched, and not just before it samples.
    """

    vocab_size: int
    graph_recaptures: int
    path_failures: int
    early_masks: bool

    def launch(self, plan: Plan) -> StepHandle:
        """Copies what the step needs out of the plan and queues it. May raise whatever the device raises."""
        ...

    async def collect(self, handle: StepHandle) -> StepResult:
        """The result of a launched step. Raises whatever its execution raised, PathFailed among that."""
        ...

    async def grow(self, blocks: int) -> None:
        """Gives the KV pool this many blocks, the write-off block included; what the present ones hold stays
        there, under the same numbers. No step may be in flight. Raises whatever the device raises; the pool
        then still has its old blocks, and everything that they held.
        """
        ...

    def close(self) -> None:
        """Waits for steps under way and lets go of the device."""
        ...
