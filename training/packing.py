"""Which document comes when, and how documents fill the rows of a batch.

Both ways of packing can start at any step without reading what came before, so that a run can be resumed.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from training.data import Source
from training.settings import Phase
from training.shards import DataError

Batch = tuple[np.ndarray, np.ndarray]  # ids and targets, int64 [rows, context]; a target of -1 is not learned


@dataclass(frozen=True, slots=True)
class Order:
    """Documents in the order in which they are seen: source number, document number, tokens."""

    sources: list[Source]
    source: np.ndarray
    document: np.ndarray
    length: np.ndarray
    starts: list[np.ndarray]

    def tokens(self, at: int) -> np.ndarray:
        """Ids of the `at`-th document."""
        source = int(self.source[at])
        start = int(self.starts[source][self.document[at]])
        return self.sources[source].tokens[start : start + int(self.length[at])]

    def mask(self, at: int) -> np.ndarray:
        """1 where the `at`-th document's tokens are to be learned."""
        source = int(self.source[at])
        mask = self.sources[source].mask
        if mask is None:
            return np.ones(int(self.length[at]), dtype=np.uint8)
        start = int(self.starts[source][self.document[at]])
        return mask[start : start + int(self.length[at])]


def order(sources: Mapping[str, Source], phases: tuple[Phase, ...], seed: int) -> Order:
    """Draw each phase's documents by weight, a whole epoch of a source before it repeats, and shuffle them.

    Raises DataError, naming it, for a source that is not there.
    """
    names = sorted(sources)
    rng = np.random.default_rng(seed)
    picked_sources, picked_documents = [], []
    for phase in phases:
        if missing := sorted(set(phase.weights) - set(sources)):
            raise DataError(f"there are no tokens of {missing[0]!r}, a source of phase {phase.name!r}")
        total = sum(phase.weights.values())
        here_source, here_document = [], []
        for name, weight in sorted(phase.weights.items()):
            documents = _draw(sources[name].lengths, int(phase.tokens * weight / total), rng)
            here_source.append(np.full(len(documents), names.index(name), dtype=np.uint8))
            here_document.append(documents)
        shuffle = rng.permutation(sum(map(len, here_document)))
        picked_sources.append(np.concatenate(here_source)[shuffle])
        picked_documents.append(np.concatenate(here_document)[shuffle])
    source, document = np.concatenate(picked_sources), np.concatenate(picked_documents)
    length = np.empty(len(source), dtype=np.int32)
    for at, name in enumerate(names):
        here = source == at
        length[here] = sources[name].lengths[document[here]]
    return Order([sources[n] for n in names], source, document, length, [sources[n].starts for n in names])


def _draw(lengths: np.ndarray, tokens: int, rng: np.random.Generator) -> np.ndarray:
    """Document numbers with about `tokens` tokens in all."""
    picked = []
    while tokens > 0:
        epoch = rng.permutation(len(lengths)).astype(np.int32)
        upto = int(np.searchsorted(np.cumsum(lengths[epoch], dtype=np.int64), tokens)) + 1
        picked.append(epoch[:upto])
        tokens -= int(lengths[picked[-1]].sum())
    return np.concatenate(picked) if picked else np.empty(0, dtype=np.int32)


def check_steps(batches: "Stream | Aligned", phases: tuple[Phase, ...]) -> None:
    """Raises DataError where what the phases have in tokens does not make one step."""
    if batches.steps < 1:
        told = ", ".join(f"phase {phase.name!r} with {phase.tokens:,} tokens" for phase in phases)
        raise DataError(
            f"{told}: fewer than a step takes, {batches.rows} rows of {batches.context} tokens; "
            "train on a larger share"
        )


class Stream:
    """Documents end to end, cut into rows wherever a row is full; every token is learned."""

    def __init__(self, documents: Order, rows: int, context: int) -> None:
        self.order, self.rows, self.context = documents, rows, context
        self._ends = np.cumsum(documents.length, dtype=np.int64)
        self.steps = int((self._ends[-1] - 1) // (rows * context)) if len(self._ends) else 0

    def batches(self, first: int = 0) -> Iterator[Batch]:
        """The batches from step `first` on."""
        size = self.rows * self.context
        for step in range(first, self.steps):
            flat = self._span(step * size, size + 1).astype(np.int64)
            yield flat[:-1].reshape(self.rows, -1), flat[1:].reshape(self.rows, -1)

    def _span(self, start: int, length: int) -> np.ndarray:
        at = int(np.searchsorted(self._ends, start, side="right"))
        skip = start - (int(self._ends[at - 1]) if at else 0)
        parts, have = [self.order.tokens(at)[skip:]], 0
        have = len(parts[0])
        while have < length:
            at += 1
            parts.append(self.order.tokens(at))
            have += len(parts[-1])
        return np.concatenate(parts)[:length]


class Aligned:
    """Whole conversations: each row starts with one, and only the assistant's tokens are learned.

    A conversation longer than a row is cut at its end; what is left free in a row is padding.
    """

    def __init__(self, documents: Order, rows: int, context: int, pad: int) -> None:
        self.order, self.rows, self.context, self.pad = documents, rows, context, pad
        firsts, used = [0], 0
        for at, length in enumerate(np.minimum(documents.length, context + 1).tolist()):
            if used + length > context + 1:
                firsts.append(at)
                used = 0
            used += length
        self._firsts = [*firsts, len(documents.length)]
        self.steps = len(firsts) // rows if len(documents.length) else 0

    def batches(self, first: int = 0) -> Iterator[Batch]:
        """The batches from step `first` on."""
        for step in range(first, self.steps):
            rows = [self._row(row) for row in range(step * self.rows, (step + 1) * self.rows)]
            yield np.stack([ids for ids, _ in rows]), np.stack([targets for _, targets in rows])

    def _row(self, row: int) -> Batch:
        documents = range(self._firsts[row], self._firsts[row + 1])
        ids = np.full(self.context + 1, self.pad, dtype=np.int64)
        learned = np.zeros(self.context + 1, dtype=np.uint8)
        at = 0
        for document in documents:
            tokens = self.order.tokens(document)[: self.context + 1]
            ids[at : at + len(tokens)] = tokens
            learned[at : at + len(tokens)] = self.order.mask(document)[: self.context + 1]
            at += len(tokens)
        return ids[:-1], np.where(learned[1:] == 1, ids[1:], -1)
