"""One question and its answer, as the generators make them."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from engine.calculator import calculate

Message = dict[str, str]
TOOL_MARKER = re.compile(r"<\|(?:python|output)_(?:start|end)\|>")


class Scripted(str):
    """An assistant's turn that a generator of this package wrote: its tool markers are special tokens.

    Text from anywhere else is a plain `str`, in which the same letters are letters.
    """

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Exchange:
    """A user's turn and the assistant's; `short` is the answer in as few words as can be, if there is one.

    `items` are the things that the answer lists, for those who want them in another form.
    """

    question: str
    answer: str
    short: str | None = None
    items: tuple[str, ...] = ()


Maker = Callable[[Random], Exchange]


def messages(*exchanges: Exchange) -> list[Message]:
    """A conversation of these exchanges in order."""
    turns: list[Message] = []
    for exchange in exchanges:
        turns.append({"role": "user", "content": exchange.question})
        turns.append({"role": "assistant", "content": Scripted(exchange.answer)})
    return turns


def tool_call(expression: str) -> str:
    """A python block with the calculator's output behind it. Raises ValueError if it has no result."""
    result = calculate(expression)
    if result is None:
        raise ValueError(f"the calculator has no result for {expression!r}")
    return f"<|python_start|>{expression}<|python_end|><|output_start|>{result}<|output_end|>"


def without_markers(content: str) -> str:
    """`content` as text alone, the tool's expressions and outputs parted by blanks."""
    return TOOL_MARKER.sub(" ", content)
