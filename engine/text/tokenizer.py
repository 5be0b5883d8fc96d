"""What a tokenizer is, and nanochat's; Hugging Face's are in engine.text.hugging_face.

`encode` is always ordinary: a special token spelled out inside text stays text. Special ids come only from
`encode_special` and from the chat template. `decode` never fails: ids beyond the vocabulary (embedding tables
are padded) have no bytes, and bytes that are no UTF-8 become U+FFFD.
"""

import re
from collections.abc import Iterable, Mapping

import tiktoken

NANOCHAT_PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}"
    r"| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)
NANOCHAT_SPECIALS = (
    "<|bos|>",
    "<|user_start|>",
    "<|user_end|>",
    "<|assistant_start|>",
    "<|assistant_end|>",
    "<|python_start|>",
    "<|python_end|>",
    "<|output_start|>",
    "<|output_end|>",
)
# Around what the model asks the calculator, and around what it answers.
BLOCK_MARKS = (("<|python_start|>", "<|python_end|>"), ("<|output_start|>", "<|output_end|>"))
MAX_VOCABULARY = 2**22

# tiktoken's regex engine backtracks over a whole run of white space and gives up (by panicking) at a million
# characters, so longer runs are encoded in pieces of this size.
_MAX_SPACE_RUN = 100_000
_SPACE_RUN = re.compile(rf"\s{{{_MAX_SPACE_RUN}}}")


class TokenizerError(ValueError):
    """A tokenizer's files are missing, malformed or not of a kind that is supported."""


class Tokenizer:
    """What every tokenizer offers. Subclasses add `_encode`.

    `bos` and `eos` are spellings of special tokens; `eos` may be None. `special_ids`: those that have no text
    for a reader. `adds_bos`: whether plain text is to begin with BOS.
    """

    adds_bos: bool = True

    def __init__(self, table: list[bytes], specials: Mapping[str, int], bos: str, eos: str | None) -> None:
        if bos not in specials:
            raise TokenizerError(f"the tokenizer has no special token {bos!r}")
        self._table = table  # id -> raw bytes
        self._specials = dict(specials)
        self.special_ids = frozenset(self._specials.values())
        self.bos = bos
        self.eos = eos if eos in specials else None

    @property
    def block_starts(self) -> frozenset[int]:
        """The special ids that open a tool block: what follows, up to the next special id, is no text for a
        reader. Empty unless the tokenizer has all of nanochat's marks.
        """
        if not all(self._specials.get(mark) in self.special_ids for pair in BLOCK_MARKS for mark in pair):
            return frozenset()
        return frozenset(self._specials[start] for start, _ in BLOCK_MARKS)

    @property
    def special_tokens(self) -> dict[str, int]:
        """Spelling to id; a copy."""
        return dict(self._specials)

    def encode(self, text: str) -> list[int]:
        """Ids of `text`. Never yields special ids; half a surrogate pair becomes U+FFFD."""
        return self._encode(_whole_characters(text))

    def encode_inside(self, text: str) -> list[int]:
        """As `encode`, for text that has tokens before it: some tokenizers begin their input with a space."""
        return self._encode_inside(_whole_characters(text))

    def _encode(self, text: str) -> list[int]:
        raise NotImplementedError

    def _encode_inside(self, text: str) -> list[int]:
        return self._encode(text)

    def encode_special(self, token: str) -> int:
        """The id of a special token by its spelling. Raises KeyError if there is none."""
        return self._specials[token]

    def get_bos_token_id(self) -> int:
        return self._specials[self.bos]

    def get_vocab_size(self) -> int:
        """One more than the highest id."""
        return len(self._table)

    def token_bytes(self, id: int) -> bytes:
        """The bytes that one token stands for: a special token's spelling; nothing for an unknown id."""
        return self._table[id] if 0 <= id < len(self._table) else b""

    def is_special(self, id: int) -> bool:
        return id in self.special_ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`, special tokens as their spelling."""
        return b"".join(map(self.token_bytes, ids)).decode("utf-8", "replace")


def _whole_characters(text: str) -> str:
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def byte_table(tokens: Iterable[tuple[bytes, int]], specials: Mapping[str, int]) -> list[bytes]:
    """Id -> bytes. Raises TokenizerError for ids that stand for two tokens, or are absurdly high."""
    entries = [*tokens, *((spelling.encode(), id) for spelling, id in specials.items())]
    last = max((id for _, id in entries), default=-1)
    if last >= MAX_VOCABULARY:
        raise TokenizerError(f"the vocabulary has the id {last}")
    table: list[bytes] = [b""] * (1 + last)
    taken = bytearray(len(table))
    for token, id in entries:
        if taken[id]:
            raise TokenizerError(f"token id {id} stands for two tokens")
        taken[id] = 1
        table[id] = token
    return table


def check_ids(what: str, entries: Mapping[object, object], key: type) -> None:
    """Raises TokenizerError for ids that are no ids, or absurdly high."""
    for token, id in entries.items():
        if not isinstance(token, key) or not isinstance(id, int) or isinstance(id, bool) or not token:
            raise TokenizerError(f"{what} has the entry {token!r}: {id!r}")
        if not 0 <= id < MAX_VOCABULARY:
            raise TokenizerError(f"{what} gives {token!r} the id {id}")


class BytePairTokenizer(Tokenizer):
    """Byte-level BPE over ranks, as nanochat trains it (rustbpe) and runs it (tiktoken).

    ranks: the mergeable tokens, lower rank merged first; must hold all 256 single bytes.
    specials: spelling -> id. pattern: the split regex.
    """

    def __init__(
        self, ranks: Mapping[bytes, int], specials: Mapping[str, int], pattern: str = NANOCHAT_PATTERN
    ) -> None:
        check_ids("the rank table", ranks, bytes)  # type: ignore[arg-type]
        check_ids("the special tokens", specials, str)  # type: ignore[arg-type]
        missing = sum(bytes([byte]) not in ranks for byte in range(256))
        if missing:
            raise TokenizerError(f"the rank table lacks {missing} of the 256 single bytes")
        bos = "<|bos|>" if "<|bos|>" in specials else "<|endoftext|>"
        super().__init__(byte_table(ranks.items(), specials), specials, bos, "<|assistant_end|>")
        self.ranks = dict(ranks)
        self.pattern = pattern
        try:
            self._encoding = tiktoken.Encoding(
                "fastpath", pat_str=pattern, mergeable_ranks=self.ranks, special_tokens=self._specials
            )
        except ValueError as error:
            raise TokenizerError(f"the tokenizer's split pattern is not valid: {error}") from error

    def _encode(self, text: str) -> list[int]:
        if len(text) <= _MAX_SPACE_RUN:
            return self._encoding.encode_ordinary(text)
        ids: list[int] = []
        start = 0
        for run in _SPACE_RUN.finditer(text):
            ids += self._encoding.encode_ordinary(text[start : run.end()])
            start = run.end()
        return ids + self._encoding.encode_ordinary(text[start:])
