"""A tokenizer and a chat template for models that have none: those with random weights, made for benchmarks.

Every id reads as a short word of its own, " t17" for the id 17, so that each token of a stream has text. Text
that consists of such words becomes their ids again; any other text becomes one id per byte.
"""

import re
from collections.abc import Sequence

from engine.text.template import ChatMessage, Tool, checked, refuse_tools
from engine.text.tokenizer import Tokenizer, TokenizerError

BOS = "<|bos|>"

_WORD = re.compile(r" t(0|[1-9]\d{0,6})(?!\d)")


class StandInTokenizer(Tokenizer):
    """Over a vocabulary of any size; its last id is BOS, the only special token."""

    def __init__(self, vocab_size: int) -> None:
        """Raises TokenizerError for a vocabulary of less than two."""
        if vocab_size < 2:
            raise TokenizerError(f"a vocabulary of {vocab_size} has no room for a word and {BOS}")
        self._words = vocab_size - 1
        table = [b" t%d" % id for id in range(self._words)]
        super().__init__([*table, BOS.encode()], {BOS: self._words}, BOS, None)

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = []
        start = 0
        for word in _WORD.finditer(text):
            if int(word[1]) < self._words:
                ids += self._bytes(text[start : word.start()])
                ids.append(int(word[1]))
                start = word.end()
        return ids + self._bytes(text[start:])

    def _bytes(self, text: str) -> list[int]:
        return [byte % self._words for byte in text.encode()]


class PlainTemplate:
    """BOS, a line "role: text" for each turn, and "assistant:" for the answer."""

    tool_source: str | None = None

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.terminal_ids = [tokenizer.get_bos_token_id()]

    def render(
        self, messages: Sequence[ChatMessage], *, continue_final: bool = False, tools: Sequence[Tool] = ()
    ) -> list[int]:
        """Raises TemplateError for an unknown role, tools, or a last turn that cannot be continued."""
        refuse_tools(tools)
        text = "\n".join(f"{turn.role}: {turn.content}" for turn in checked(messages, continue_final))
        if not continue_final:
            text += "\nassistant:"
        return [self._tokenizer.get_bos_token_id(), *self._tokenizer.encode(text)]
