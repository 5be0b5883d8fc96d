"""Rotation and the write of keys and values in front of decode attention, and inside of it, for
`benchmarks.attention`."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

import torch

from benchmarks.attention_bench import Bench, Layer, Pool, relative
from benchmarks.attention_cases import Heads, KvKind, Row, Shape
from engine.gpu.network import programmatic_launch
from kernels.paged_decode import PagedDecode, Variant
from kernels.paged_decode import Shape as ModelShape
from kernels.rope import rope_table
from kernels.triton.decode import DecodeWorkspace, Fresh, paged_decode, plan_decode
from kernels.triton.rope import RotarySpec, rotate_and_store

MULTIPROCESSOR_BYTES = 228 << 10
FORMS = [(8, 1), (8, 2), (4, 2), (4, 3), (2, 3), (2, 4), (1, 3), (1, 4)]  # warps of a block, stages
FORMS_FP8 = [(8, 2), (8, 3), (4, 3), (4, 6), (2, 4), (2, 6), (1, 4), (1, 6)]


def variants(rows: int, kernel: PagedDecode, sweep: bool) -> Iterator[Variant]:
    """How the CUDA kernel runs first, then the sweep's."""
    first = kernel.variant(rows)
    if first is not None:
        yield first
    if not sweep:
        return
    for (warps, stages), busy, tiles in product(
        FORMS_FP8 if kernel.shape.fp8_kv else FORMS, (4, 8, 16), (1, 4)
    ):
        variant = Variant(warps, stages, max(1, busy // warps), tiles)
        if (
            variant.shared_bytes(kernel.shape) + 1024 <= MULTIPROCESSOR_BYTES // max(1, 8 // warps)
            and busy >= warps
        ):
            yield variant


@dataclass(slots=True)
class CudaLayers:
    """A shape's layers by the CUDA kernel, which reads keys before the launch in front of it has ended."""

    bench: Bench
    pool: Pool
    fresh: Fresh
    kernel: PagedDecode
    out: torch.Tensor

    def space(self, variant: Variant | None = None) -> DecodeWorkspace:
        """Planned; without a variant as Triton's kernel wants it."""
        spec, pool = self.pool.spec, self.pool
        model = (spec.heads, spec.kv_heads, spec.head_dim, spec.max_context, self.bench.device)
        config = variant.plan if variant else None
        dtype = pool.layers[0].keys.dtype
        space = DecodeWorkspace.allocate(len(pool.rows), *model, dtype=dtype, config=config)
        plan_decode(pool.rows, pool.contexts - 1, space, window=None)
        return space

    def given(self, layer: Layer) -> tuple[torch.Tensor, ...]:
        pool = self.pool
        return self.fresh.query, layer.keys, layer.values, pool.tables, pool.rows, pool.contexts - 1

    def right(self) -> torch.Tensor:
        """What Triton's kernel makes of the first layer."""
        first, out = self.pool.layers[0], torch.empty_like(self.out)
        scale = self.pool.spec.head_dim**-0.5
        how = {"scale": scale, "window": None, "scales": first.scales, "fresh": self.fresh}
        paged_decode(*self.given(first), out, self.space(), **how)
        return out

    def timed(self, variant: Variant, early: bool) -> float:
        """Seconds a layer; `out` is the first one's afterwards."""
        self.kernel.forced = variant
        space, layers, scale = self.space(variant), self.pool.layers, self.pool.spec.head_dim**-0.5
        given = [self.given(layer) for layer in layers]

        def attend(number: int, ahead: bool) -> None:
            how = {"scale": scale, "window": None, "scales": layers[number].scales, "fresh": self.fresh}
            self.kernel.decode(*given[number], self.out, space, ahead=ahead, pdl=early, **how)

        attend(0, False)
        every = range(len(layers))
        seconds = self.bench.time(lambda: [attend(number, early and number > 0) for number in every])
        self.out.fill_(float("nan"))
        attend(0, False)
        return seconds / len(layers)


def bench_cuda(bench: Bench, pool: Pool, fresh: Fresh, shape: Shape, kv: KvKind, sweep: bool) -> None:
    """The same by the CUDA kernel; beside it how far it is off from Triton's."""
    spec, heads = pool.spec, (pool.spec.heads, pool.spec.kv_heads)
    kernel = PagedDecode(ModelShape(*heads, spec.head_dim, spec.block_size, spec.fp8_kv), bench.device)
    out = torch.empty(shape[0], heads[0] * spec.head_dim, device=bench.device).bfloat16()
    layers = CudaLayers(bench, pool, fresh, kernel, out)
    right = layers.right()

    def row_for(who: str, variant: Variant, early: bool) -> Row:
        sizes = (variant.warps, variant.stages, variant.units, variant.tiles)
        about = "{} warps, {} stages, {} units, {} tiles".format(*sizes)
        row = Row("rotation", who, heads, shape, kv=kv, config=about)
        bench.attempt(row, lambda: layers.timed(variant, early))
        if row.us is not None:
            row.gb_s = pool.bytes / row.us / 1e3
            row.share = row.gb_s * 1e9 / bench.bandwidth
            row.off = relative(out, right)
        bench.rows.append(row)
        return row

    found: list[tuple[float, int, Variant]] = []
    for number, variant in enumerate(variants(shape[0], kernel, sweep)):
        if number and bench.late:
            bench.left_out += 1
            continue
        row = row_for("sweep" if number else "cuda", variant, True)
        if row.us is not None and row.off is not None and row.off < 1e-2:
            found.append((row.us, number, variant))
    if found:
        row_for("cuda, best", min(found)[2], True)
        row_for("cuda, best, not early", min(found)[2], False)


def bench_rotation(bench: Bench, heads: Heads, shape: Shape, kv: KvKind = "bf16") -> tuple[Pool, Fresh]:
    """Microseconds of a layer's two kernels, and of the one that does the work of both, as nanochat rotates;
    launched early where the device can. Beside the one stands how far it is off from the two. Returns what
    they were given.
    """
    pool, rows = bench.pool(heads, shape, kv), shape[0]
    spec, first, device = pool.spec, pool.layers[0], bench.device
    dim, positions, pdl = spec.head_dim, pool.contexts - 1, programmatic_launch(device)
    blocks = pool.tables.gather(1, (positions // spec.block_size).long()[:, None])[:, 0]
    table = rope_table(spec.max_context, dim, 1e4, torch.float32, device)
    fresh = Fresh(
        torch.randn(rows, (heads[0] + 2 * heads[1]) * dim, device=device).bfloat16(),
        (blocks * spec.block_size + positions % spec.block_size).int(),
        *table,
        RotarySpec(*heads, dim, "rope_norm", 1e-6, 1.2),
    )
    # Those queries are turned in place, again and again.
    turned = replace(fresh, qkv=fresh.qkv.clone())
    space = DecodeWorkspace.allocate(rows, *heads, dim, spec.max_context, device, dtype=first.keys.dtype)
    plan_decode(pool.rows, positions, space, window=None)

    def attend(layer: Layer, inside: bool, out: torch.Tensor) -> None:
        given, pages = fresh if inside else turned, (layer.keys, layer.values)
        if not inside:
            rotate_and_store(
                *(given.qkv, positions, given.slots, *table, *pages, given.spec),
                scales=layer.scales,
                pdl=pdl,
            )
        paged_decode(
            *(given.query, *pages, pool.tables, pool.rows, positions, out, space),
            scale=dim**-0.5,
            window=None,
            scales=layer.scales,
            fresh=fresh if inside else None,
            pdl=pdl,
        )

    outs = [torch.full((rows, heads[0] * dim), float("nan"), device=device).bfloat16() for _ in range(2)]

    def timed(inside: bool) -> float:
        attend(first, inside, outs[inside])
        rest = torch.empty_like(outs[inside])
        return bench.time(lambda: [attend(layer, inside, rest) for layer in pool.layers]) / len(pool.layers)

    for inside, name in ((False, "in front"), (True, "inside")):
        row = Row("rotation", name, heads, shape, kv=kv, config="launched early" if pdl else "")
        bench.attempt(row, lambda inside=inside: timed(inside))
        if row.us is not None:
            row.gb_s = pool.bytes / row.us / 1e3
            row.share = row.gb_s * 1e9 / bench.bandwidth
            row.off = relative(outs[1], outs[0]) if inside else None
        bench.rows.append(row)
    return pool, fresh
