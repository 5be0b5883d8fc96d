"""Decode attention by clusters of blocks where the device can run them all at one time, by another backend
elsewhere."""

from dataclasses import dataclass
from typing import Protocol

import torch

from kernels.backends.base import AttentionBackend


@dataclass(frozen=True, slots=True)
class ClusterRule:
    """When decode attention may use clusters: see `kernels.cluster.cluster_size`. required: or nothing."""

    size: int
    threshold: int
    required: bool


class Clusters(Protocol):
    """As much of `kernels.cluster.ClusterDecode` as a backend calls."""

    def serves(self, entries: int) -> bool: ...

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
        pdl: bool = False,
    ) -> None: ...


class ClusteredBackend:
    """clusters: for steps of so few entries that it `serves` them. plain: the others, and all chunks."""

    def __init__(self, clusters: Clusters, plain: AttentionBackend) -> None:
        self.clusters = clusters
        self.plain = plain
        self.name = f"clusters, {plain.name}"
        self.version = plain.version
        self.capture_safe = plain.capture_safe

    def clustered(self, entries: int) -> bool:
        return self.clusters.serves(entries)

    def plan(
        self, rows: torch.Tensor, positions: torch.Tensor, *, window: int | None, pdl: bool = False
    ) -> None:
        planned = 0 if self.clustered(rows.size(0)) else rows.size(0)
        # Without rows too: a library learns from it that a new step begins.
        self.plain.plan(rows[:planned], positions[:planned], window=window, pdl=pdl)

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
        pdl: bool = False,
    ) -> None:
        serves = self.clusters.decode if self.clustered(rows.size(0)) else self.plain.decode
        pages = (k_pages, v_pages, block_tables)
        serves(q, *pages, rows, positions, out, scale=scale, window=window, pdl=pdl)

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
        pdl: bool = False,
    ) -> None:
        pages = (k_pages, v_pages, block_tables)
        self.plain.prefill(
            q, *pages, chunk_rows, cu_queries, contexts, out, scale=scale, window=window, pdl=pdl
        )
