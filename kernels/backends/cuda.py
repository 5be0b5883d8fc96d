"""Decode attention by our own CUDA kernel, everything else by our Triton kernels."""

import torch

from kernels.backends.base import AttentionSpec
from kernels.backends.triton import RotatingTritonBackend
from kernels.cluster import Shape
from kernels.cuda_driver import architecture
from kernels.kv8 import Scales
from kernels.paged_decode import SHORT_KEYS, PagedDecode
from kernels.triton.decode import Fresh


def kernel_for(spec: AttentionSpec) -> PagedDecode:
    """ValueError: a model or a device that it is not for."""
    shape = Shape(spec.heads, spec.kv_heads, spec.head_dim, spec.block_size, spec.fp8_kv)
    return PagedDecode(shape, spec.device, dtype=spec.dtype)


class CudaBackend(RotatingTritonBackend):
    """Its decode kernel rotates queries and keeps new keys and values, too; and in steps that only decode it
    reads keys while the kernel in front of it still runs. Batches that it is not for are Triton's.
    """

    name = "cuda"

    def __init__(self, spec: AttentionSpec, kernel: PagedDecode | None = None) -> None:
        """kernel: instead of one that runs batches as measurements say. ValueError: a model or a device that
        the kernel is not for. CompileError, DriverError.
        """
        self.kernel = kernel or kernel_for(spec)
        self.kernel.prepare(spec.max_rows)
        super().__init__(spec, self.kernel.plan)
        self.version = architecture(self.kernel.device)
        self.launched = False  # since the plan

    def rotating(self, entries: int) -> "CudaBackend":
        return self

    def short_keys(self, entries: int) -> int:
        return SHORT_KEYS if self.kernel.variant(entries, True) != self.kernel.variant(entries) else 0

    def plan(
        self, rows: torch.Tensor, positions: torch.Tensor, *, window: int | None, pdl: bool = False
    ) -> None:
        super().plan(rows, positions, window=window, pdl=pdl)
        self.launched = False

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
        given = (q, k_pages, v_pages, block_tables, rows, positions, out)
        if self.kernel.variant(rows.size(0)) is None:
            super().decode(*given, scale=scale, window=window, scales=scales, pdl=pdl)
            return
        self.kernel.decode(*given, self.workspace, scale=scale, window=window, scales=scales, pdl=pdl)
        self.launched |= rows.size(0) > 0

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
        if self.kernel.variant(rows.size(0)) is None:
            super().decode_fresh(
                fresh, *pages, rows, positions, out, scale=scale, window=window, scales=scales, pdl=pdl
            )
            return
        # No chunk of this step writes what a row reads, and the step's first launch waits for all before it.
        given = (fresh.query, *pages, rows, positions, out, self.workspace)
        self.kernel.decode(
            *given,
            scale=scale,
            window=window,
            scales=scales,
            fresh=fresh,
            ahead=self.launched,
            short=short,
            pdl=pdl,
        )
        self.launched |= rows.size(0) > 0
