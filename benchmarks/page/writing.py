"""Answers as a model might write them: markdown with code, lists and tables, the same on every run."""

import random
from itertools import pairwise

_TEXT = """
the server keeps a queue of requests and a batch of rows each step reads the cache once for all of them so
that a reader who waits sees the next word soon while others join or leave between two steps memory is paid
for in blocks and a block is shared by all prompts that begin alike
"""
WORDS = _TEXT.split()
CODE = """```python
async def step(batch: Batch, cache: Cache) -> list[Token]:
    # One pass over the weights serves every row.
    rows = [row for row in batch.rows if row.wants_token]
    logits = await forward(rows, cache.blocks_of(rows), scale=0.125)
    return [sample(row.params, logits[k]) for k, row in enumerate(rows)]
```"""
TABLE = """| rows | tokens per second | milliseconds |
| ---: | ---: | --- |
| 1 | 791 | **1.3** |
| 64 | 23,838 | 2.7 |
| 256 | 43,488 | `5.9` |"""


class Writer:
    """Writes paragraphs of one seed."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)

    def words(self, count: int) -> str:
        """A sentence; a few of its words are bold, code or a link."""
        chosen = [self._rng.choice(WORDS) for _ in range(count)]
        for mark in ("**{}**", "`{}`", "[{}](https://example.org/)"):
            if self._rng.random() < 0.4:
                at = self._rng.randrange(count)
                chosen[at] = mark.format(chosen[at])
        text = " ".join(chosen)
        return text[0].upper() + text[1:] + "."

    def paragraph(self) -> str:
        return " ".join(self.words(self._rng.randint(6, 16)) for _ in range(self._rng.randint(2, 4)))

    def block(self) -> str:
        kind = self._rng.random()
        if kind < 0.15:
            return "## " + self.words(4).rstrip(".")
        if kind < 0.3:
            return CODE
        if kind < 0.45:
            return "\n".join(f"- {self.words(8)}" for _ in range(4))
        if kind < 0.52:
            return TABLE
        return self.paragraph()

    def answer(self, length: int) -> str:
        """At least `length` characters, in whole blocks."""
        blocks: list[str] = []
        while sum(map(len, blocks)) + 2 * len(blocks) < length:
            blocks.append(self.block())
        return "\n\n".join(blocks)


def pieces(text: str, count: int) -> list[str]:
    """The text in `count` pieces of about the same length, none empty."""
    cuts = [len(text) * k // count for k in range(count + 1)]
    return [text[a:b] for a, b in pairwise(cuts)]


def conversation(messages: int, seed: int = 7) -> list[dict[str, str]]:
    """Questions and answers in turn; an answer has a few hundred to two thousand characters."""
    writer, rng = Writer(seed), random.Random(seed)
    return [
        {"role": "user", "content": writer.words(12)}
        if k % 2 == 0
        else {"role": "assistant", "content": writer.answer(rng.randint(300, 2000))}
        for k in range(messages)
    ]
