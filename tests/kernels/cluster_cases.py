"""Batches of rows for decode attention by clusters, its partition of keys, and its arithmetic in torch."""

from dataclasses import dataclass

import torch

from kernels.cluster import LOG2_E, TILE
from tests.kernels.triton.paged import Paged, assert_close, exact_attention, fused_queries, ints, paged

LOWEST = -3.0e38  # attention_tile.cu's


@dataclass(slots=True)
class Batch:
    """Entries in an order that is not the rows', with padding at both ends."""

    pages: Paged
    query: torch.Tensor
    rows: torch.Tensor
    positions: torch.Tensor
    out: torch.Tensor

    @classmethod
    def of(
        cls,
        contexts: list[int],
        heads: int,
        kv_heads: int,
        head_dim: int,
        block: int,
        heads_first: bool,
        fp8_kv: bool = False,
    ) -> "Batch":
        """out: poisoned, the leading columns of a wider buffer. A query is at its row's last position."""
        pages = paged(
            contexts, kv_heads, head_dim, block, torch.bfloat16, heads_first=heads_first, eight_bits=fp8_kv
        )
        order = [-1, *reversed(range(len(contexts))), -1]
        query = fused_queries(len(order), heads, kv_heads, head_dim, torch.bfloat16)
        # Padding's query, position and result may be anything.
        query[0] = float("nan")
        positions = ints([contexts[row] - 1 if row >= 0 else 12345 for row in order])
        wide = torch.full((len(order), heads * head_dim + 8), float("nan"), dtype=torch.bfloat16)
        return cls(pages, query, ints(order), positions, wide.to(query.device)[:, : heads * head_dim])

    def cpu(self) -> "Batch":
        pages, q = self.pages, self.query.cpu()
        keys, values = ([x.cpu() for x in many] for many in (pages.keys, pages.values))
        scales = None if pages.scales is None else (pages.scales[0].cpu(), pages.scales[1].cpu())
        moved = Paged(pages.k_pages.cpu(), pages.v_pages.cpu(), pages.tables.cpu(), keys, values, scales)
        return Batch(moved, q, self.rows.cpu(), self.positions.cpu(), self.out.cpu())

    def check(self, scale: float, window: int | None) -> None:
        """Against float64; padding's results must have been left alone."""
        exact, actual = [], []
        for entry, (row, position) in enumerate(
            zip(self.rows.tolist(), self.positions.tolist(), strict=True)
        ):
            if row < 0:
                assert self.out[entry].isnan().all()
                continue
            keys, values = self.pages.keys[row][: position + 1], self.pages.values[row][: position + 1]
            query = self.query[entry : entry + 1]
            exact.append(exact_attention(query, keys, values, position, scale, window))
            actual.append(self.out[entry : entry + 1])
            assert_close(actual[-1], exact[-1])
        assert_close(torch.cat(actual), torch.cat(exact))


def stretches(position: int, window: int | None, cluster: int, warps: int) -> list[list[range]]:
    """The tiles of each warp of each block, as cluster_decode.cu deals them out."""
    end, seen = position + 1, 0 if window is None else max(position - window, 0)
    first, last = seen // TILE, -(-end // TILE)
    length = -(-(last - first) // cluster)
    starts = [first + rank * length for rank in range(cluster)]
    return [
        [range(start + warp, min(start + length, last), warps) for warp in range(warps)] for start in starts
    ]


Part = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # maximum [group], sum [group], accumulator [group, D]


def merged(parts: list[Part]) -> Part:
    """Parts in their order."""
    most = torch.stack([part[0] for part in parts]).amax(0)
    total, mixed = torch.zeros_like(most), torch.zeros_like(parts[0][2])
    for peak, count, value in parts:
        weight = torch.exp2(peak - most)
        total += weight * count
        mixed += weight[:, None] * value
    return most, total, mixed


def twin(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    position: int,
    scale: float,
    window: int | None,
    cluster: int,
    warps: int,
) -> torch.Tensor:
    """query: [heads, D]; keys, values: [context, kv_heads, D]. [heads * D]: the kernel's sums tile by tile,
    with its rounding and in its order, but for the order inside one product of matrices."""
    heads, group = query.size(0), query.size(0) // keys.size(1)
    seen = 0 if window is None else max(position - window, 0)
    results = []
    for kv_head in range(keys.size(1)):
        mine = query[kv_head * group : (kv_head + 1) * group].float()
        blocks = []
        for block in stretches(position, window, cluster, warps):
            parts = []
            for tiles in block:
                most, total = torch.full((group,), LOWEST), torch.zeros(group)
                mixed = torch.zeros(group, query.size(1))
                for tile in tiles:
                    there = slice(max(tile * TILE, seen), min(tile * TILE + TILE, position + 1))
                    score = mine @ keys[there, kv_head].float().T * (scale * LOG2_E)
                    peak = torch.maximum(most, score.amax(1))
                    fade = torch.exp2(most - peak)
                    weight = torch.exp2(score - peak[:, None]).bfloat16().float()
                    total = total * fade + weight.sum(1)
                    mixed = mixed * fade[:, None] + weight @ values[there, kv_head].float()
                    most = peak
                parts.append((most, total, mixed))
            blocks.append(merged(parts))
        _, total, mixed = merged(blocks)
        results.append(mixed / total[:, None])
    return torch.cat(results).bfloat16().view(heads * query.size(1))
