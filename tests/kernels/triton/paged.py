"""Paged keys and values for tests of attention, and exact attention over them."""

import random
from collections.abc import Iterable
from dataclasses import dataclass, field

import pytest
import torch
from _pytest.mark import ParameterSet

from kernels.kv8 import Scales, dequantize_kv, quantize_kv
from tests.kernels.triton.device import DEVICE, ints, poisoned, randn

REL_L2 = {torch.bfloat16: 5e-3, torch.float32: 2e-6}


@dataclass(slots=True)
class Paged:
    """Rows of the given contexts. keys, values: per row [context, kv_heads, head_dim], what the pages
    hold. scales: where they hold it in eight bits. whole_keys, whole_values: what it was before."""

    k_pages: torch.Tensor
    v_pages: torch.Tensor
    tables: torch.Tensor
    keys: list[torch.Tensor]
    values: list[torch.Tensor]
    scales: Scales | None = None
    whole_keys: list[torch.Tensor] = field(default_factory=list)
    whole_values: list[torch.Tensor] = field(default_factory=list)


def paged(
    contexts: list[int],
    kv_heads: int,
    head_dim: int,
    block_size: int,
    dtype: torch.dtype,
    *,
    heads_first: bool = False,
    spare_rows: int = 1,
    eight_bits: bool = False,
) -> Paged:
    """Pages in random order, every slot that holds nobody's key poisoned, those of block 0 included."""
    needed = [-(-context // block_size) for context in contexts]
    blocks = list(range(1, 1 + sum(needed)))
    random.Random(0).shuffle(blocks)
    memory = (len(blocks) + 1, block_size, kv_heads, head_dim)
    if heads_first:
        memory = (len(blocks) + 1, kv_heads, block_size, head_dim)
    k_pages, v_pages = (poisoned(*memory, dtype=dtype) for _ in range(2))
    if heads_first:
        k_pages, v_pages = k_pages.transpose(1, 2), v_pages.transpose(1, 2)
    tables = torch.zeros(len(contexts) + spare_rows, max(needed, default=0) + 1, dtype=torch.int32)
    keys, values = [], []
    for row, context in enumerate(contexts):
        mine = [blocks.pop() for _ in range(needed[row])]
        tables[row, : len(mine)] = torch.tensor(mine, dtype=torch.int32)
        keys.append(randn(context, kv_heads, head_dim, dtype=dtype, seed=2 * row + 1))
        values.append(randn(context, kv_heads, head_dim, dtype=dtype, seed=2 * row + 2))
        for first in range(0, context, block_size):
            block, count = mine[first // block_size], min(block_size, context - first)
            k_pages[block, :count] = keys[-1][first : first + count]
            v_pages[block, :count] = values[-1][first : first + count]
    cache = Paged(k_pages, v_pages, tables.to(DEVICE), keys, values)
    return in_eight_bits(cache, heads_first) if eight_bits else cache


def in_eight_bits(cache: Paged, heads_first: bool = False) -> Paged:
    """The same in eight bits; slots that hold nobody's key have poisoned scales, too."""

    def kept(pages: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        pages = pages.transpose(1, 2).contiguous() if heads_first else pages
        values, scales = quantize_kv(pages)
        nobodys = pages.isnan().any(dim=-1)
        values.view(torch.uint8)[nobodys] = 0x7F
        assert scales[nobodys].isnan().all()
        return (values.transpose(1, 2), scales.transpose(1, 2)) if heads_first else (values, scales)

    def read(rows: list[torch.Tensor]) -> list[torch.Tensor]:
        return [dequantize_kv(*quantize_kv(x)) for x in rows]

    (k_pages, k_scales), (v_pages, v_scales) = kept(cache.k_pages), kept(cache.v_pages)
    keys, values = read(cache.keys), read(cache.values)
    return Paged(k_pages, v_pages, cache.tables, keys, values, (k_scales, v_scales), cache.keys, cache.values)


def fused_queries(tokens: int, heads: int, kv_heads: int, head_dim: int, dtype: torch.dtype) -> torch.Tensor:
    """[tokens, heads, head_dim], the leading columns of a product that holds keys and values as well."""
    qkv = randn(tokens, (heads + 2 * kv_heads) * head_dim, dtype=dtype, seed=99)
    return qkv[:, : heads * head_dim].unflatten(1, (heads, head_dim))


def exact_attention(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    position: int,
    scale: float,
    window: int | None,
) -> torch.Tensor:
    """query: [count, heads, head_dim] at positions position.. ; [count, heads * head_dim] in float64."""
    count, heads, _ = query.shape
    group = heads // keys.size(1)
    wide_keys, wide_values = (x.double().repeat_interleave(group, dim=1) for x in (keys, values))
    scores = torch.einsum("qhd,khd->hqk", query.double(), wide_keys) * scale
    at = torch.arange(position, position + count, device=query.device)[:, None]
    key = torch.arange(keys.size(0), device=query.device)[None, :]
    hidden = key > at
    if window is not None:
        hidden |= key < at - window
    weights = torch.softmax(scores.masked_fill(hidden, float("-inf")), dim=-1)
    return torch.einsum("hqk,khd->qhd", weights, wide_values).flatten(1)


def assert_near_the_whole(actual: torch.Tensor, exact: torch.Tensor) -> None:
    """How far eight bits may be from what they stand for."""
    error = ((actual.double() - exact).norm() / exact.norm()).item()
    assert error <= 4e-2, f"relative error {error:.2e}"


def assert_close(actual: torch.Tensor, exact: torch.Tensor) -> None:
    assert torch.isfinite(actual).all(), "something that nobody wrote has leaked"
    difference = actual.double() - exact
    error = (difference.norm() / exact.norm()).item()
    assert error <= REL_L2[actual.dtype], f"relative error {error:.2e}"
    assert difference.abs().max() <= (2e-2 if actual.dtype == torch.bfloat16 else 2e-5)


__all__ = ["DEVICE", "Paged", "assert_close", "exact_attention", "fused_queries", "ints", "paged", "poisoned"]


def also_eight_bits(cases: Iterable[tuple[object, ...]], every: int = 5) -> list[ParameterSet]:
    """Cases, each over keys and values in full (False behind it) and in eight bits (True). Of the latter
    every so manieth is quick, and the others are slow: the same lines read the eight bits in each.
    """
    listed = list(cases)
    return [
        pytest.param(*case, eight_bits, marks=[pytest.mark.slow] if eight_bits and index % every else [])
        for eight_bits in (False, True)
        for index, case in enumerate(listed)
    ]
