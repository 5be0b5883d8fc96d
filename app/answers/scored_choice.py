"""Choices whose prompt is scored, and which of several choices are the best."""

from collections.abc import Sequence

from app.answers.choices import Choice
from app.answers.pieces import Piece
from app.answers.scores import PromptScores
from app.requests.sampling import Sampling
from app.requests.text import TextService
from engine.messages import Delta, TokenStream


class ScoredChoice(Choice):
    """A choice whose prompt is scored; the prompt's choices share `scores`, which choice 0's stream fills.

    silent: nothing is to be generated. The engine samples a token all the same, which nobody gets to see.
    """

    __slots__ = ("_silent",)

    def __init__(
        self,
        index: int,
        stream: TokenStream,
        prompt: list[int],
        sampling: Sampling,
        text: TextService,
        prompt_text: str,
        scores: PromptScores,
    ) -> None:
        super().__init__(index, stream, prompt, sampling, text, prompt_text=prompt_text)
        self.scores = scores
        self._silent = sampling.max_tokens == 0

    def restart(self) -> None:
        super().restart()
        if self.scores is not None:
            self.scores.clear()

    def feed(self, delta: Delta) -> list[Piece]:
        assert self.scores is not None
        self.scores.take(delta.prompt)
        if not self._silent:
            return super().feed(delta)
        finish = delta.finish
        if finish is None:
            return []
        self._hear(finish)
        return [Piece("", [], finish="length")] if self._ends(finish) else []


def best(answers: Sequence[tuple[Choice, list[Piece]]], keep: int) -> list[tuple[Choice, list[Piece]]]:
    """Of each prompt's choices the `keep` with the highest mean logprob per token, the best first, with new
    indices. All choices must have logprobs; of equals the earlier one goes first.
    """
    groups: dict[int, list[tuple[Choice, list[Piece]]]] = {}
    for answer in answers:
        groups.setdefault(id(answer[0].prompt), []).append(answer)
    kept: list[tuple[Choice, list[Piece]]] = []
    for group in groups.values():
        kept += sorted(group, key=lambda answer: -mean_logprob(answer[1]))[:keep]
    for index, (choice, _) in enumerate(kept):
        choice.index = index
    return kept


def mean_logprob(pieces: Sequence[Piece]) -> float:
    """Per token of a choice; 0 for one without tokens."""
    values = [item.logprob for piece in pieces for item in piece.logprobs if item is not None]
    return sum(values) / len(values) if values else 0.0
