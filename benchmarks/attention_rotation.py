"""Rotation and the write of keys and values in front of decode attention, and inside of it, for
`benchmarks.attention`."""

from dataclasses import replace

import torch

from benchmarks.attention_bench import Bench, Layer, relative
from benchmarks.attention_cases import Heads, KvKind, Row, Shape
from engine.gpu.network import programmatic_launch
from kernels.rope import rope_table
from kernels.triton.decode import DecodeWorkspace, Fresh, paged_decode, plan_decode
from kernels.triton.rope import RotarySpec, rotate_and_store


def bench_rotation(bench: Bench, heads: Heads, shape: Shape, kv: KvKind = "bf16") -> None:
    """Microseconds of a layer's two kernels, and of the one that does the work of both, as nanochat rotates;
    launched early where the device can. Beside the one stands how far it is off from the two.
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
