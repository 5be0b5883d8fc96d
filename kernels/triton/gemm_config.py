"""How a product of some dozens of rows is cut for `kernels.triton.gemm`. Needs no Triton."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from kernels.quantize import WeightKind
from kernels.skinny import Activation

MIN_ROWS, MAX_ROWS = 17, 256  # below, kernels.skinny is faster
MOST_CONFIGS = 4  # that `configs` returns
# Beside other products: it won at 32 and 64 rows only, with one of its first two configurations, and each
# kernel more is a second of a cold start (benchmarks/results/decode-cuda-d32, 2026-11-24).
_CONTESTED_ROWS, _CONTESTED_CONFIGS = 64, 2
SHARED_LIMIT = 227 * 1024
WORKSPACE_SUMS = 1 << 22  # float32 sums of all parts of a product
WORKSPACE_TILES = 4096
_BUCKETS = (32, 64, 128, 256)
_SHORTEST_PART = 256  # channels of K
_MOST_PARTS = 8  # the last program of a tile reads them all
_MULTIPROCESSORS = 132


@dataclass(frozen=True, slots=True)
class GemmConfig:
    """rows, columns: a tile of the output. depth: channels of K a step. split: parts of K, one program each.

    stages, warps: as Triton has them. swapped: the weights are the left operand of the tensor cores, whose
    tiles have at least 64 rows, so that x needs no padding. tiles: x and weights are fetched by the tensor
    memory accelerator instead of by each thread. norm_inside: the norm's factor comes from products of
    x's tiles with themselves, on the way; otherwise the norm is a kernel in front. ahead: lines of 128 bytes
    of each row of weights that are requested before the previous kernel has ended.
    """

    rows: int
    columns: int
    depth: int
    split: int
    stages: int
    warps: int
    swapped: bool = True
    tiles: bool = True
    norm_inside: bool = False
    ahead: int = 8

    def __str__(self) -> str:
        size = f"{self.rows}x{self.columns}x{self.depth} split {self.split} stages {self.stages}"
        size += f" warps {self.warps}"
        marks = (("swapped", self.swapped), ("tma", self.tiles), ("norm inside", self.norm_inside))
        return " ".join([size, *(name for name, holds in marks if holds)])

    @property
    def shared_bytes(self) -> int:
        """Of the loop's buffers; what the end needs is less."""
        return self.stages * (self.rows + self.columns) * self.depth * 2

    @property
    def sums_per_thread(self) -> int:
        return self.rows * self.columns // (32 * self.warps)

    def programs(self, m: int, n: int) -> int:
        return -(-m // self.rows) * -(-n // self.columns) * self.split

    def misfit(self, m: int, n: int, k: int) -> str | None:
        """Why a product of this shape cannot be computed so, or None."""
        if not 1 <= m <= MAX_ROWS:
            return f"{m} rows, must be 1 to {MAX_ROWS}"
        if k % self.depth or n % 16:
            return f"{n} outputs and {k} inputs must be multiples of 16 and {self.depth}"
        if not 1 <= self.split <= k // self.depth:
            return f"{k} inputs cannot be split into {self.split} parts"
        if (self.columns if self.swapped else self.rows) < 64 * (self.warps // 4):
            return "a warp group needs 64 rows of its left operand"
        if self.norm_inside and self.rows < 64:
            return "a norm inside needs tiles of 64 rows"
        programs = self.programs(m, n)
        squares = self.rows**2 // (32 * self.warps) if self.norm_inside else 0
        if self.sums_per_thread + squares > 128:
            return "the sums do not fit the registers"
        if self.split > 1 and (
            programs * self.rows * self.columns > WORKSPACE_SUMS or programs // self.split > WORKSPACE_TILES
        ):
            return "the parts do not fit the workspace"
        return None


def unsupported(
    n: int,
    k: int,
    activation: Activation,
    accumulate: bool,
    dtype: torch.dtype,
    capability: tuple[int, int],
    kind: WeightKind = "bf16",
) -> str | None:
    """Why a weight [n, k] cannot be used here, or None. dtype: of x."""
    if capability < (9, 0):
        return f"needs compute capability 9.0, this device has {capability[0]}.{capability[1]}"
    if kind != "bf16":
        return f"takes no weights of kind {kind}"
    if dtype != torch.bfloat16:
        return f"needs bfloat16, the weight is {dtype}"
    if n % 16 or n == 0:
        return f"outputs must be a multiple of 16, there are {n}"
    if k % 64 or k == 0:
        return f"inputs must be a multiple of 64, there are {k}"
    if activation == "swiglu" and accumulate:
        return "no swiglu that adds to its output"
    return None


def configs(m: int, n: int, k: int, norm: bool = False, most: int = MOST_CONFIGS) -> list[GemmConfig]:
    """Configurations worth measuring for x [m, k] and a weight [n, k], the most promising first.

    One wave of programs is the aim, one or two on a multiprocessor. Few columns make many programs, each of
    which reads all rows of x; many columns need parts of K, whose sums travel instead. norm: one stands in
    front. What is done behind the product has no influence at present.
    """
    if not 1 <= m <= MAX_ROWS:
        return []
    rows = next(bucket for bucket in _BUCKETS if bucket >= m)
    lists = [
        sorted(
            (config for config in _cuts(rows, n, k, inside) if config.misfit(m, n, k) is None),
            key=lambda config: _estimate(config, m, n, k),
        )
        for inside in ((False, True) if norm else (False,))
    ]
    turns = max(map(len, lists))
    found = [config for turn in range(turns) for some in lists for config in some[turn : turn + 1]]
    return list(dict.fromkeys(found))[:most]


def candidates(m: int, n: int, k: int, norm: bool, alone: bool) -> list[GemmConfig]:
    """Those of `configs` to be measured. alone: nothing else is, so that this product has to serve."""
    if m < MIN_ROWS or (m > _CONTESTED_ROWS and not alone):
        return []
    return configs(m, n, k, norm, MOST_CONFIGS if alone else _CONTESTED_CONFIGS)


def _estimate(config: GemmConfig, m: int, n: int, k: int) -> float:
    """Microseconds, roughly, for an order alone: what is slowest of the memory, the L2 cache and the fullest
    multiprocessor, then the last program of a tile, which adds the parts."""
    programs = config.programs(m, n)
    tile = config.rows * config.columns * 4
    read = (config.rows + config.columns) * 2 * k // config.split
    resident = max(1, SHARED_LIMIT // config.shared_bytes)
    turns = -(-programs // (_MULTIPROCESSORS * resident))
    fullest = min(programs, turns * resident, -(-programs // _MULTIPROCESSORS)) * read
    moved = programs * (read + (2 * tile if config.split > 1 else 0))
    last = 1.5 + config.split * tile / 1e5 if config.split > 1 else 0.0
    return max(n * k * 2 / 4.3e6, moved / 5.5e6, fullest / 8e4) + last


def _cuts(rows: int, n: int, k: int, norm_inside: bool) -> Iterator[GemmConfig]:
    """All that are tried for a bucket of rows. norm_inside: in tiles of 64 rows, the fewest whose products
    with themselves a warp group can take; of twice as many rows these products would be four times as many.
    """
    # Columns, programs a multiprocessor, by tensor memory accelerator, swapped, channels a step.
    cuts = [
        (128, 2, True, True, 64),
        (64, 2, True, True, 64),
        (128, 1, True, True, 64),
        (64, 1, True, True, 64),
        (128, 1, True, True, 128),
        (128, 2, True, False, 64),
        (64, 2, True, False, 64),
        (128, 2, False, True, 64),
        (64, 2, False, True, 64),
        (64, 2, True, True, 128),
        (256, 1, True, True, 64),
        (32, 2, True, False, 128),
    ]
    if norm_inside:
        rows = max(rows, 64)
    for columns, resident, tiles, swapped, depth in cuts:
        # One tile of 256 rows reads the weights once; two of 128 are what fits beside each other.
        height = min(rows, 128) if not swapped or resident == 2 else rows
        if norm_inside:
            height = 64
        if not swapped and height < 64:
            continue
        yield _config(height, -(-rows // height), columns, depth, n, k, resident, swapped, tiles, norm_inside)


def _config(
    rows: int,
    row_tiles: int,
    columns: int,
    depth: int,
    n: int,
    k: int,
    resident: int,
    swapped: bool,
    tiles: bool,
    norm_inside: bool,
) -> GemmConfig:
    """With as many stages and parts as let `resident` programs share a multiprocessor and fill them all."""
    of_tensor_cores = columns if swapped else rows
    warps = 8 if rows * columns > 64 * 128 and of_tensor_cores >= 128 else 4
    stage = (rows + columns) * depth * 2
    stages = max(2, min(8, (SHARED_LIMIT // resident - 2048) // stage))
    wanted = resident * _MULTIPROCESSORS // (row_tiles * -(-n // columns))
    split = max(1, min(wanted, _MOST_PARTS, k // _SHORTEST_PART, k // depth))
    return GemmConfig(rows, columns, depth, split, stages, warps, swapped, tiles, norm_inside)
