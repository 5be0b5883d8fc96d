"""A small problem that a library must solve as the reference does before it serves."""

from dataclasses import replace

import torch

from kernels.backends.base import AttentionBackend, AttentionSpec
from kernels.backends.reference import TorchBackend

TOLERANCE = 1e-2  # relative error in bfloat16; a wrong mask or table is far above
LONGEST = 70
CONTEXTS = (33, 5)  # of the rows behind the longest one
QUERIES = (40, 33, 1)  # of each row's chunk
WINDOW = 20


def fault(backend: AttentionBackend, spec: AttentionSpec, longest: int = LONGEST) -> str | None:
    """What is wrong with a backend's results on three rows, with and without a window; None if nothing is.

    The rows' blocks lie in reverse order; decode entries come in front of the chunks, with padding among
    both. longest: tokens of the first row, of which a second window is half.
    """
    reference = TorchBackend(replace(spec, max_rows=8))
    try:
        for window in dict.fromkeys((None, WINDOW, max(WINDOW, longest // 2 + 3))):
            ours, theirs = (_run(candidate, spec, window, longest) for candidate in (backend, reference))
            for what, mine, right in zip(("decode", "prefill"), ours, theirs, strict=True):
                error = ((mine - right).norm() / right.norm()).item()
                if not error <= TOLERANCE:
                    return f"{what} with window {window} is off by {error:.2g}"
    except Exception as error:  # a library may raise anything, and must not end the start
        return f"{type(error).__name__}: {error}"
    return None


def _run(
    backend: AttentionBackend, spec: AttentionSpec, window: int | None, longest: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Results of the decode entries and of the chunks, float32."""
    lengths = (longest, *CONTEXTS)
    device, size, rows = spec.device, spec.block_size, len(lengths)
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(device, spec.dtype)

    def ints(values: list[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int32, device=device)

    blocks = -(-longest // size)
    order = list(range(rows * blocks, 0, -1))
    tables = torch.stack([ints(order[row * blocks : (row + 1) * blocks]) for row in range(rows)])
    shape = (rows * blocks + 1, spec.kv_heads, size, spec.head_dim)
    k_pages, v_pages = (random(*shape).transpose(1, 2) for _ in range(2))
    decodes = min(rows, spec.max_rows)
    tokens = decodes + sum(QUERIES)
    width = spec.heads * spec.head_dim
    query = random(tokens, width + 64)[:, :width].view(tokens, spec.heads, spec.head_dim)
    out = torch.zeros(tokens, width, dtype=spec.dtype, device=device)
    entry_rows, positions = ints([2, -1, 0][:decodes]), ints([lengths[2] - 1, 0, lengths[0] - 1][:decodes])
    pages, scale = (k_pages, v_pages, tables), spec.head_dim**-0.5
    backend.plan(entry_rows, positions, window=window)
    backend.decode(query[:decodes], *pages, entry_rows, positions, out[:decodes], scale=scale, window=window)
    chunks = min(rows, spec.max_rows)
    borders = [decodes]
    for count in QUERIES[:chunks]:
        borders.append(borders[-1] + count)
    chunk_rows, contexts = ints(list(range(chunks))), ints(list(lengths[:chunks]))
    backend.prefill(query, *pages, chunk_rows, ints(borders), contexts, out, scale=scale, window=window)
    keep = [entry for entry in range(decodes) if entry != 1]
    return out[keep].float(), out[decodes : borders[-1]].float()
