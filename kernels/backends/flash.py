"""Attention by FlashAttention 2, 3 or 4, whichever copy is installed.

The libraries differ in names more than in meaning: each is wrapped as one function over a step's queries,
paged keys, and a table with one row per sequence of the call.
"""

import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Protocol

import torch

from kernels.backends.base import AttentionSpec
from kernels.caps import FLASH_MODULES, FlashName, package_version
from kernels.kv8 import Scales

Window = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Call:
    """One call. q, out: [tokens, heads, head_dim]. table: [sequences, blocks]. cu_queries: [sequences + 1].
    lengths: [sequences], keys of each. most_queries, most_keys: bounds that hold for every replay. splits: 0
    lets the library decide."""

    q: torch.Tensor
    k_pages: torch.Tensor
    v_pages: torch.Tensor
    table: torch.Tensor
    cu_queries: torch.Tensor
    lengths: torch.Tensor
    out: torch.Tensor
    most_queries: int
    most_keys: int
    scale: float
    window: int | None
    splits: int

    @property
    def span(self) -> Window:
        """Keys left and right of a query's own, -1 for all."""
        return (-1 if self.window is None else self.window, 0)


class Attend(Protocol):
    def __call__(self, call: Call) -> torch.Tensor:
        """Returns [tokens, heads, head_dim], which may be call.out itself."""
        ...


def _fa3_of_vllm(module: ModuleType) -> Attend:
    def attend(call: Call) -> torch.Tensor:
        module.flash_attn_varlen_func(
            call.q,
            call.k_pages,
            call.v_pages,
            max_seqlen_q=call.most_queries,
            cu_seqlens_q=call.cu_queries,
            max_seqlen_k=call.most_keys,
            seqused_k=call.lengths,
            softmax_scale=call.scale,
            causal=True,
            window_size=list(call.span) if call.window is not None else None,
            block_table=call.table,
            out=call.out,
            num_splits=call.splits,
            fa_version=3,
        )
        return call.out

    return attend


def _fa3(module: ModuleType) -> Attend:
    def attend(call: Call) -> torch.Tensor:
        result: torch.Tensor = module.flash_attn_with_kvcache(
            call.q,
            call.k_pages,
            call.v_pages,
            cache_seqlens=call.lengths,
            page_table=call.table,
            cu_seqlens_q=call.cu_queries,
            max_seqlen_q=call.most_queries,
            softmax_scale=call.scale,
            causal=True,
            window_size=call.span if call.window is not None else (-1, -1),
            num_splits=call.splits,
        )
        return result

    return attend


def _fa4(module: ModuleType) -> Attend:
    def attend(call: Call) -> torch.Tensor:
        result = module.flash_attn_varlen_func(
            call.q,
            call.k_pages,
            call.v_pages,
            cu_seqlens_q=call.cu_queries,
            max_seqlen_q=call.most_queries,
            max_seqlen_k=call.most_keys,
            seqused_k=call.lengths,
            page_table=call.table,
            softmax_scale=call.scale,
            causal=True,
            window_size=call.span if call.window is not None else (None, None),
            # Any other number is refused on Hopper, where the library cannot split.
            num_splits=1,
        )
        out: torch.Tensor = result[0] if isinstance(result, tuple) else result
        return out

    return attend


def _fa2(module: ModuleType) -> Attend:
    def attend(call: Call) -> torch.Tensor:
        cu_keys = torch.nn.functional.pad(call.lengths.cumsum(0, dtype=torch.int32), (1, 0))
        result: torch.Tensor = module.flash_attn_varlen_func(
            call.q,
            call.k_pages,
            call.v_pages,
            call.cu_queries,
            cu_keys,
            call.most_queries,
            call.most_keys,
            softmax_scale=call.scale,
            causal=True,
            window_size=call.span if call.window is not None else (-1, -1),
            block_table=call.table,
        )
        return result

    return attend


# How each module's function is called, and what it is.
WRAPPERS: dict[str, tuple[str, Callable[[ModuleType], Attend]]] = {
    "flash_attn_interface": ("flash_attn_with_kvcache", _fa3),
    "flash_attn_3.flash_attn_interface": ("flash_attn_with_kvcache", _fa3),
    "vllm.vllm_flash_attn": ("flash_attn_varlen_func", _fa3_of_vllm),
    "flash_attn.cute": ("flash_attn_varlen_func", _fa4),
    "flash_attn": ("flash_attn_varlen_func", _fa2),
}


def load(name: FlashName) -> tuple[Attend, str] | str:
    """The library's function and its version, or why there is none: this imports it."""
    reasons: list[str] = []
    for module_name in FLASH_MODULES[name]:
        function, wrap = WRAPPERS[module_name]
        try:
            module = sys.modules.get(module_name) or importlib.import_module(module_name)
        except Exception as error:  # a broken build raises whatever its extension does
            reasons.append(f"{module_name}: {type(error).__name__}: {error}")
            continue
        if not hasattr(module, function):
            reasons.append(f"{module_name} has no {function}")
            continue
        if module_name.startswith("vllm") and not getattr(module, "FA3_AVAILABLE", True):
            reasons.append(f"{module_name} was built without FlashAttention 3")
            continue
        return wrap(module), f"{package_version(module_name) or 'version unknown'} ({module_name})"
    return "; ".join(reasons)


def _whole(scales: Scales | None) -> None:
    if scales is not None:  # whoever chooses backends knows (kernels.registry)
        raise ValueError("FlashAttention reads no keys and values with a scale for each token")


class FlashBackend:
    """A library behind our interface. The tables of a call's rows are gathered once per step, at its first
    layer."""

    capture_safe = True

    def __init__(self, name: FlashName, spec: AttentionSpec, attend: Attend, version: str) -> None:
        self.name: str = name
        self.version = version
        self.spec = spec
        self._attend = attend
        self._fresh: set[str] = set()
        self._buffers: dict[str, torch.Tensor] = {}
        self._lengths: dict[str, torch.Tensor] = {}
        self._borders = torch.arange(spec.max_rows + 1, dtype=torch.int32, device=spec.device)

    def plan(
        self, rows: torch.Tensor, positions: torch.Tensor, *, window: int | None, pdl: bool = False
    ) -> None:
        self._fresh.clear()

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
        entries = rows.size(0)
        if not entries:
            return
        _whole(scales)
        table, lengths = self._gather("decode", block_tables, rows, positions, 1)
        view = out.view(q.shape)
        call = Call(
            q=q,
            k_pages=k_pages,
            v_pages=v_pages,
            table=table,
            cu_queries=self._borders[: entries + 1],
            lengths=lengths,
            out=view,
            most_queries=1,
            most_keys=block_tables.size(1) * k_pages.size(1),
            scale=scale,
            window=window,
            splits=0,
        )
        result = self._attend(call)
        if result is not view:
            view.copy_(result)

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
        tokens, chunks = q.size(0), chunk_rows.size(0)
        if not chunks:
            return
        _whole(scales)
        table, lengths = self._gather("prefill", block_tables, chunk_rows, contexts, 0)
        view = out.view(q.shape)
        call = Call(
            q=q,
            k_pages=k_pages,
            v_pages=v_pages,
            table=table,
            cu_queries=cu_queries,
            lengths=lengths,
            out=view,
            most_queries=tokens,
            most_keys=block_tables.size(1) * k_pages.size(1),
            scale=scale,
            window=window,
            splits=1,
        )
        result = self._attend(call)
        if result is not view:
            token = torch.arange(tokens, dtype=torch.int32, device=q.device)
            mine = (token >= cu_queries[0]) & (token < cu_queries[chunks])
            view.copy_(torch.where(mine[:, None, None], result, view))

    def _gather(
        self, kind: str, block_tables: torch.Tensor, rows: torch.Tensor, counts: torch.Tensor, extra: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Table rows and key counts (counts + extra) of the rows; 0 keys for padding."""
        size = rows.size(0)
        if kind not in self._buffers:
            shape = (self.spec.max_rows, block_tables.size(1))
            self._buffers[kind] = block_tables.new_zeros(shape)
            self._lengths[kind] = block_tables.new_zeros(self.spec.max_rows)
        table, lengths = self._buffers[kind][:size], self._lengths[kind][:size]
        if kind not in self._fresh:
            torch.index_select(block_tables, 0, rows.clamp(min=0), out=table)
            torch.mul(counts.clamp(min=-extra) + extra, rows >= 0, out=lengths)
            self._fresh.add(kind)
        return table, lengths
