"""Logprobs of prompt tokens: which positions of a step are scored, and their results on the host.

The token at prompt index i is scored by the logits of position i - 1, so a chunk scores the tokens behind
each of its positions, as far as they belong to the prompt. Logits of many positions are large; they are made
and used a few at a time.
"""

from typing import NamedTuple

import torch

from engine.messages import PromptLogprobs
from engine.plan import Chunk
from kernels.scoring import Scored, score

LOGITS_AT_ONCE = 1 << 22  # float32 numbers, 16 MiB


class ScoredSpan(NamedTuple):
    """The prompt tokens that one chunk scores.

    token: which of the step's tokens gives the logits of the first; those of the others follow it. first: the
    first's index in the prompt. targets: their ids. alternatives: how many to report.
    """

    stream: int
    token: int
    first: int
    targets: list[int]
    alternatives: int


def scored_span(chunk: Chunk, token: int) -> ScoredSpan:
    """Of a chunk in `Plan.scored` whose first position is the step's token `token`."""
    sequence = chunk.sequence
    first = max(chunk.start + 1, sequence.unscored)
    end = min(chunk.start + chunk.length + 1, sequence.prompt_length)
    count = sequence.request.params.prompt_logprobs or 0
    return ScoredSpan(sequence.id, token + first - 1 - chunk.start, first, sequence.tokens[first:end], count)


def positions_at_once(vocab_size: int) -> int:
    return max(1, LOGITS_AT_ONCE // vocab_size)


class ScoreSheet:
    """Collects one span's results, from logits of consecutive tokens of the step."""

    __slots__ = ("_done", "_result", "span")

    def __init__(self, span: ScoredSpan) -> None:
        self.span = span
        self._done = 0
        self._result = PromptLogprobs(span.stream, span.first, [], [], [], [])

    def take(self, first: int, logits: torch.Tensor) -> None:
        """Uses what it needs of the logits [tokens, vocab] of the step's tokens from `first` on. Calls come
        in the order of the tokens.
        """
        begin = self.span.token + self._done - first
        end = min(self.span.token + len(self.span.targets) - first, len(logits))
        if not 0 <= begin < end:
            return
        ids = self.span.targets[self._done : self._done + end - begin]
        targets = torch.tensor(ids, dtype=torch.int64, device=logits.device)
        self.add(score(logits[begin:end], targets, self.span.alternatives))

    def add(self, scored: Scored) -> None:
        """Appends the next results."""
        result = self._result
        self._done += len(scored.logprobs)
        result.logprobs.extend(scored.logprobs.tolist())
        result.ranks.extend(scored.ranks.tolist())
        result.top_ids.extend(scored.top_ids.tolist())
        result.top_logprobs.extend(scored.top_logprobs.tolist())

    @property
    def result(self) -> PromptLogprobs:
        """Raises RuntimeError while logits are missing."""
        if self._done != len(self.span.targets):
            raise RuntimeError(f"{self._done} of {len(self.span.targets)} prompt tokens have been scored")
        return self._result
