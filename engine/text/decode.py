"""Token ids to text as they arrive, and stop strings in that text.

Both hold back as little as they can: the decoder an unfinished UTF-8 character, the matcher a tail that may
still grow into a stop string. Both cost O(1) per token or character, however long the answer gets.
"""

import codecs
from collections.abc import Collection, Sequence

from engine.text.tokenizer import Tokenizer


class IncrementalDecoder:
    """Decodes one choice's tokens.

    Joined, what `push` and `flush` return is `decode` of all tokens: a U+FFFD that the model really wrote
    passes, and broken UTF-8 becomes U+FFFD as soon as it is certain. With `skip_special`, special tokens have
    no text, nor does what stands in a tool block: from a token of `tokenizer.block_starts` up to the next
    special token, whichever that is, so that a block that the model forgets to close costs as little of the
    answer as can be. Without, special tokens read as their spelling. `hidden` ids never have text (the
    terminal ids, for instance), `shown` ones always have theirs.

    `in_block` says whether the last token opened a block, or stands in one.
    """

    __slots__ = ("_codec", "_decode", "_opening", "_skipped", "_token_bytes", "in_block")

    def __init__(
        self,
        tokenizer: Tokenizer,
        skip_special: bool = True,
        hidden: Collection[int] = frozenset(),
        shown: Collection[int] = frozenset(),
    ) -> None:
        self._token_bytes = tokenizer.token_bytes
        skipped = frozenset(hidden)
        self._skipped = (skipped | tokenizer.special_ids if skip_special else skipped).difference(shown)
        self._opening: frozenset[int] = tokenizer.block_starts if skip_special else frozenset()
        self._codec = codecs.getincrementaldecoder("utf-8")("replace")
        self._decode = self._codec.decode
        self.in_block = False

    @property
    def stateless(self) -> bool:
        """Whether the next token's text does not depend on the ones before it: no character waits for its
        end, no block is open.
        """
        return not (self.in_block or self._codec.getstate()[0])

    def push(self, ids: Sequence[int]) -> str:
        """The text that `ids` complete; an unfinished character waits for the next call."""
        if self.in_block or not self._skipped.isdisjoint(ids):
            ids = self._visible(ids)
        return self._decode(b"".join(map(self._token_bytes, ids)))

    def flush(self) -> str:
        """What is left at the end: U+FFFD if a character was never finished, else nothing."""
        self.in_block = False
        return self._decode(b"", True)

    def _visible(self, ids: Sequence[int]) -> list[int]:
        visible = []
        for id in ids:
            if id in self._skipped:
                self.in_block = id in self._opening
            elif not self.in_block:
                visible.append(id)
        return visible
