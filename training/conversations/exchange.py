"""One question and its answer, as the generators make them."""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

Message = dict[str, str]


@dataclass(frozen=True, slots=True)
class Exchange:
    """A user's turn and the assistant's; `short` is the answer in as few words as can be, if there is one."""

    question: str
    answer: str
    short: str | None = None


Maker = Callable[[Random], Exchange]


def messages(*exchanges: Exchange) -> list[Message]:
    """A conversation of these exchanges in order."""
    turns: list[Message] = []
    for exchange in exchanges:
        turns.append({"role": "user", "content": exchange.question})
        turns.append({"role": "assistant", "content": exchange.answer})
    return turns
