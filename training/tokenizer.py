"""The tokenizer: byte-level BPE in nanochat's format, trained here and stored as ranks.

`tokenizer.tiktoken` has one line per token, base64 of its bytes and its rank; `tokenizer_config.json` has the
split pattern and the ids of the special tokens, which come last.
"""

import base64
import json
from collections.abc import Iterable
from pathlib import Path

import tiktoken

from training.files import write_text

PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]++[\r\n]*"
    r"|\s*[\r\n]|\s+(?!\S)|\s+"
)
SPECIAL = (
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
RANKS_FILE, CONFIG_FILE = "tokenizer.tiktoken", "tokenizer_config.json"


class Encoder:
    """Text to ids and back; text never yields a special id."""

    def __init__(self, ranks: dict[bytes, int], pattern: str, special: dict[str, int]) -> None:
        self._special = special
        self._encoding = tiktoken.Encoding(
            name="fastpath", pat_str=pattern, mergeable_ranks=ranks, special_tokens=special
        )

    def encode(self, text: str) -> list[int]:
        return self._encoding.encode_ordinary(text)

    def decode(self, ids: Iterable[int]) -> str:
        return self._encoding.decode(list(ids))

    def special(self, name: str) -> int:
        return self._special[name]

    @property
    def size(self) -> int:
        return self._encoding.n_vocab


def train(texts: Iterable[str], vocab_size: int) -> dict[bytes, int]:
    """Ranks of a byte-level BPE with `vocab_size` entries, special tokens counted in.

    Rank b < 256 is the single byte b, as in nanochat; merges follow in the order in which they were found.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    learner = Tokenizer(models.BPE(unk_token=None))
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    learner.decoder = decoders.ByteLevel()
    learner.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocab_size - len(SPECIAL),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            min_frequency=2,
            show_progress=False,
        ),
    )
    as_byte = _byte_of_letter()
    spelled = sorted(learner.get_vocab().items(), key=lambda item: item[1])
    ranks = {bytes([b]): b for b in range(256)}
    for letters, _ in spelled:
        token = bytes(as_byte[letter] for letter in letters)
        if len(token) > 1:
            ranks[token] = len(ranks)
    if len(ranks) != vocab_size - len(SPECIAL):
        raise ValueError(f"too little text: it yields {len(ranks)} tokens of {vocab_size - len(SPECIAL)}")
    return ranks


def _byte_of_letter() -> dict[str, int]:
    """The byte that each letter of the byte-level alphabet stands for."""
    plain = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    letters = {chr(b): b for b in plain}
    rest = (b for b in range(256) if b not in plain)
    letters.update({chr(256 + at): b for at, b in enumerate(rest)})
    return letters


def save(ranks: dict[bytes, int], folder: Path) -> None:
    """Write both files. Raises WriteError."""
    lines = [
        f"{base64.b64encode(token).decode()} {rank}\n"
        for token, rank in sorted(ranks.items(), key=lambda i: i[1])
    ]
    write_text(folder / RANKS_FILE, "".join(lines))
    special = {name: len(ranks) + at for at, name in enumerate(SPECIAL)}
    config = {"pattern": PATTERN, "special_tokens": special}
    write_text(folder / CONFIG_FILE, json.dumps(config, indent=1) + "\n")  # last: it says that both are there


def load(folder: Path) -> Encoder:
    """The tokenizer in `folder`."""
    ranks = {}
    for line in (folder / RANKS_FILE).read_text("ascii").splitlines():
        token, rank = line.split()
        ranks[base64.b64decode(token)] = int(rank)
    config = json.loads((folder / CONFIG_FILE).read_text("utf-8"))
    return Encoder(ranks, config["pattern"], config["special_tokens"])
