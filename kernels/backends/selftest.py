"""A small problem that a library must solve as the reference does before it serves."""

from dataclasses import dataclass, replace

import torch

from kernels.backends.base import AttentionBackend, AttentionSpec
from kernels.backends.reference import TorchBackend
from kernels.kv8 import FORMAT, Scales, dequantize_kv, quantize_kv

TOLERANCE = 1e-2  # relative error in bfloat16; a wrong mask or table is far above
LONGEST = 70
CONTEXTS = (33, 5)  # of the rows behind the longest one
QUERIES = (40, 33, 1)  # of each row's chunk
WINDOW = 20


def fault(backend: AttentionBackend, spec: AttentionSpec, longest: int = LONGEST) -> str | None:
    """What is wrong with a backend's results on three rows, with and without a window; None if nothing is.

    The rows' blocks lie in reverse order; decode entries come in front of the chunks, with padding among
    both. longest: tokens of the first row, which is there however few rows the backend is for; a second
    window is half as long.
    """
    try:
        problem = Problem.of(spec, longest)
        reference = TorchBackend(replace(spec, max_rows=8))
        for window in windows(longest):
            ours, theirs = (problem.solve(candidate, window) for candidate in (backend, reference))
            for what, mine, right in zip(("decode", "prefill"), ours, theirs, strict=True):
                error = ((mine - right).norm() / right.norm()).item()
                if not error <= TOLERANCE:
                    return f"{what} with window {window} is off by {error:.2g}"
    except Exception as error:  # a library may raise anything, and must not end the start
        return f"{type(error).__name__}: {error}"
    return None


def windows(longest: int) -> list[int | None]:
    """Those that a fault is looked for with."""
    return list(dict.fromkeys((None, WINDOW, max(WINDOW, longest // 2 + 3))))


@dataclass(frozen=True, slots=True)
class Problem:
    """Keys and values in pages, and queries: `decodes` single ones, then a chunk for each of so many rows."""

    spec: AttentionSpec
    lengths: tuple[int, ...]
    decodes: int
    query: torch.Tensor
    pages: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
    scales: Scales | None

    @classmethod
    def of(cls, spec: AttentionSpec, longest: int) -> "Problem":
        device, size, lengths = spec.device, spec.block_size, (longest, *CONTEXTS)
        generator = torch.Generator(device).manual_seed(0)

        def random(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=generator, device=device).to(spec.dtype)

        rows, blocks = len(lengths), -(-longest // size)
        order = torch.arange(rows * blocks, 0, -1, dtype=torch.int32, device=device)
        shape = (rows * blocks + 1, spec.kv_heads, size, spec.head_dim)
        k_pages, v_pages = (random(*shape).transpose(1, 2) for _ in range(2))
        scales: Scales | None = None
        if spec.fp8_kv:
            # A head's numbers and scales of a block lie together, as in the engine's own cache.
            (k_pages, k_scales), (v_pages, v_scales) = (
                quantize_kv(pages.transpose(1, 2)) for pages in (k_pages, v_pages)
            )
            k_pages, v_pages = k_pages.transpose(1, 2), v_pages.transpose(1, 2)
            scales = k_scales.transpose(1, 2), v_scales.transpose(1, 2)
        decodes = min(rows, spec.max_rows)
        tokens, width = decodes + sum(QUERIES), spec.heads * spec.head_dim
        query = random(tokens, width + 64)[:, :width].view(tokens, spec.heads, spec.head_dim)
        return cls(spec, lengths, decodes, query, (k_pages, v_pages, order.view(rows, blocks)), scales)

    def kept(self, slots: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values at some slots, as they read."""
        size = self.spec.block_size
        at = [slot // size for slot in slots], [slot % size for slot in slots]
        keys, values, _ = self.pages
        if self.scales is None:
            return keys[at], values[at]
        eight = (part.view(torch.int8)[at].view(FORMAT) for part in (keys, values))
        keys, values = (dequantize_kv(x, own[at]) for x, own in zip(eight, self.scales, strict=True))
        return keys, values

    def solve(self, backend: AttentionBackend, window: int | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Results of the decode entries and of the chunks, float32."""
        spec, lengths, decodes, query = self.spec, self.lengths, self.decodes, self.query

        def ints(values: list[int]) -> torch.Tensor:
            return torch.tensor(values, dtype=torch.int32, device=spec.device)

        out = torch.zeros(query.size(0), spec.heads * spec.head_dim, dtype=spec.dtype, device=spec.device)
        rows, scale = ints([0, -1, 2][:decodes]), spec.head_dim**-0.5
        positions = ints([lengths[0] - 1, 0, lengths[2] - 1][:decodes])
        single = slice(0, decodes)
        backend.plan(rows, positions, window=window)
        backend.decode(
            query[single],
            *self.pages,
            rows,
            positions,
            out[single],
            scale=scale,
            window=window,
            scales=self.scales,
        )
        borders = [decodes]
        for count in QUERIES[:decodes]:
            borders.append(borders[-1] + count)
        chunks, contexts = ints(list(range(decodes))), ints(list(lengths[:decodes]))
        backend.prefill(
            query,
            *self.pages,
            chunks,
            ints(borders),
            contexts,
            out,
            scale=scale,
            window=window,
            scales=self.scales,
        )
        keep = [entry for entry in range(decodes) if entry != 1]
        return out[keep].float(), out[decodes : borders[-1]].float()
