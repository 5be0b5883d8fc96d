"""Products of up to 64 rows with a weight that streams through shared memory (kernels/cuda/streamed.cu).

bf16 on a Hopper, whose tensor cores take both operands out of shared memory (wgmma, which newer devices do
not have). What follows the product is done on the way out: the norm in front of it as one factor a row, the
activation, or the addition to the residual stream. A row's bits depend on how many parts of K there are, and
neither on the other rows nor on their number. Two blocks fit on a multiprocessor, so that the next kernel's
weights come while this one ends.
"""

import ctypes
import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

from kernels.cuda_driver import Kernel, architecture, argument_addresses, load_kernel
from kernels.nvrtc import compile_many, read_source
from kernels.skinny import Activation, misplaced
from kernels.tensor_map import BYTES, TILE, tensor_map

MAX_ROWS = 64
SPLITS = (1, 2, 4, 8)
MOST_TILES = 4
HEIGHT = 64  # outputs of a tile
THREADS = 160
# Of a multiprocessor's 228 KiB the system takes one for each block.
SHARED_LIMIT, HALF = 227 * 1024, 113 * 1024
# Of up to FEW rows, where a step is a chain of short kernels, two blocks leave room for one of decode
# attention's (kernels.paged_decode), which may then begin while they still run, and the other way round:
# 8 rows of a d32 on an H200 1.289 ms a step, with HALF 1.469.
FEW, BESIDE_ATTENTION = 8, 79 * 1024
_HEIGHTS = (8, 16, 32, 64)  # rows of a slot
_MOST_STAGES = 16
_MOST_SUMS = 192  # tiles times rows, two for each that a thread keeps
_NORM, _ACCUMULATE, _DEPENDENT = 1, 8, 16
_ACTIVATION_FLAGS: dict[Activation, int] = {"none": 0, "relu2": 2, "swiglu": 4}


@dataclass(frozen=True, slots=True)
class Config:
    """How the work of a product is cut (streamed.cu explains the terms).

    tiles: of 64 outputs, that a cluster has. split: blocks of a cluster, and parts of K. stages: of the ring.
    """

    tiles: int
    split: int
    stages: int

    def __str__(self) -> str:
        return f"tiles {self.tiles} split {self.split} stages {self.stages}"

    def shared_bytes(self, m: int) -> int:
        """Dynamic shared memory of a block: the ring, sums and squares that are sent, barriers."""
        rows, alone = height_of(m), self.split == 1
        sums = 0 if alone else HEIGHT * self.tiles * (rows + 4) * 4 + rows * 4
        squares = self.split * rows * 4
        return self.stages * _slot_bytes(self.tiles, rows) + sums + squares + (2 * self.stages + 1) * 8

    def grid(self, n: int) -> int:
        """Blocks of a launch, a multiple of the cluster's size."""
        return -(-n // (HEIGHT * self.tiles)) * self.split

    def misfit(self, m: int, n: int, k: int) -> str | None:
        """Why a product of this shape cannot be computed so, or None."""
        if not 1 <= m <= MAX_ROWS:
            return f"{m} rows, must be 1 to {MAX_ROWS}"
        if n % 16 or k % TILE or n <= 0 or k <= 0:
            return f"{n} outputs and {k} inputs must be multiples of 16 and {TILE}"
        if not 1 <= self.tiles <= MOST_TILES or self.split not in SPLITS or self.split > 4 * self.tiles:
            return f"tiles {self.tiles} and split {self.split} do not go together"
        if not 1 <= self.split <= k // TILE:
            return f"{k} inputs cannot be split into {self.split} parts"
        if self.tiles * height_of(m) > _MOST_SUMS:
            return f"the sums of {self.tiles} tiles and {m} rows do not fit the registers"
        if not 2 <= self.stages <= _MOST_STAGES or self.shared_bytes(m) > SHARED_LIMIT:
            return f"{self.stages} stages do not fit"
        return None

    @property
    def gates(self) -> bool:
        """Whether a block finishes whole groups of 8 gates and 8 factors."""
        return HEIGHT * self.tiles // self.split % 16 == 0

    @property
    def blocks(self) -> int:
        """Of a multiprocessor, by registers: all have room for two."""
        return 2


def height_of(m: int) -> int:
    """Rows of x that a slot of the ring has room for."""
    return next(rows for rows in _HEIGHTS if rows >= m)


def most_shared(m: int) -> int:
    """Bytes of shared memory that a block for so many rows takes at most."""
    return BESIDE_ATTENTION if m <= FEW else HALF


def _slot_bytes(tiles: int, rows: int) -> int:
    return (HEIGHT * tiles + rows) * TILE * 2


def unsupported(
    n: int, k: int, activation: Activation, accumulate: bool, dtype: torch.dtype, capability: tuple[int, int]
) -> str | None:
    """Why a weight [n, k] cannot be used here, or None."""
    if capability[0] != 9:
        return f"needs compute capability 9.0, this device has {capability[0]}.{capability[1]}"
    if dtype != torch.bfloat16:
        return f"needs bfloat16, the weight is {dtype}"
    if n % 16 or n == 0:
        return f"outputs must be a multiple of 16, there are {n}"
    if k % TILE or k == 0:
        return f"inputs must be a multiple of {TILE}, there are {k}"
    if activation == "swiglu" and accumulate:
        return "no swiglu that adds to its output"
    return None


def configs(m: int, n: int, k: int, multiprocessors: int = 132) -> list[Config]:
    """Configurations worth measuring for x [m, k] and a weight [n, k], the most promising first; none for
    more than 64 rows. All let two blocks share a multiprocessor, with as many stages as then fit.
    """
    if not 1 <= m <= MAX_ROWS:
        return []
    found, room = [], most_shared(m)
    for tiles in range(1, MOST_TILES + 1):
        for split in SPLITS:
            spare = room - Config(tiles, split, 0).shared_bytes(m)
            stages = min(spare // (_slot_bytes(tiles, height_of(m)) + 16), _MOST_STAGES)
            config = Config(tiles, split, min(stages, max(2, -(-k // TILE // split))))
            if config.misfit(m, n, k) is None and config.shared_bytes(m) <= room:
                found.append(config)
    return sorted(found, key=lambda config: _expense(config, n, multiprocessors))


def _expense(config: Config, n: int, multiprocessors: int) -> float:
    """For an order alone, which an H200 gave: too few blocks leave the bus idle, and those that find no place
    come late; one tile of outputs is better than several, and few parts of K than many."""
    blocks = config.grid(n)
    turns = -(-blocks // (2 * multiprocessors))
    idle = max(1.0, 0.75 * multiprocessors / blocks)
    shallow = 1 + 0.1 * max(0, 3 - config.stages)
    cut = (1 + 0.05 * (config.tiles - 1)) * (1 + 0.02 * SPLITS.index(config.split))
    return idle * (1 + 0.1 * (turns - 1)) * shallow * cut


class _Arguments(ctypes.Structure):
    """The kernel's parameters."""

    _fields_ = (
        ("weights", ctypes.c_ubyte * BYTES),
        ("inputs", ctypes.c_ubyte * BYTES),
        ("out", ctypes.c_void_p),
        ("m", ctypes.c_int),
        ("n", ctypes.c_int),
        ("out_stride", ctypes.c_int),
        ("eps", ctypes.c_float),
        ("flags", ctypes.c_int),
    )


@dataclass(frozen=True, slots=True)
class StreamedKernel:
    """A compiled configuration for one K and height on one device. Used by one thread at a time."""

    kernel: Kernel
    config: Config
    rows: int
    arguments: _Arguments
    addresses: ctypes.Array[ctypes.c_void_p]

    def __call__(
        self, x: torch.Tensor, weight: torch.Tensor, out: torch.Tensor, eps: float | None, flags: int
    ) -> None:
        """Queues one product; the tensors have been checked. flags: activation, accumulation, dependence."""
        arguments, config, n = self.arguments, self.config, weight.size(0)
        arguments.weights[:] = tensor_map(weight, HEIGHT * config.tiles)
        arguments.inputs[:] = tensor_map(x, self.rows)
        arguments.out, arguments.out_stride = out.data_ptr(), out.stride(0)
        arguments.m, arguments.n = x.size(0), n
        arguments.eps = eps or 0.0
        arguments.flags = flags if eps is None else flags | _NORM
        pdl = bool(flags & _DEPENDENT)
        self.kernel.launch(config.grid(n), THREADS, self.addresses, cluster=config.split, pdl=pdl)


def defines(k: int, m: int, config: Config) -> dict[str, int]:
    """Compile-time constants of streamed.cu."""
    cut = {"TILES": config.tiles, "S": config.split, "STAGES": config.stages, "BLOCKS": config.blocks}
    return {"K": k, "ROWS": height_of(m), **cut}


def source() -> str:
    """CUDA C++ of the kernel."""
    return read_source("primitives.cu", "streamed.cu")


def prepare(k: int, m: int, config: Config, device: torch.device) -> StreamedKernel:
    """Compiles and loads, once for each combination; must come before a graph capture that uses it.

    Raises CompileError or DriverError.
    """
    index = torch.cuda.current_device() if device.index is None else device.index
    return _prepare(k, height_of(m), config, index)


def prepare_all(wanted: Iterable[tuple[int, int, Config]], device: torch.device) -> Callable[[], None]:
    """Begins to compile (k, m, config) on all cores; `prepare` then finds them in the cache. Call what it
    returns to wait for the end.
    """
    index = torch.cuda.current_device() if device.index is None else device.index
    all_defines = [defines(k, m, config) for k, m, config in wanted]
    unique = {tuple(constants.items()): constants for constants in all_defines}
    return compile_many(source(), "streamed", architecture(index), list(unique.values()))


@functools.cache
def _prepare(k: int, rows: int, config: Config, device: int) -> StreamedKernel:
    kernel = load_kernel(source(), "streamed", device, defines(k, rows, config), config.shared_bytes(rows))
    arguments = _Arguments()
    return StreamedKernel(kernel, config, rows, arguments, argument_addresses(arguments))


def streamed_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    out: torch.Tensor,
    *,
    eps: float | None = None,
    activation: Activation = "none",
    accumulate: bool = False,
    config: Config,
    pdl: bool = False,
) -> None:
    """out = act(norm(x) W^T), or out += norm(x) W^T. All bf16 on one CUDA device, sums in fp32.

    x: [m, k], unit stride inside a row, rows 16-byte aligned. weight: [n, k], contiguous. out: [m, n], rows
    8-byte aligned; for swiglu [m, n / 2], weight being 8 gate rows, 8 up rows and so on. eps: for an RMS norm
    without weight; None for none. Raises ValueError for what the kernel cannot do.
    """
    reason = _mismatch(x, weight, out, activation, accumulate, config)
    if reason is not None:
        raise ValueError(reason)
    flags = _ACTIVATION_FLAGS[activation] | (_ACCUMULATE if accumulate else 0) | (_DEPENDENT if pdl else 0)
    prepare(x.size(1), x.size(0), config, x.device)(x, weight, out, eps, flags)


def _mismatch(
    x: torch.Tensor,
    weight: torch.Tensor,
    out: torch.Tensor,
    activation: Activation,
    accumulate: bool,
    config: Config,
) -> str | None:
    (m, k), (n, inputs) = x.shape, weight.shape
    if inputs != k:
        return f"x has {k} channels, the weight {inputs}"
    misfit = config.misfit(m, n, k)
    if misfit is not None:
        return misfit
    if activation == "swiglu" and (accumulate or not config.gates):
        return "no swiglu that adds to its output, or whose gates and factors come apart"
    if out.data_ptr() % 8 or out.stride(0) % 4:
        return "rows of out must start at multiples of 8 bytes"
    return misplaced(x, weight, weight.dtype, out, activation)
