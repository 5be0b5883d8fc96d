"""Paged attention against float64, and its promise that a query's result does not depend on its company."""

import pytest
import torch

from kernels.attention import KVCache, Span, paged_attention, table_blocks

LENGTHS = [1, 2, 15, 16, 17, 63, 64, 65, 130, 300]


def exact(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, window: int | None) -> torch.Tensor:
    """Softmax attention of whole sequences in float64. q [n, heads, d]; k, v [n, kv_heads, d]."""
    n, heads, d = q.shape
    k, v = (t.double().repeat_interleave(heads // t.size(1), dim=1) for t in (k, v))
    scores = torch.einsum("qhd,khd->hqk", q.double(), k) / d**0.5
    distance = torch.arange(n).unsqueeze(1) - torch.arange(n).unsqueeze(0)
    visible = distance >= 0 if window is None else (distance >= 0) & (distance <= window)
    weights = scores.masked_fill(~visible, float("-inf")).softmax(-1)
    return torch.einsum("hqk,khd->qhd", weights, v)


class Pool:
    """Random sequences in a cache whose unused positions hold large leftovers."""

    def __init__(self, heads: int, kv_heads: int, d: int, block_size: int, *, in_place: bool = False) -> None:
        generator = torch.Generator().manual_seed(0)
        self.block_size = block_size
        self.in_place = in_place
        self.q = [torch.randn(n, heads, d, generator=generator) for n in LENGTHS]
        self.k = [torch.randn(n, kv_heads, d, generator=generator) for n in LENGTHS]
        self.v = [torch.randn(n, kv_heads, d, generator=generator) for n in LENGTHS]
        counts = [-(-n // block_size) for n in LENGTHS]
        self.cache = KVCache.allocate(1, 1 + sum(counts), block_size, kv_heads, d, torch.float32, "cpu")
        self.cache.keys.fill_(3e4)
        self.cache.values.fill_(-3e4)
        order = torch.arange(sum(counts)) if in_place else torch.randperm(sum(counts), generator=generator)
        blocks = (order + 1).split(counts)
        self.tables = [b.tolist() for b in blocks]
        for table, k, v in zip(self.tables, self.k, self.v, strict=True):
            positions = range(k.size(0))
            slots = [table[p // block_size] * block_size + p % block_size for p in positions]
            self.cache.write(0, torch.tensor(slots), k, v)

    def attend(self, pieces: list[tuple[int, int, int]], window: int | None) -> list[torch.Tensor]:
        """One call for pieces (sequence, first query, query count); the result of each."""
        spans, queries, start = [], [], 0
        for index, first, count in pieces:
            context = first + count
            used = -(-context // self.block_size)
            entries = table_blocks(context, self.block_size)
            table = self.tables[index][:used] + [0] * (entries - used)
            consecutive = table[:used] == list(range(table[0], table[0] + used))
            first_block = table[0] if consecutive and self.in_place else None
            spans.append(Span(start, count, context, torch.tensor(table), first_block))
            queries.append(self.q[index][first:context])
            start += count
        out = paged_attention(torch.cat(queries), self.cache, 0, spans, window)
        return list(out.split([count for _, _, count in pieces]))


@pytest.mark.parametrize("heads, kv_heads, d", [(4, 4, 64), (4, 2, 32), (8, 1, 16), (2, 2, 128)])
@pytest.mark.parametrize("window", [None, 5, 64])
@pytest.mark.parametrize("block_size", [1, 16, 24])
def test_matches_float64(heads: int, kv_heads: int, d: int, window: int | None, block_size: int) -> None:
    pool = Pool(heads, kv_heads, d, block_size)
    results = pool.attend([(i, 0, n) for i, n in enumerate(LENGTHS)], window)
    for result, q, k, v in zip(results, pool.q, pool.k, pool.v, strict=True):
        torch.testing.assert_close(result.double(), exact(q, k, v, window), rtol=0, atol=2e-6)


@pytest.mark.parametrize("heads, kv_heads, d", [(4, 4, 64), (4, 2, 32), (2, 2, 128)])
@pytest.mark.parametrize("window", [None, 37])
def test_a_query_does_not_depend_on_its_company(
    heads: int, kv_heads: int, d: int, window: int | None
) -> None:
    whole = Pool(heads, kv_heads, d, 16)
    expected = whole.attend([(i, 0, n) for i, n in enumerate(LENGTHS)], window)
    for block_size, chunk, in_place in (
        (16, 1, False), (1, 7, False), (32, 64, False), (16, 150, False), (16, 1, True), (8, 100, True)
    ):  # fmt: skip
        pool = Pool(heads, kv_heads, d, block_size, in_place=in_place)
        for index, n in enumerate(LENGTHS):
            pieces = [(index, first, min(chunk, n - first)) for first in range(0, n, chunk)]
            for piece, result in zip(pieces, pool.attend(pieces, window), strict=True):
                _, first, count = piece
                assert torch.equal(result, expected[index][first : first + count]), (block_size, piece)


def test_values_that_are_not_finite_do_not_outlive_their_sequence() -> None:
    """Its blocks go to the next sequence, whose masked positions still hold them."""
    pool = Pool(2, 2, 16, 16)
    expected = pool.attend([(1, 0, 2)], None)
    bad = torch.full((14, 2, 16), float("nan"))
    slots = torch.arange(2, 16) + pool.tables[1][0] * 16
    pool.cache.write(0, slots, bad, bad)
    assert torch.equal(pool.attend([(1, 0, 2)], None)[0], expected[0])
