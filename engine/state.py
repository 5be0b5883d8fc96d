"""Device state of the rows: what one step leaves for the next without passing through the host.

Written and read by the step thread only, in launch order.
"""

import torch


class RowState:
    """last_token: [rows] int64, the id that each row sampled last; the next step feeds on it.

    Penalty counts are [rows, vocab] and exist only once a row asked for a penalty.
    """

    def __init__(self, rows: int, vocab_size: int, device: torch.device) -> None:
        self.last_token = torch.zeros(rows, dtype=torch.int64, device=device)
        self.vocab_size = vocab_size
        self._shape = (rows, vocab_size)
        self._prompt_seen: torch.Tensor | None = None
        self._output_counts: torch.Tensor | None = None

    def reset_counts(self, row: int, prompt: list[int], output: list[int]) -> None:
        """Rebuilds a row's penalty counts from its tokens, when it is admitted or had tokens forced in."""
        seen, counts = self._counts()
        device = seen.device
        seen[row] = False
        seen[row, torch.tensor(prompt, dtype=torch.int64, device=device)] = True
        ids = torch.tensor(output, dtype=torch.int64, device=device)
        counts[row] = torch.bincount(ids, minlength=self._shape[1]).to(counts.dtype)

    def addresses(self, row: int) -> tuple[int, int]:
        """Where a row's prompt_seen and output_counts lie in memory."""
        seen, counts = self._counts()
        width = self._shape[1]
        return (
            seen.data_ptr() + row * width * seen.element_size(),
            counts.data_ptr() + row * width * counts.element_size(),
        )

    def counts(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """prompt_seen [n, vocab] bool and output_counts [n, vocab] int32 of the given rows."""
        seen, counts = self._counts()
        return seen[rows], counts[rows]

    def sampled(self, rows: torch.Tensor, tokens: torch.Tensor, counted: torch.Tensor | None) -> None:
        """Remembers what the rows sampled. counted: [n] bool, rows that keep penalty counts; None for
        none.
        """
        self.last_token[rows] = tokens
        if counted is not None:
            _, counts = self._counts()
            # A row samples once in a step, so no (row, token) pair repeats.
            counts[rows[counted], tokens[counted]] += 1

    def _counts(self) -> tuple[torch.Tensor, torch.Tensor]:
        if self._prompt_seen is None or self._output_counts is None:
            device = self.last_token.device
            self._prompt_seen = torch.zeros(self._shape, dtype=torch.bool, device=device)
            self._output_counts = torch.zeros(self._shape, dtype=torch.int32, device=device)
        return self._prompt_seen, self._output_counts
