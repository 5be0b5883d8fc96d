"""Products of few rows with a weight at the pace at which the weight can be read (kernels/cuda/skinny.cu).

Up to 64 rows, bf16, on a Hopper or newer; the weight may have eight bits (kernels.quantize). What follows the
product is done on the way out: the norm in front of it as one factor a row, the activation, or the addition
to the residual stream. A row's result depends on neither the variant, nor the number of rows, nor the other
rows.
"""

import ctypes
import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Literal

import torch

from kernels.cuda_driver import Kernel, architecture, argument_addresses, load_kernel
from kernels.nvrtc import compile_many, read_source
from kernels.quantize import Weight, Weight8, WeightKind, kind_of

Activation = Literal["none", "relu2", "swiglu"]

MAX_ROWS = 64
PARTS = 8  # of K, one a warp; fixed, so that the order of additions is
THREADS = PARTS * 32
SHARED_LIMIT = 227 * 1024
_NORM, _ACCUMULATE, _DEPENDENT = 1, 8, 16
_ACTIVATION_FLAGS: dict[Activation, int] = {"none": 0, "relu2": 2, "swiglu": 4}
# Registers that a thread needs beside sums and weights in flight, as the compiler reports; from them, how
# many blocks fit on a multiprocessor.
_OTHER_REGISTERS = 44
_MANY_REGISTERS = 124
# More of them, a tile, for a weight of eight bits: what is about to be used as bf16. It takes eight, but the
# compiler fits two blocks on a multiprocessor up to here without putting anything aside (ptxas 12.9).
_WIDENED_REGISTERS = 4
# Channels of a block, four loads of 16 bytes.
BLOCK_CHANNELS: dict[WeightKind, int] = {"bf16": 32, "int8": 64, "fp8": 64}
# Weights in flight, in loads of 16 bytes a thread.
_LOADS = 16


@dataclass(frozen=True, slots=True)
class Variant:
    """How the work of a product is cut (skinny.cu explains the terms).

    tiles: tiles of 16 outputs that a warp sums. row_groups: groups of 8 rows of x. split: blocks of a
    cluster that share K. depth: blocks of BLOCK_CHANNELS in flight. blocks: a multiprocessor's. persistent:
    the grid is only as large as the device and each block walks over several groups of tiles. prefetch:
    channel blocks that are fetched to the L2 cache before the previous kernel has ended. wide: weights are
    read with a hint for 256 bytes instead of as a stream. kind: what the weight is made of.
    """

    tiles: int
    row_groups: int
    split: int
    depth: int
    blocks: int
    persistent: bool = False
    prefetch: int = 0
    wide: bool = False
    kind: WeightKind = "bf16"

    def __str__(self) -> str:
        walk = " persistent" if self.persistent else ""
        ahead = f" prefetch {self.prefetch}" if self.prefetch else ""
        name = f"tiles {self.tiles} rows {8 * self.row_groups} split {self.split} depth {self.depth}"
        name += walk + ahead + (" wide" if self.wide else "")
        return name if self.kind == "bf16" else f"{name} {self.kind}"

    def shared_bytes(self, k: int) -> int:
        """Dynamic shared memory of a block: x, the sums of all parts, the sums of squares."""
        channels = BLOCK_CHANNELS[self.kind]
        x = -(-k // channels // self.split) * (channels // 32) * self.row_groups * 512
        sums = PARTS * self.tiles * self.row_groups * 512
        return x + sums + PARTS * self.row_groups * 8 * 4

    def grid(self, n: int, multiprocessors: int) -> int:
        """Blocks of a launch, a multiple of the cluster's size."""
        groups = -(-(n // 16) // (self.split * self.tiles))
        if self.persistent:
            groups = min(groups, max(1, multiprocessors * self.blocks // self.split))
        return groups * self.split

    def fits(self, m: int, n: int, k: int) -> bool:
        """Whether a product of this shape can be computed so."""
        registers = _OTHER_REGISTERS + self._array_registers()
        return (
            m <= 8 * self.row_groups
            and n // 16 >= self.tiles
            and self.shared_bytes(k) <= SHARED_LIMIT
            and registers <= 240
        )

    def _array_registers(self) -> int:
        widened = _WIDENED_REGISTERS if self.kind != "bf16" else 0
        return self.tiles * (self.row_groups * 4 + self.depth * 8 + widened)

    @classmethod
    def of(
        cls,
        tiles: int,
        row_groups: int,
        split: int,
        k: int,
        persistent: bool = False,
        kind: WeightKind = "bf16",
    ) -> "Variant":
        """With as many weights in flight as pay, and as many blocks a multiprocessor as then fit."""
        blocks = k // BLOCK_CHANNELS[kind]
        longest = -(-blocks // PARTS)
        depth = max(1, _LOADS // (2 * tiles))
        if row_groups * tiles > 16:
            depth = min(depth, 2)
        depth = min(depth, longest)
        # A depth that divides the part spares every load its own condition.
        depth = next((d for d in range(depth, depth // 2, -1) if longest % d == 0), depth)
        trial = cls(tiles, row_groups, split, depth, 1, persistent, kind=kind)
        conditions = 0 if blocks % PARTS == 0 and longest % depth == 0 else 8
        registers = trial._array_registers() + _OTHER_REGISTERS + conditions
        # The system takes 1 KiB of shared memory for each block.
        two = registers <= _MANY_REGISTERS and 2 * (trial.shared_bytes(k) + 1024) <= SHARED_LIMIT + 1024
        return replace(trial, blocks=2 if two else 1, wide=True)


def unsupported(
    n: int,
    k: int,
    activation: Activation,
    accumulate: bool,
    dtype: torch.dtype,
    capability: tuple[int, int],
    kind: WeightKind = "bf16",
) -> str | None:
    """Why a weight [n, k] cannot be used here, or None. dtype: of x, and of a weight that is not of eight
    bits."""
    if capability < (9, 0):
        return f"needs compute capability 9.0, this device has {capability[0]}.{capability[1]}"
    if dtype != torch.bfloat16:
        return f"needs bfloat16, the {'weight' if kind == 'bf16' else 'model'} is {dtype}"
    if n % 16 or n == 0:
        return f"outputs must be a multiple of 16, there are {n}"
    if k % BLOCK_CHANNELS[kind] or k == 0:
        return f"inputs must be a multiple of {BLOCK_CHANNELS[kind]}, there are {k}"
    if activation == "swiglu" and accumulate:
        return "no swiglu that adds to its output"
    return None


def variants(
    m: int,
    n: int,
    k: int,
    activation: Activation = "none",
    multiprocessors: int = 132,
    kind: WeightKind = "bf16",
) -> list[Variant]:
    """Variants worth measuring for x [m, k], the most promising first; empty for more than 64 rows.

    One wave of blocks is the aim: as few tiles a warp as give it. A block's share of x is kept small against
    its share of the weight by splitting K over a cluster. The activation has no influence at present.
    """
    if m > MAX_ROWS:
        return []
    row_groups = _row_groups(m)
    tiles = n // 16
    one_wave = min(4, max(1, -(-tiles // multiprocessors)))
    two_waves = min(4, max(1, -(-tiles // (2 * multiprocessors))))
    many = tiles > 8 * multiprocessors
    found: list[Variant] = []
    for per_warp in dict.fromkeys((one_wave, two_waves, max(1, one_wave - 1), min(2, one_wave))):
        for split in _splits(m, per_warp):
            for persistent in (True, False) if many else (False,):
                variant = Variant.of(per_warp, row_groups, split, k, persistent, kind)
                if variant.fits(m, n, k) and variant not in found:
                    found.append(variant)
    return found


def _row_groups(m: int) -> int:
    needed = -(-m // 8)
    return next(groups for groups in (1, 2, 3, 4, 6, 8) if groups >= needed)


def _splits(m: int, tiles: int) -> list[int]:
    """Cluster sizes, the best guess first: x is then at most a quarter of what a block reads, if possible."""
    guess = next((s for s in (1, 2, 4, 8) if m <= 4 * tiles * s), 8)
    near = [guess, *(s for s in (guess * 2, guess // 2) if 1 <= s <= 8)]
    return list(dict.fromkeys([*near, *((8,) if m > 32 else ())]))


class _Arguments(ctypes.Structure):
    """The kernel's parameters."""

    _fields_ = (
        ("x", ctypes.c_void_p),
        ("weight", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("m", ctypes.c_int),
        ("n", ctypes.c_int),
        ("x_stride", ctypes.c_int),
        ("out_stride", ctypes.c_int),
        ("eps", ctypes.c_float),
        ("flags", ctypes.c_int),
        ("prefetch", ctypes.c_int),
    )


class _ScaledArguments(ctypes.Structure):
    """Those of the kernel for eight bits."""

    _fields_ = (*_Arguments._fields_, ("factors", ctypes.c_void_p))


@dataclass(frozen=True, slots=True)
class SkinnyKernel:
    """A compiled variant for one K on one device. Used by one thread at a time."""

    kernel: Kernel
    variant: Variant
    multiprocessors: int
    arguments: _Arguments | _ScaledArguments
    addresses: ctypes.Array[ctypes.c_void_p]

    def __call__(
        self,
        x: torch.Tensor,
        weight: Weight,
        out: torch.Tensor,
        eps: float | None,
        flags: int,
        prefetch: int,
    ) -> None:
        """Queues one product; the tensors have been checked. flags: activation, accumulation, dependence."""
        n, variant, arguments = weight.size(0), self.variant, self.arguments
        if isinstance(weight, Weight8):
            arguments.weight, arguments.factors = weight.values.data_ptr(), weight.scales.data_ptr()
        else:
            arguments.weight = weight.data_ptr()
        arguments.x, arguments.out = x.data_ptr(), out.data_ptr()
        arguments.m, arguments.n = x.size(0), n
        arguments.x_stride, arguments.out_stride = x.stride(0), out.stride(0)
        arguments.eps = eps or 0.0
        arguments.flags = flags if eps is None else flags | _NORM
        pdl = bool(flags & _DEPENDENT)
        arguments.prefetch = prefetch if pdl else 0
        grid = variant.grid(n, self.multiprocessors)
        self.kernel.launch(grid, THREADS, self.addresses, cluster=variant.split, pdl=pdl)


def defines(k: int, variant: Variant) -> dict[str, int]:
    """Compile-time constants of skinny.cu."""
    v = variant
    constants = {"K": k, "R": v.tiles, "MT": v.row_groups, "S": v.split, "DEPTH": v.depth, "BLOCKS": v.blocks}
    kind = {} if v.kind == "bf16" else {f"WEIGHT_{v.kind.upper()}": 1}
    return constants | ({"LOAD_256": 1} if v.wide else {}) | kind


def source() -> str:
    """CUDA C++ of the kernel."""
    return read_source("primitives.cu", "eight_bits.cu", "skinny.cu")


def prepare(k: int, variant: Variant, device: torch.device) -> SkinnyKernel:
    """Compiles and loads, once for each combination; must come before a graph capture that uses it.

    Raises CompileError or DriverError.
    """
    index = torch.cuda.current_device() if device.index is None else device.index
    return _prepare(k, replace(variant, prefetch=0), index)


def prepare_all(wanted: Iterable[tuple[int, Variant]], device: torch.device) -> Callable[[], None]:
    """Begins to compile (k, variant) pairs on all cores; `prepare` then finds them in the cache. Call what it
    returns to wait for the end.
    """
    index = torch.cuda.current_device() if device.index is None else device.index
    unique = {tuple(defines(k, variant).items()): defines(k, variant) for k, variant in wanted}
    return compile_many(source(), "skinny", architecture(index), list(unique.values()))


@functools.cache
def _prepare(k: int, variant: Variant, device: int) -> SkinnyKernel:
    kernel = load_kernel(source(), "skinny", device, defines(k, variant), variant.shared_bytes(k))
    arguments = _Arguments() if variant.kind == "bf16" else _ScaledArguments()
    multiprocessors = torch.cuda.get_device_properties(device).multi_processor_count
    return SkinnyKernel(kernel, variant, multiprocessors, arguments, argument_addresses(arguments))


def skinny_linear(
    x: torch.Tensor,
    weight: Weight,
    out: torch.Tensor,
    *,
    eps: float | None = None,
    activation: Activation = "none",
    accumulate: bool = False,
    variant: Variant,
    pdl: bool = False,
) -> None:
    """out = act(norm(x) W^T), or out += norm(x) W^T. All bf16 on one CUDA device, sums in fp32; the weight
    may have eight bits, for which the variant must be made.

    x: [m, k], unit stride inside a row, rows 16-byte aligned. weight: [n, k], contiguous. out: [m, n]; for
    swiglu [m, n / 2], weight being 8 gate rows, 8 up rows and so on. eps: for an RMS norm without weight;
    None for none. Raises ValueError for what the kernel cannot do.
    """
    (m, k), inputs = x.shape, weight.size(1)
    reason = _mismatch(x, weight, out, activation, accumulate, variant)
    if reason is not None or inputs != k:
        raise ValueError(reason or f"x has {k} channels, the weight {inputs}")
    if m == 0:
        return
    flags = _ACTIVATION_FLAGS[activation] | (_ACCUMULATE if accumulate else 0) | (_DEPENDENT if pdl else 0)
    prepare(k, variant, x.device)(x, weight, out, eps, flags, variant.prefetch)


def _mismatch(
    x: torch.Tensor,
    weight: Weight,
    out: torch.Tensor,
    activation: Activation,
    accumulate: bool,
    variant: Variant,
) -> str | None:
    (m, k), n, channels = x.shape, weight.size(0), BLOCK_CHANNELS[variant.kind]
    if kind_of(weight) != variant.kind:
        return f"variant '{variant}' is not for a weight of kind {kind_of(weight)}"
    if n % 16 or k % channels or n == 0 or k == 0:
        return f"a weight of {n} x {k} is not made of blocks of 16 x {channels}"
    if not variant.fits(m, n, k):
        return f"variant '{variant}' does not fit {m} rows, {n} outputs, {k} inputs"
    if activation == "swiglu" and accumulate:
        return "no swiglu that adds to its output"
    values = weight.values if isinstance(weight, Weight8) else weight
    return misplaced(x, values, weight.dtype, out, activation)


def misplaced(
    x: torch.Tensor, weight: torch.Tensor, dtype: torch.dtype, out: torch.Tensor, activation: Activation
) -> str | None:
    """Why operands do not lie as kernels of products take them, or None. dtype: the weight's in full."""
    m, n = x.size(0), weight.size(0)
    columns = n // 2 if activation == "swiglu" else n
    if out.shape != (m, columns):
        return f"out is {tuple(out.shape)}, must be {(m, columns)}"
    if {x.dtype, dtype, out.dtype} != {torch.bfloat16}:
        return "x, weight and out must be bfloat16"
    if x.stride(1) != 1 or out.stride(1) != 1 or not weight.is_contiguous():
        return "rows must be contiguous"
    if x.data_ptr() % 16 or x.stride(0) % 8 or weight.data_ptr() % 16:
        return "rows of x and weight must start at multiples of 16 bytes"
    return None
