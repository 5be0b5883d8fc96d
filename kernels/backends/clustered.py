"""Decode attention by clusters of blocks where the device can run them all at one time, by another backend
elsewhere."""

from dataclasses import dataclass
from typing import Protocol

import torch

from kernels.backends.base import AttentionBackend, AttentionSpec, RotatingBackend, Row, rotating
from kernels.backends.reference import TorchBackend
from kernels.backends.selftest import fault
from kernels.caps import DeviceCaps
from kernels.cluster import TILE, ClusterDecode, Shape, Variant, unsupported
from kernels.cuda_driver import DriverError
from kernels.kv8 import Scales
from kernels.nvrtc import CompileError
from kernels.registry import Unavailable

FLAG = "--use-cta-clustering"


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
        scales: Scales | None = None,
        pdl: bool = False,
    ) -> None: ...


class ClusteredBackend:
    """clusters: for steps of so few entries that it `serves` them. plain: the others, and all chunks. sizes:
    of which clusters, for the start-up table.
    """

    def __init__(self, clusters: Clusters, plain: AttentionBackend, sizes: str = "") -> None:
        self.clusters = clusters
        self.plain = plain
        self.sizes = sizes
        self.name = f"clusters, {plain.name}"
        self.version = plain.version
        self.capture_safe = plain.capture_safe

    def clustered(self, entries: int) -> bool:
        return self.clusters.serves(entries)

    def rotating(self, entries: int) -> RotatingBackend | None:
        return None if self.clustered(entries) else rotating(self.plain, entries)

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
        scales: Scales | None = None,
        pdl: bool = False,
    ) -> None:
        serves = self.clusters.decode if self.clustered(rows.size(0)) else self.plain.decode
        pages = (k_pages, v_pages, block_tables)
        serves(q, *pages, rows, positions, out, scale=scale, window=window, scales=scales, pdl=pdl)

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
        self.plain.prefill(
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


def with_clusters(
    plain: AttentionBackend, rows: list[Row], spec: AttentionSpec, caps: DeviceCaps, rule: ClusterRule
) -> AttentionBackend:
    """`plain` with clusters of blocks for decode steps of few rows, once they agree with the reference; the
    first of `rows` says what came of it. Unavailable: they are required and cannot be had, with the reason.
    """
    shape = Shape(spec.heads, spec.kv_heads, spec.head_dim, spec.block_size, spec.fp8_kv)
    reason = unsupported(spec.head_dim, shape.group, spec.dtype, caps.compute or (0, 0), spec.block_size)
    if reason is None and spec.max_context < rule.threshold:
        reason = f"no row gets as many as {rule.threshold} keys (cta_cluster_seq_threshold)"
    what, asked, used, why = rows[0]
    if reason is None:
        try:
            kernel = ClusterDecode(
                shape, spec.max_context, spec.device, size=rule.size, threshold=rule.threshold
            )
            kernel.prepare(spec.max_rows)
            served = kernel.served(spec.max_rows)
            reason = _fault(kernel, served, spec)
            if reason is None:
                sizes = _sizes(served)
                rows[0] = (what, asked, f"clusters, {used}", f"clusters of {sizes}; {why}")
                return ClusteredBackend(kernel, plain, sizes)
        except (CompileError, DriverError) as error:
            reason = str(error)
    if rule.required:
        raise Unavailable(f"{FLAG}: {reason}")
    rows[0] = (what, asked, used, f"{why}; clusters: {reason}")
    return plain


def _sizes(served: dict[int, Variant]) -> str:
    """Blocks of a cluster by rows of a step: "4 for 1 row, 2 for 2 to 4 rows"."""
    by_size: dict[int, list[int]] = {}
    for entries, variant in served.items():
        by_size.setdefault(variant.cluster, []).append(entries)

    def rows(counts: list[int]) -> str:
        if len(counts) > 1:
            return f"{counts[0]} to {counts[-1]} rows"
        return "1 row" if counts == [1] else f"{counts[0]} rows"

    return ", ".join(f"{size} for {rows(counts)}" for size, counts in by_size.items())


def _fault(kernel: ClusterDecode, served: dict[int, Variant], spec: AttentionSpec) -> str | None:
    """What is wrong with any of the kernels that serve, or that none does; None if nothing is."""
    if not served:
        return "no number of rows gets clusters worth having"
    for variant in dict.fromkeys(served.values()):
        alone = ClusterDecode(
            kernel.shape, spec.max_context, spec.device, size=1, threshold=1, forced=variant
        )
        # Every warp fills each of its stages several times.
        longest = variant.cluster * variant.warps * TILE * (3 * variant.stages(kernel.shape) + 1)
        reason = fault(ClusteredBackend(alone, TorchBackend(spec)), spec, longest - 5)
        if reason is not None:
            return f"{variant}: {reason}"
    return None
