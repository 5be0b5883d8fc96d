"""From the streams of a continuous engine to columns: one token of every row at a time.

The streams live on the engine's loop, their reader in another thread. What a turn of the loop brings crosses
in one piece, and whatever runs ahead waits with its row until the others have got as far.
"""

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from queue import SimpleQueue

from engine.messages import Delta, Finish, TokenStream

SAMPLED, FORCED, FINISHED = 1, 0, -1

Column = tuple[list[int], list[int]]  # tokens, and for each whether it was sampled, forced or is filling


@dataclass(slots=True)
class Row:
    """tokens: not yet handed out, each with its mask. finish: set with the row's last tokens."""

    tokens: deque[tuple[int, int]] = field(default_factory=deque)
    finish: Finish | None = None

    def add(self, delta: Delta) -> None:
        forced = set(delta.forced)
        for index, token in enumerate(delta.tokens):
            self.tokens.append((token, FORCED if index in forced else SAMPLED))
        self.finish = delta.finish


class Columns:
    """An iterator over columns. fill: the token of rows that have finished.

    `attach` is called once, on the loop; the iteration is for one other thread. It ends when all rows have,
    and raises RuntimeError, naming the row, where one ended with an error.
    """

    def __init__(self, fill: int) -> None:
        self._fill = fill
        self._rows: list[Row | None] = []
        self._streams: list[TokenStream | None] = []
        self._pending: set[int] = set()  # rows whose streams hold something; the loop's
        self._news: SimpleQueue[list[tuple[int, Delta]]] = SimpleQueue()

    def attach(self, streams: Sequence[TokenStream | None]) -> None:
        """One stream a row; a row without one has finished from the start."""
        self._streams = list(streams)
        self._rows = [None if stream is None else Row() for stream in streams]
        for index, stream in enumerate(streams):
            if stream is not None:
                stream.listener = partial(self._wake, index)

    def __iter__(self) -> "Columns":
        return self

    def __next__(self) -> Column:
        rows = self._rows
        while any(row is not None and not row.tokens and row.finish is None for row in rows):
            for index, delta in self._news.get():
                row = rows[index]
                assert row is not None
                row.add(delta)
        tokens, masks = [], []
        for index, row in enumerate(rows):
            if row is not None and row.tokens:
                token, mask = row.tokens.popleft()
            else:
                token, mask = self._ended(index, row)
            tokens.append(token)
            masks.append(mask)
        if all(mask == FINISHED for mask in masks):
            raise StopIteration
        return tokens, masks

    def _ended(self, index: int, row: Row | None) -> tuple[int, int]:
        if row is not None and row.finish is not None and row.finish.reason == "error":
            raise RuntimeError(f"row {index}: {row.finish.message or 'the engine failed'}")
        return self._fill, FINISHED

    # -- on the loop
    # --------------------------------------------------------------------------------------------

    def _wake(self, index: int) -> None:
        """Something is pending; the rows of one step come one after the other, and go together."""
        if not self._pending:
            asyncio.get_running_loop().call_soon(self._hand_over)
        self._pending.add(index)

    def _hand_over(self) -> None:
        news: list[tuple[int, Delta]] = []
        for index in sorted(self._pending):
            stream = self._streams[index]
            delta = stream.take() if stream is not None else None
            if delta is not None:
                news.append((index, delta))
        self._pending.clear()
        self._news.put(news)
