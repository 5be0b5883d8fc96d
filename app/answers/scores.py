"""Logprobs of a prompt's tokens: collected as the engine computes them, in OpenAI's and vLLM's shapes."""

from collections.abc import Iterable

from app.answers.logprobs import LOWEST, Names
from app.requests.text import TextService
from engine.messages import PromptLogprobs


class PromptScores:
    """Of one prompt, for all choices that continue it. Its first token has no logprob."""

    __slots__ = ("alternatives", "logprobs", "prompt", "ranks")

    def __init__(self, prompt: list[int]) -> None:
        self.prompt = prompt
        self.logprobs: list[float] = []
        self.ranks: list[int] = []
        self.alternatives: list[list[tuple[int, float]]] = []  # of each token, best first

    def clear(self) -> None:
        """Another engine begins anew."""
        self.logprobs, self.ranks, self.alternatives = [], [], []

    @property
    def complete(self) -> bool:
        return len(self.logprobs) + 1 == len(self.prompt)

    def take(self, records: Iterable[PromptLogprobs]) -> None:
        for record in records:
            self.logprobs += [max(logprob, LOWEST) for logprob in record.logprobs]
            self.ranks += record.ranks
            for ids, values in zip(record.top_ids, record.top_logprobs, strict=True):
                self.alternatives.append(
                    [(id, max(value, LOWEST)) for id, value in zip(ids, values, strict=True)]
                )

    def arrays(self, text: TextService, names: Names, echoed: str, count: int) -> dict[str, list[object]]:
        """OpenAI's parallel lists of /v1/completions with `echo`. echoed: the prompt as it is shown."""
        pieces = [names.token_name(id) for id in self.prompt]
        tops: list[object] = [None]
        for spelled, logprob, alternatives in zip(pieces[1:], self.logprobs, self.alternatives, strict=True):
            best = {names.token_name(id): value for id, value in alternatives[:count]}
            tops.append({**best, spelled: logprob})
        return {
            "tokens": [*pieces],
            "token_logprobs": [None, *self.logprobs],
            "top_logprobs": tops,
            "text_offset": [*offsets(text, self.prompt, echoed)],
        }

    def entries(self, text: Names, count: int) -> list[dict[str, object] | None]:
        """vLLM's `prompt_logprobs`: by token id, the prompt's own token first, then the best ones."""
        result: list[dict[str, object] | None] = [None]
        for id, logprob, rank, alternatives in zip(
            self.prompt[1:], self.logprobs, self.ranks, self.alternatives, strict=True
        ):
            entry: dict[str, object] = {str(id): _entry(text, id, logprob, rank)}
            for place, (other, value) in enumerate(alternatives[:count], 1):
                entry.setdefault(str(other), _entry(text, other, value, place))
            result.append(entry)
        return result


def offsets(text: TextService, prompt: list[int], echoed: str) -> list[int]:
    """The character of `echoed` at which each token's text begins. A token without text of its own has that
    of the text that comes next: a part of a character, or the BOS that was put before a text.
    """
    decoder = text.decoder(skip_special=text.decode(prompt) != echoed)
    result: list[int] = []
    done = 0
    for id in prompt:
        result.append(done)
        done += len(decoder.push((id,)))
    return result


def _entry(text: Names, id: int, logprob: float, rank: int) -> dict[str, object]:
    return {"logprob": logprob, "rank": rank, "decoded_token": text.token_name(id)}
