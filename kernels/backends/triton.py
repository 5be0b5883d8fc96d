"""Attention by our own Triton kernels."""

import torch
import triton

from kernels.backends.base import AttentionSpec
from kernels.kv8 import FORMAT, Scales
from kernels.triton.decode import DecodeWorkspace, Fresh, Rule, paged_decode, plan_decode
from kernels.triton.prefill import PrefillWorkspace, paged_prefill


class TritonBackend:
    name = "triton"
    version: str = triton.__version__
    capture_safe = True

    def __init__(self, spec: AttentionSpec, rule: Rule | None = None) -> None:
        """rule: how decode steps are cut, instead of the table's."""
        self.workspace = DecodeWorkspace.allocate(
            spec.max_rows,
            spec.heads,
            spec.kv_heads,
            spec.head_dim,
            spec.max_context,
            spec.device,
            dtype=FORMAT if spec.fp8_kv else spec.dtype,
            config=rule,
        )
        self.prefill_workspace = PrefillWorkspace.allocate(spec.head_dim, spec.device)

    def plan(
        self, rows: torch.Tensor, positions: torch.Tensor, *, window: int | None, pdl: bool = False
    ) -> None:
        if rows.size(0):
            plan_decode(rows, positions, self.workspace, window=window, pdl=pdl)

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
        if rows.size(0):
            pages = (k_pages, v_pages, block_tables)
            paged_decode(
                q,
                *pages,
                rows,
                positions,
                out,
                self.workspace,
                scale=scale,
                window=window,
                scales=scales,
                pdl=pdl,
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
        if chunk_rows.size(0):
            pages = (k_pages, v_pages, block_tables)
            paged_prefill(
                q,
                *pages,
                chunk_rows,
                cu_queries,
                contexts,
                out,
                scale=scale,
                window=window,
                scales=scales,
                workspace=self.prefill_workspace,
                pdl=pdl,
            )


class RotatingTritonBackend(TritonBackend):
    """Its decode kernel rotates queries and keeps new keys and values, instead of a kernel in front of it:
    up to 3 us a layer quicker on an H200.
    """

    name = "triton-rotating"

    def rotating(self, entries: int) -> "RotatingTritonBackend":
        return self

    def short_keys(self, entries: int) -> int:
        return 0

    def decode_fresh(
        self,
        fresh: Fresh,
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
        short: bool = False,
        pdl: bool = False,
    ) -> None:
        pages = (k_pages, v_pages, block_tables)
        paged_decode(
            fresh.query,
            *pages,
            rows,
            positions,
            out,
            self.workspace,
            scale=scale,
            window=window,
            scales=scales,
            fresh=fresh,
            pdl=pdl,
        )
