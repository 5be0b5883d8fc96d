"""Token ids to text as they arrive, and stop strings in that text.

Both hold back as little as they can: the decoder an unfinished UTF-8 character, the matcher a tail that may
still grow into a stop string. Both cost O(1) per token or character, however long the answer gets.
"""

import codecs
from collections.abc import Collection, Iterable

from engine.text.tokenizer import Tokenizer


class IncrementalDecoder:
    """Decodes one choice's tokens.

    Joined, what `push` and `flush` return is `decode` of all tokens: a U+FFFD that the model really wrote
    passes, and broken UTF-8 becomes U+FFFD as soon as it is certain. With `skip_special`, special tokens have
    no text; without, they read as their spelling. `hidden` ids never have text (the terminal ids, for
    instance).
    """

    __slots__ = ("_codec", "_decode", "_skipped", "_token_bytes")

    def __init__(
        self, tokenizer: Tokenizer, skip_special: bool = True, hidden: Collection[int] = frozenset()
    ) -> None:
        self._token_bytes = tokenizer.token_bytes
        skipped = frozenset(hidden)
        self._skipped = skipped | tokenizer.special_ids if skip_special else skipped
        self._codec = codecs.getincrementaldecoder("utf-8")("replace")
        self._decode = self._codec.decode

    @property
    def between_characters(self) -> bool:
        """Whether nothing waits: the next token's text does not depend on the ones before it."""
        return not self._codec.getstate()[0]

    def push(self, ids: Iterable[int]) -> str:
        """The text that `ids` complete; an unfinished character waits for the next call."""
        skipped = self._skipped
        return self._decode(b"".join([self._token_bytes(id) for id in ids if id not in skipped]))

    def flush(self) -> str:
        """What is left at the end: U+FFFD if a character was never finished, else nothing."""
        return self._decode(b"", True)
