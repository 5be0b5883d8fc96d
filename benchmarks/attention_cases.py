"""What `benchmarks.attention` measures, what it tries, and the figures to beat (FlashAttention 3 in vllm
0.26)."""

from dataclasses import dataclass
from typing import Literal

from kernels.triton.decode import DecodeConfig
from kernels.triton.prefill_config import PrefillConfig

Heads = tuple[int, int]  # of queries, of keys and values
Shape = tuple[int, int]  # rows and context
KvKind = Literal["bf16", "fp8"]

# Microseconds of FlashAttention 3, page 16, CUDA graph, H200, 4.46 TB/s.
PEER_DECODE: dict[Heads, dict[Shape, float]] = {
    (16, 16): {
        (1, 128): 8.6, (1, 512): 12.0, (1, 1024): 13.5, (1, 2048): 15.2, (1, 8192): 27.2,
        (4, 128): 8.8, (4, 512): 13.7, (4, 1024): 18.8, (4, 2048): 26.9, (4, 8192): 72.6,
        (8, 128): 10.9, (8, 512): 15.7, (8, 1024): 26.3, (8, 2048): 41.7,
        (64, 128): 36.6, (64, 512): 79.7, (64, 1024): 141.6,
        (256, 128): 121.6,
    },
    (32, 8): {
        (1, 128): 7.6, (1, 512): 11.2, (1, 1024): 12.0, (1, 2048): 13.9, (1, 8192): 19.5,
        (8, 128): 9.0, (8, 512): 13.4, (8, 1024): 19.1, (8, 2048): 27.7,
        (64, 128): 22.4, (64, 512): 46.2, (64, 1024): 80.1, (64, 2048): 139.1,
        (256, 128): 68.0,
    },
}  # fmt: skip
PEER_PREFILL: dict[Shape, float] = {
    (1, 512): 68,
    (4, 512): 173,
    (1, 2048): 412,
    (4, 2048): 460,
    (1, 8192): 606,
}
TARGETS: dict[Shape, float] = {(256, 128): 72, (64, 512): 70, (8, 1024): 19, (1, 512): 4}
FIRST = [*TARGETS, (64, 1024)]  # measured before the rest, should time run out

SINGLE = [
    DecodeConfig(block_keys=32),
    DecodeConfig(block_keys=16),
    DecodeConfig(block_keys=16, prefetch=True),
    DecodeConfig(block_keys=8, prefetch=True),
    DecodeConfig(block_keys=32, persistent=True),
    DecodeConfig(block_keys=64, num_warps=2),
    DecodeConfig(block_keys=32, num_warps=2, prefetch=True),
    DecodeConfig(block_keys=64, num_warps=4),
    DecodeConfig(block_keys=16, num_stages=3),
]
# Of eight bits: a tile takes twice the keys for the same bytes.
SINGLE_FP8 = [
    DecodeConfig(block_keys=64),
    DecodeConfig(block_keys=32),
    DecodeConfig(block_keys=32, prefetch=True),
    DecodeConfig(block_keys=16, prefetch=True),
    DecodeConfig(block_keys=64, num_warps=2),
]
GROUPED_FP8 = [
    DecodeConfig(block_keys=32, num_stages=3),
    DecodeConfig(block_keys=32, num_stages=1),
    DecodeConfig(block_keys=64, num_warps=4, num_stages=3),
    DecodeConfig(block_keys=64, num_warps=2, num_stages=2),
]
GROUPED = [
    DecodeConfig(block_keys=64, num_warps=4, num_stages=3),
    DecodeConfig(block_keys=64, num_warps=4, num_stages=2),
    DecodeConfig(block_keys=32, num_warps=4, num_stages=3),
    DecodeConfig(block_keys=32, num_warps=2, num_stages=3),
    DecodeConfig(block_keys=32, num_warps=1, num_stages=3),
    DecodeConfig(block_keys=32, num_warps=1, num_stages=1),
    DecodeConfig(block_keys=128, num_warps=4, num_stages=2),
]
CUTS = [(32, 2), (32, 4), (32, 8), (64, 4), (64, 8), (128, 4), (128, 8), (128, 16), (512, 16)]
PREFILL = [
    PrefillConfig(128, 128, 8, 2),
    PrefillConfig(128, 64, 8, 3),
    PrefillConfig(128, 64, 8, 2),
    PrefillConfig(128, 128, 8, 3),
    PrefillConfig(64, 64, 4, 3),
    PrefillConfig(64, 64, 4, 2),
    PrefillConfig(128, 64, 4, 3),
    PrefillConfig(128, 64, 8, 4),
    PrefillConfig(128, 128, 8, 2, section=2),
    PrefillConfig(128, 128, 8, 2, section=16),
]
# Queries at the end of a context, as a step prefills them beside rows that decode.
CHUNK_SHAPES: list[Shape] = [(32, 2048), (128, 2048), (256, 2048), (512, 2048), (256, 8192)]
CHUNKS = [
    PrefillConfig(block_m, 64, warps, 2, splits=splits)
    for block_m, warps in ((16, 4), (64, 4))
    for splits in (1, 2, 4, 8)
]


@dataclass(slots=True)
class Row:
    """One case. us: of a layer; figures are None where it failed. config: how it was cut, where that is
    ours. kv: what keys and values are kept in."""

    kind: str
    who: str
    heads: Heads
    shape: Shape
    us: float | None = None
    gb_s: float | None = None
    share: float | None = None
    tflop_s: float | None = None
    peer: float | None = None
    config: str = ""
    off: float | None = None  # relative difference from the reference
    error: str | None = None
    kv: KvKind = "bf16"


def candidates(group: int, kv: KvKind) -> list[DecodeConfig]:
    """What a sweep tries for decode attention."""
    if kv == "fp8":
        return SINGLE_FP8 if group == 1 else GROUPED_FP8
    return SINGLE if group == 1 else GROUPED


def best_rows(rows: list[Row]) -> list[Row]:
    """What is worth printing: the default, the best, and the libraries, of each case."""
    kept = [row for row in rows if row.who != "sweep" or row.error]
    sweeps: dict[tuple[str, Heads, Shape, KvKind], Row] = {}
    for row in rows:
        key = (row.kind, row.heads, row.shape, row.kv)
        tried = row.kind != "decode" and row.who == "sweep" and row.us is not None
        if tried and (key not in sweeps or row.us < sweeps[key].us):
            sweeps[key] = row
    return sorted([*kept, *sweeps.values()], key=lambda row: (row.kind, row.heads, row.shape, row.kv))


def cells(row: Row) -> list[object]:
    ours = "" if row.us is None else row.us
    share = "" if row.share is None else f"{100 * row.share:.0f} %"
    speed = "" if row.tflop_s is None else f"{row.tflop_s:.0f}"
    peer = "" if row.peer is None else row.peer
    target = TARGETS.get(row.shape, "") if row.kind == "decode" and row.heads == (16, 16) else ""
    off = "" if row.off is None else f"{row.off:.1e}"
    shape, heads = f"{row.shape[0]} x {row.shape[1]}", f"{row.heads[0]}/{row.heads[1]}"
    return [
        row.kind,
        heads,
        shape,
        row.kv,
        row.who,
        ours,
        share,
        speed,
        peer,
        target,
        off,
        row.error or row.config,
    ]
