"""How decode attention is cut up and run, and which of it suits what shape."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class DecodeConfig:
    """block_keys: keys that a program holds at once. num_warps, num_stages: of a program; more than one
    stage copies tiles ahead through shared memory. prefetch: tiles ahead in registers instead (a group of
    one only). min_chunk: no unit is cut shorter. units_per_sm: units times kv heads that a step aims at per
    multiprocessor. persistent: a fixed number of programs takes the units in turn, instead of a program
    each.

    ValueError: sizes that are no powers of two, or not positive.
    """

    block_keys: int = 32
    num_warps: int = 1
    num_stages: int = 1
    prefetch: bool = False
    min_chunk: int = 32
    units_per_sm: int = 8
    persistent: bool = False

    def __post_init__(self) -> None:
        for name in ("block_keys", "num_warps"):
            value = getattr(self, name)
            if value < 1 or value & (value - 1):
                raise ValueError(f"{name} is {value}; it must be a power of two")
        if min(self.num_stages, self.min_chunk, self.units_per_sm) < 1:
            raise ValueError("num_stages, min_chunk and units_per_sm must be at least 1")


TILE = 8192  # bytes of keys that a program of one warp holds, in registers or in a stage of shared memory
FEW = 4  # entries; below, latency counts more than the number of merges
# Entries of a group of one. Up to the first bound a program's few tiles are best loaded at once; up to the
# second, smaller tiles with the next one on its way hide the waits; beyond, other programs do. Measured on
# an H200.
ALONE, ENOUGH = 2, 128


def config_for(group: int, head_dim: int, entries: int, itemsize: int) -> DecodeConfig:
    """The configuration for `group` query heads per kv head and a batch of `entries`, keys and values of
    `itemsize` bytes.

    Programs of one warp need no barriers, and many of them hide each other's waits: measured on an H200, two
    warps take half as long again for the same work, four more than twice as long.
    """
    # For products of a group, tiles of eight bits become bfloat16, and must have room then.
    width = itemsize if group == 1 else max(2, itemsize)
    keys = max(1 if group == 1 else 16, TILE // (head_dim * width))
    least, units = (keys, 6) if entries <= FEW else (max(64, keys), 8)
    if group == 1:
        if ALONE < entries <= ENOUGH:
            half = max(1, keys // 2)
            chunk, most = (2 * half, 8) if entries <= 16 else (max(64, half), 4)
            return DecodeConfig(block_keys=half, prefetch=True, min_chunk=chunk, units_per_sm=most)
        return DecodeConfig(block_keys=keys, min_chunk=least, units_per_sm=units)
    # Queries and accumulators of a group must fit the registers beside the tile.
    large = head_dim > 128 or itemsize > 2 or group > 16
    warps = 4 if large else 1
    return DecodeConfig(
        block_keys=keys, num_warps=warps, num_stages=3, min_chunk=least, units_per_sm=max(2, units // warps)
    )
