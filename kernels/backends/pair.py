"""One backend for single queries, another for chunks, or for the chunks of large steps only."""

import torch

from kernels.backends.base import AttentionBackend, RotatingBackend, rotating
from kernels.kv8 import Scales


class PairBackend:
    def __init__(self, single: AttentionBackend, chunked: AttentionBackend, few: int = 0) -> None:
        """few: chunks of steps of up to so many tokens are the first's, too."""
        self.single = single
        self.chunked = chunked
        self.few = few
        self.name = f"{single.name} + {chunked.name}"
        self.version = f"{single.version} + {chunked.version}"
        self.capture_safe = single.capture_safe and chunked.capture_safe

    def rotating(self, entries: int) -> RotatingBackend | None:
        return rotating(self.single, entries)

    def plan(
        self, rows: torch.Tensor, positions: torch.Tensor, *, window: int | None, pdl: bool = False
    ) -> None:
        self.single.plan(rows, positions, window=window, pdl=pdl)
        self.chunked.plan(rows[:0], positions[:0], window=window, pdl=pdl)

    def decode(
        self,
        q: torch.Tensor,
        k_pages: torch.Tensor,
        v_pages: torch.Tensor,
        block_tables: torch.Tensor,
        rows: torch.Tensor,
        positions: torch.Tensor,
        out: torch.Tensor,
        *,
        scale: float,
        window: int | None,
        scales: Scales | None = None,
        pdl: bool = False,
    ) -> None:
        pages = (k_pages, v_pages, block_tables)
        self.single.decode(
            q, *pages, rows, positions, out, scale=scale, window=window, scales=scales, pdl=pdl
        )

    def prefill(
        self,
        q: torch.Tensor,
        k_pages: torch.Tensor,
        v_pages: torch.Tensor,
        block_tables: torch.Tensor,
        chunk_rows: torch.Tensor,
        cu_queries: torch.Tensor,
        contexts: torch.Tensor,
        out: torch.Tensor,
        *,
        scale: float,
        window: int | None,
        scales: Scales | None = None,
        pdl: bool = False,
    ) -> None:
        pages = (k_pages, v_pages, block_tables)
        backend = self.single if q.size(0) <= self.few else self.chunked
        backend.prefill(
            q,
            *pages,
            chunk_rows,
            cu_queries,
            contexts,
            out,
            scale=scale,
            window=window,
            scales=scales,
            pdl=pdl,
        )
