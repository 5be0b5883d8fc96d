"""Numbers that several processes keep together: each adds to a row of its own and reads the sum of all rows.

Nobody writes where another one writes, so there is no lock. Who wants to stay under a limit adds first, looks
at the sum and takes back what was too much: two that come at the same time may both be refused, but never
both be let in over the limit.
"""

import mmap
from pathlib import Path

_BYTES = 8


class Board:
    """`rows` processes times `columns` numbers (64 bits, signed); this process owns the row `row`.

    `path`: a file that the processes share, see `create`; None for one process alone.
    """

    def __init__(self, columns: int, *, rows: int = 1, row: int = 0, path: Path | None = None) -> None:
        size = columns * rows * _BYTES
        buffer: bytearray | mmap.mmap
        if path is None:
            buffer = bytearray(size)
        else:
            with path.open("r+b") as file:
                buffer = mmap.mmap(file.fileno(), size)
        self._columns = columns
        self._cells = memoryview(buffer).cast("q")
        self._row = row * columns

    @staticmethod
    def create(path: Path, columns: int, rows: int) -> None:
        """Makes the file, all zero, for this user alone. Raises OSError."""
        path.touch(mode=0o600, exist_ok=False)
        with path.open("r+b") as file:
            file.truncate(columns * rows * _BYTES)

    def add(self, column: int, amount: int) -> int:
        """Changes the own number; returns the sum over all rows."""
        self._cells[self._row + column] += amount
        return self.total(column)

    def own(self, column: int) -> int:
        return self._cells[self._row + column]

    def total(self, column: int) -> int:
        return sum(self._cells[column :: self._columns])

    def clear(self, row: int) -> None:
        """What the owner of a row had counted ended with it."""
        start = row * self._columns
        for cell in range(start, start + self._columns):
            self._cells[cell] = 0
