"""What the CUDA kernel of decode attention must get right before it serves."""

from dataclasses import replace

import torch

from kernels.backends.base import AttentionBackend, AttentionSpec
from kernels.backends.cuda import CudaBackend, kernel_for
from kernels.backends.reference import TorchBackend
from kernels.backends.selftest import CONTEXTS, TOLERANCE, Problem, fault
from kernels.cluster import TILE
from kernels.fused import rotate_and_store
from kernels.rope import rope_table
from kernels.triton.decode import Fresh
from kernels.triton.rope import RotarySpec

LAUNCHES = 3  # behind one plan; all but the first read keys early
EPS, QK_SCALE = 1e-6, 1.2


def cuda_fault(spec: AttentionSpec) -> str | None:
    """What is wrong with any of the kernels that serve such a model; None if nothing is. Buffers are
    their own: what a test leaves is not to be found by the first step. Raises as `CudaBackend` does.
    """
    kernel = kernel_for(spec)
    kernel.prepare(spec.max_rows)  # all forms at one time
    for variant in kernel.variants(spec.max_rows):
        kernel.forced = variant
        tested = CudaBackend(spec, kernel)
        # Every warp fills each of its stages several times, and rows are cut into several units.
        longest = 3 * TILE * variant.warps * (variant.stages + 1) - 5
        reason = fault(_DecodesOnly(spec, tested), spec, longest) or fresh_fault(tested, spec, longest)
        if reason is not None:
            return f"{variant}: {reason}"
    return None


class _DecodesOnly(TorchBackend):
    """Chunks are the reference's, so that no kernel for them has to be compiled."""

    def __init__(self, spec: AttentionSpec, decodes: AttentionBackend) -> None:
        super().__init__(spec)
        self.plan = decodes.plan  # type: ignore[method-assign]
        self.decode = decodes.decode  # type: ignore[method-assign]


def fresh_fault(backend: CudaBackend, spec: AttentionSpec, longest: int) -> str | None:
    """What is wrong with what it finds and keeps where it rotates for itself; None if nothing is."""
    try:
        return _fresh_fault(backend, spec, longest)
    except Exception as error:  # as in `fault`
        return f"{type(error).__name__}: {error}"


def _fresh_fault(backend: CudaBackend, spec: AttentionSpec, longest: int) -> str | None:
    ours, theirs = Problem.of(spec, longest), Problem.of(spec, longest)
    size, device, dim = spec.block_size, spec.device, spec.head_dim
    entries = [(0, longest - 1), (-1, 0), (2, CONTEXTS[-1] - 1)][: ours.decodes]  # row and position
    live = [entry for entry, (row, _) in enumerate(entries) if row >= 0]
    tables = ours.pages[2].tolist()
    slots = [tables[row][at // size] * size + at % size if row >= 0 else -1 for row, at in entries]

    def ints(values: list[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int32, device=device)

    rows, positions, places = ints([row for row, _ in entries]), ints([at for _, at in entries]), ints(slots)
    table = rope_table(longest, dim, 1e4, torch.float32, device)
    about = RotarySpec(spec.heads, spec.kv_heads, dim, "rope_norm", EPS, QK_SCALE)
    reference, generator = TorchBackend(replace(spec, max_rows=8)), torch.Generator(device).manual_seed(1)
    backend.plan(rows, positions, window=None)
    for launch in range(LAUNCHES):
        width = (spec.heads + 2 * spec.kv_heads) * dim
        qkv = torch.randn(len(entries), width, generator=generator, device=device).to(spec.dtype)
        mine = torch.zeros(len(entries), spec.heads * dim, dtype=spec.dtype, device=device)
        right, how = torch.zeros_like(mine), {"scale": dim**-0.5, "window": None}
        fresh = Fresh(qkv, places, *table, about)
        backend.decode_fresh(fresh, *ours.pages, rows, positions, mine, scales=ours.scales, pdl=True, **how)
        keys, values, _ = theirs.pages
        query = rotate_and_store(qkv, positions, places, *table, keys, values, about, scales=theirs.scales)
        reference.decode(query, *theirs.pages, rows, positions, right, scales=theirs.scales, **how)
        kept = [slots[entry] for entry in live]
        pairs = [(mine[live], right[live]), *zip(ours.kept(kept), theirs.kept(kept), strict=True)]
        for what, (got, want) in zip(("attention", "keys", "values"), pairs, strict=True):
            error = ((got.float() - want.float()).norm() / want.float().norm()).item()
            if not error <= TOLERANCE:
                return f"{what} of projections, launch {launch + 1}, are off by {error:.2g}"
    return None
