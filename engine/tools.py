"""The tool machine: when the model closes a python block, its result is written into the answer.

One machine per sequence. It watches the tokens that the sequence emits; what it returns replaces the next
sampled tokens: output_start, the result, output_end.
"""

from collections.abc import Sequence
from typing import Protocol

from engine.calculator import calculate

MAX_EXPRESSION_TOKENS = 512


class ToolTokenizer(Protocol):
    """The part of nanochat's tokenizer that is needed here."""

    def encode_special(self, text: str, /) -> int: ...

    def encode(self, text: str, /) -> list[int]: ...

    def decode(self, ids: list[int], /) -> str: ...


class ToolMachine:
    """State of one sequence's python block. Inert if the tokenizer lacks one of the four tool tokens."""

    __slots__ = ("_block", "_end", "_output_end", "_output_start", "_start", "_tokenizer")

    def __init__(self, tokenizer: ToolTokenizer) -> None:
        self._tokenizer = tokenizer
        self._start = _special(tokenizer, "<|python_start|>")
        self._end = _special(tokenizer, "<|python_end|>")
        self._output_start = _special(tokenizer, "<|output_start|>")
        self._output_end = _special(tokenizer, "<|output_end|>")
        self._block: list[int] | None = None  # tokens of the open block

    @property
    def active(self) -> bool:
        """Whether the tokenizer has all the tokens that blocks are made of."""
        return None not in (self._start, self._end, self._output_start, self._output_end)

    def observe(self, token: int) -> list[int]:
        """Takes the next emitted token; returns the tokens that must follow it, mostly none.

        A block opened inside a block starts it afresh, an end without a block is ignored, and an empty block
        or one without a result forces nothing.
        """
        if token == self._start:
            self._block = []
        elif token == self._end:
            block, self._block = self._block, None
            if block:
                return self._result(block)
        elif self._block is not None and len(self._block) <= MAX_EXPRESSION_TOKENS:
            self._block.append(token)
        return []

    def _result(self, block: Sequence[int]) -> list[int]:
        if self._output_start is None or self._output_end is None or len(block) > MAX_EXPRESSION_TOKENS:
            return []
        result = calculate(self._tokenizer.decode(list(block)))
        if result is None:
            return []
        return [self._output_start, *self._tokenizer.encode(result), self._output_end]


def _special(tokenizer: ToolTokenizer, spelling: str) -> int | None:
    try:
        id: object = tokenizer.encode_special(spelling)
    except Exception:  # a caller's own tokenizer reports an unknown token with whatever error it likes
        return None
    return id if isinstance(id, int) else None
