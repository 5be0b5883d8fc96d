"""What an attention backend is to the engine, whoever wrote its kernels."""

from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch

from kernels.kv8 import Scales
from kernels.spec import AttentionSpec

if TYPE_CHECKING:  # Triton is not everywhere
    from kernels.triton.decode import Fresh

Row = tuple[str, str, str, str]  # of a start-up table: operation, asked for, used, why


class AttentionBackend(Protocol):
    """Attention over paged keys and values. Index tensors are int32 on the device; a row of -1 is padding.

    Pages are views [blocks, block_size, kv_heads, head_dim] with any strides but the last, which is 1, so
    that either order in memory does. Pages of eight bits come with scales (kernels.kv8). Unused slots of
    pages hold finite numbers. Block 0 is nobody's.

    capture_safe: all calls may run while a CUDA graph is captured, and its replay does the same on new
    contents of the same tensors.
    """

    @property
    def name(self) -> str: ...

    @property
    def version(self) -> str: ...

    @property
    def capture_safe(self) -> bool: ...

    def plan(
        self, rows: torch.Tensor, positions: torch.Tensor, *, window: int | None, pdl: bool = False
    ) -> None:
        """Once per step and window that the model has, before its layers. rows, positions: [entries] of the
        step's single queries, possibly none."""
        ...

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
        """One query per entry, q [entries, heads, head_dim], over keys 0..positions[entry] of its row.

        block_tables: [rows, blocks of a row]. out: [entries, heads * head_dim]; that of padding may hold
        anything finite.
        """
        ...

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
        """Chunk c's queries are tokens cu_queries[c]..cu_queries[c + 1] of q [tokens, heads, head_dim], at
        the last positions of the contexts[c] that row chunk_rows[c] has. Causal. out: [tokens, heads *
        head_dim]; tokens of no chunk are left alone."""
        ...


class RotatingBackend(AttentionBackend, Protocol):
    """One that also does what otherwise comes in front of a step's single queries: bias, rotation, norm, and
    the write of keys and values to their pages.
    """

    def decode_fresh(
        self,
        fresh: "Fresh",
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
        """As `decode` of what kernels.triton.rope.rotate_and_store makes of `fresh`. No row comes twice.
        short: the form for rows of few keys, if there is one; it gives the same bits.
        """
        ...

    def short_keys(self, entries: int) -> int:
        """Up to how many keys of each row the form for few is the faster one; 0: there is none."""
        ...


@runtime_checkable
class MayRotate(Protocol):
    """A backend that is a `RotatingBackend`, or may have one among its parts."""

    def rotating(self, entries: int) -> RotatingBackend | None:
        """Whose `decode_fresh` serves steps of so many single queries, once this backend has planned them; or
        None: they are rotated first."""
        ...


def rotating(attention: AttentionBackend, entries: int) -> RotatingBackend | None:
    """See `MayRotate.rotating`; None for backends that have nothing of the kind."""
    return attention.rotating(entries) if isinstance(attention, MayRotate) else None


def short_keys(attention: AttentionBackend, entries: int) -> int:
    """See `RotatingBackend.short_keys`; 0 for backends that do not rotate steps of so many single queries."""
    inside = rotating(attention, entries)
    return 0 if inside is None else inside.short_keys(entries)


__all__ = ["AttentionBackend", "AttentionSpec", "MayRotate", "RotatingBackend", "rotating", "short_keys"]
