"""How attention of chunks is cut up and run, and which of it suits what shape."""

from dataclasses import dataclass

import triton

ENOUGH_PROGRAMS = 128  # for the 132 multiprocessors of a Hopper
MOST_SPLITS = 8
SLOT_ROWS = 64  # of the largest tile whose keys can be split


@dataclass(frozen=True, slots=True)
class PrefillConfig:
    """block_m: rows of a tile, queries times the heads packed beside each. block_n: keys of a tile. pack:
    heads that share a kv head go into one tile. section: heads whose tiles run side by side, so that L2
    holds their keys. splits: most programs that share the keys of one tile.

    ValueError: tiles that no matrix instruction takes, or that are too large to be split.
    """

    block_m: int = 128
    block_n: int = 128
    num_warps: int = 8
    num_stages: int = 2
    pack: bool = True
    section: int = 8
    splits: int = 1

    def __post_init__(self) -> None:
        for name in ("block_m", "block_n"):
            value = getattr(self, name)
            if value < 16 or value & (value - 1):
                raise ValueError(f"{name} is {value}; it must be a power of two of at least 16")
        if self.splits < 1 or (self.splits > 1 and self.block_m > SLOT_ROWS):
            raise ValueError(
                f"splits is {self.splits} for tiles of {self.block_m} rows; {SLOT_ROWS} is the most"
            )

    def queries(self, group: int) -> int:
        """Queries of a tile, for `group` heads per kv head."""
        return max(1, self.block_m // group) if self.pack else self.block_m


def config_for(group: int, heads: int, head_dim: int, tokens: int, itemsize: int) -> PrefillConfig:
    """The configuration for a step of up to `tokens`, in chunks of whatever lengths.

    The larger a tile, the fewer times keys and values are read; where there are too few large tiles for the
    device, programs share their keys.
    """
    least = group_rows(group)  # rows that hold one query's heads
    if itemsize > 2:
        return PrefillConfig(block_m=max(32, least), block_n=32, num_warps=8, num_stages=1)
    # Tiles of one program: queries, and a stage of keys and values.
    wide = head_dim > 128
    if tokens * heads >= 128 * ENOUGH_PROGRAMS and not wide:
        return PrefillConfig(block_m=max(128, least), block_n=128, num_warps=8, num_stages=2)
    block_m = max(16 if tokens * group < SLOT_ROWS else SLOT_ROWS, least)
    warps = 8 if wide and block_m >= SLOT_ROWS else max(4, block_m // 16)
    programs = -(-tokens * group // block_m) * (heads // group)
    splits = 1 if block_m > SLOT_ROWS else max(1, min(MOST_SPLITS, 2 * ENOUGH_PROGRAMS // programs))
    stages = 2 if wide else 3
    return PrefillConfig(block_m=block_m, block_n=64, num_warps=warps, num_stages=stages, splits=splits)


def group_rows(group: int) -> int:
    """Rows that a tile must have to hold one query's heads."""
    return int(triton.next_power_of_2(group))
