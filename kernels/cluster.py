"""Decode attention whose keys the blocks of a thread-block cluster share (kernels/cuda/cluster_decode.cu).

One launch, no workspace and no plan: each block of a cluster takes a stretch of an entry's keys, and what
they find is put together through the cluster's shared memory. bf16, or bf16 over keys and values in e4m3
(kernels.kv8), on a Hopper or newer.
"""

import ctypes
import math
from dataclasses import dataclass

import torch

from kernels.cuda_driver import Kernel, architecture, argument_addresses, load_kernel
from kernels.kv8 import FORMAT, Scales
from kernels.nvrtc import compile_many, read_source

# The seed's steps: from so many keys on at least so many blocks.
STEPS = ((4096, 4), (2048, 3))
MAX_CLUSTER = 8  # what every device with clusters can launch
MAX_GROUP = 8  # columns of a tensor-core product
TILE = 16  # keys
MOST_APART = 1 << 31  # from page to page, in numbers: kernels keep that in 32 bits
WARPS = 8  # of a block, which has a multiprocessor to itself
LONG_FOR_TWO = 2048  # keys; benchmarks/results/clusters-*.json
# Keys and values in flight on a multiprocessor. Alone, half as much again is a little faster; between other
# kernels a d32's step is then 26 % longer, for the next one's blocks find no room (docs/architecture.md).
FLIGHT_BYTES = 140 << 10
MAX_STAGES = 4
LEAST_KEYS = 64  # that a block is worth having for
LOG2_E = math.log2(math.e)
_DEPENDENT = 1


def cluster_hint(keys: int, size: int, threshold: int, enabled: bool) -> int | None:
    """None when off or below the threshold; at it `size`, which grows with length."""
    if not enabled or keys < threshold:
        return None
    return max(size, next((least for length, least in STEPS if keys >= length), 1))


def cluster_size(rows: int, kv_heads: int, keys: int, multiprocessors: int, size: int, threshold: int) -> int:
    """Blocks of a cluster, 1, 2, 4 or 8, for a batch of `rows` of which the longest has `keys` keys.

    As many as fill the device and have work; 1 below the threshold, and up to twice the threshold `size` at
    most.
    """
    if keys < threshold:
        return 1
    fill = multiprocessors // max(1, rows * kv_heads)
    work = -(-keys // LEAST_KEYS)
    allowed = size if keys < 2 * threshold else MAX_CLUSTER
    most = max(1, min(MAX_CLUSTER, fill, work, allowed))
    return 1 << (most.bit_length() - 1)


@dataclass(frozen=True, slots=True)
class Shape:
    """A model's attention: heads of queries and of keys, channels of a head, keys of a page. fp8_kv: keys and
    values are kept in eight bits (kernels.kv8)."""

    heads: int
    kv_heads: int
    head_dim: int
    block_size: int
    fp8_kv: bool = False

    @property
    def group(self) -> int:
        return self.heads // self.kv_heads


def tile_bytes(shape: Shape) -> int:
    """Keys and values of a tile, and their scales."""
    number, scales = (1, 2 * TILE * 2) if shape.fp8_kv else (2, 0)
    return 2 * TILE * shape.head_dim * number + scales


@dataclass(frozen=True, slots=True)
class Variant:
    """cluster: blocks that share an entry's keys. warps: of a block. blocks: that shall fit on a
    multiprocessor."""

    cluster: int
    warps: int
    blocks: int

    def stages(self, shape: Shape) -> int:
        """Tiles in flight per warp: FLIGHT_BYTES on a multiprocessor, MAX_STAGES at most."""
        return max(1, min(MAX_STAGES, FLIGHT_BYTES // (self.warps * self.blocks * tile_bytes(shape))))

    def shared_bytes(self, shape: Shape) -> int:
        """Dynamic shared memory of a block: the warps' tiles, later their results, what the cluster's blocks
        send."""
        quads, stages = shape.group * shape.head_dim // 4, self.stages(shape)
        sent = quads * 24 if self.cluster > 1 else 0
        return self.warps * (max(stages * tile_bytes(shape), quads * 16) + shape.group * 8) + sent


def unsupported(
    head_dim: int, group: int, dtype: torch.dtype, capability: tuple[int, int], block_size: int
) -> str | None:
    """Why attention of this kind cannot be had here, or None."""
    if capability < (9, 0):
        return f"needs compute capability 9.0, this device has {capability[0]}.{capability[1]}"
    if dtype != torch.bfloat16:
        return f"needs bfloat16, not {str(dtype).removeprefix('torch.')}"
    if head_dim not in (64, 128):
        return f"head_dim {head_dim} is neither 64 nor 128"
    if not 1 <= group <= MAX_GROUP:
        return f"{group} query heads per kv head; 1 to {MAX_GROUP} can be served"
    if block_size < TILE or block_size % TILE:
        return f"blocks of {block_size} keys are no multiple of {TILE}"
    return None


def refusal(shape: Shape, dtype: torch.dtype, capability: tuple[int, int]) -> str | None:
    """Why a model's attention cannot be had, or None."""
    if shape.kv_heads < 1 or shape.heads % shape.kv_heads:
        return f"{shape.heads} heads are no multiple of {shape.kv_heads} kv heads"
    return unsupported(shape.head_dim, shape.group, dtype, capability, shape.block_size)


def defines(shape: Shape, variant: Variant) -> dict[str, int]:
    """Compile-time constants of cluster_decode.cu."""
    return {
        "D": shape.head_dim,
        "GROUP": shape.group,
        "BLOCK_SIZE": shape.block_size,
        "CLUSTER": variant.cluster,
        "WARPS": variant.warps,
        "BLOCKS": variant.blocks,
        "STAGES": variant.stages(shape),
        **({"KV_FP8": 1} if shape.fp8_kv else {}),
    }


def source() -> str:
    """CUDA C++ of the kernel."""
    return read_source("primitives.cu", "attention_tile.cu", "attention_stream.cu", "cluster_decode.cu")


class _Arguments(ctypes.Structure):
    """The kernel's parameters. Strides count numbers."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("q", "k_pages", "v_pages")),
        *((name, ctypes.c_void_p) for name in ("block_tables", "rows", "positions", "out")),
        *((name, ctypes.c_void_p) for name in ("k_scales", "v_scales")),
        *((name, ctypes.c_longlong) for name in ("q_stride", "q_head", "k_block", "k_head")),
        *((name, ctypes.c_longlong) for name in ("v_block", "v_head", "table_stride", "out_stride")),
        *((name, ctypes.c_longlong) for name in ("s_block", "s_head")),
        *((name, ctypes.c_int) for name in ("kv_heads", "window")),
        ("scale", ctypes.c_float),
        ("flags", ctypes.c_int),
    )


class ClusterDecode:
    """Decode attention of one model on one device. Used by one thread at a time.

    Launches may be captured into graphs: what a launch looks like depends on the number of entries alone, and
    the device reads the lengths. A kernel's first use compiles and loads it, which must not happen during a
    capture: `prepare` does it beforehand for batches that it `serves`.
    """

    def __init__(
        self,
        shape: Shape,
        max_context: int,
        device: torch.device,
        *,
        size: int,
        threshold: int,
        dtype: torch.dtype = torch.bfloat16,
        forced: Variant | None = None,
    ) -> None:
        """max_context: keys of the longest row there will be, which `cluster_size` goes by. size, threshold:
        its other arguments. forced: for every number of entries, instead of the rules'.

        ValueError: what `unsupported` says, heads that are no multiple of kv_heads, or no CUDA device.
        """
        if device.type != "cuda":
            raise ValueError(f"needs a CUDA device, not {device}")
        about = torch.cuda.get_device_properties(device)
        reason = refusal(shape, dtype, (about.major, about.minor))
        if reason is not None:
            raise ValueError(reason)
        self.shape, self.max_context, self.size, self.threshold = shape, max_context, size, threshold
        self.forced, self.multiprocessors = forced, int(about.multi_processor_count)
        self.device = torch.cuda.current_device() if device.index is None else device.index
        self.arguments = _Arguments()
        self.addresses = argument_addresses(self.arguments)
        self.kernels: dict[Variant, Kernel] = {}
        self.clusters: dict[int, int] = {}

    def variant(self, entries: int) -> Variant:
        """How a batch of `entries` is run."""
        if self.forced is not None:
            return self.forced
        cluster = self._wanted(entries)
        while cluster > 1 and entries * self.shape.kv_heads > self._at_once(cluster):
            cluster //= 2
        return Variant(cluster, WARPS, 1)

    def serves(self, entries: int) -> bool:
        """Whether this is the way to compute a batch. A forced variant serves every batch.

        A row has its cluster alone, whatever its length, where kernels.triton.decode gives a long one more of
        the device than a short one. Two blocks are as fast as that up to LONG_FOR_TWO keys, four and more for
        any length; one is not, and a cluster of one would be slow for a long row among short ones.
        """
        if self.forced is not None or entries < 1:
            return entries > 0
        cluster = self.variant(entries).cluster
        return cluster > 2 or (cluster == 2 and self.max_context <= LONG_FOR_TWO)

    def prepare(self, max_entries: int) -> None:
        """Compiles and loads all that batches of up to `max_entries` need which it serves. CompileError,
        DriverError.
        """
        likely = [self.forced] if self.forced is not None else []
        if self.forced is None:
            likely += [Variant(size, WARPS, 1) for size in (8, 4, 2) if size <= self._wanted(1)]
        constants = [defines(self.shape, variant) for variant in likely]
        compile_many(source(), "cluster_decode", architecture(self.device), constants)()
        for variant in self.served(max_entries).values():
            self._kernel(variant)

    def served(self, max_entries: int) -> dict[int, Variant]:
        """How it runs each number of entries that it `serves`."""
        counts = filter(self.serves, range(1, max_entries + 1))
        return {entries: self.variant(entries) for entries in counts}

    def _wanted(self, entries: int) -> int:
        """Blocks of a cluster, if the device can place them so."""
        kv_heads, count = self.shape.kv_heads, self.multiprocessors
        return cluster_size(entries, kv_heads, self.max_context, count, self.size, self.threshold)

    def _at_once(self, cluster: int) -> int:
        """How many clusters of this size run at one time. A cluster's blocks share one part of the chip, so
        that can be fewer than the multiprocessors suggest, and one more than that doubles the time.
        """
        if cluster not in self.clusters:
            variant = Variant(cluster, WARPS, 1)
            self.clusters[cluster] = self._kernel(variant).active_clusters(cluster, variant.warps * 32)
        return self.clusters[cluster]

    def _kernel(self, variant: Variant) -> Kernel:
        found = self.kernels.get(variant)
        if found is None:
            constants, shared = defines(self.shape, variant), variant.shared_bytes(self.shape)
            found = load_kernel(source(), "cluster_decode", self.device, constants, shared)
            self.kernels[variant] = found
        return found

    def decode(
        self,
        q: torch.Tensor,
        k_pages: torch.Tensor,
        v_pages: torch.Tensor,
        block_tables: torch.Tensor,
        rows: torch.Tensor,
        positions: torch.Tensor,
        out: torch.Tensor,
        *,
        scale: float,
        window: int | None,
        scales: Scales | None = None,
        pdl: bool = False,
    ) -> None:
        """Attention of one query per entry over keys 0..positions[entry] of its row, or those of them that
        are at most `window` before the query's own.

        q: [entries, heads, head_dim], a view with any strides but the last, which is 1. k_pages, v_pages:
        [blocks, block_size, kv_heads, head_dim], a head's keys of a block one behind the other; slots beyond
        a row's context may hold anything. scales: of pages of eight bits, likewise.
        block_tables: [rows, blocks of a row] int32. rows, positions: [entries] int32; an entry of which
        either is negative is padding, and its part of out left alone. out: [entries, heads * head_dim]. pdl:
        launched before the previous kernel ends. ValueError: tensors that do not fit the model, the kernel
        or each other.
        """
        reason = mismatch(self.shape, q, k_pages, v_pages, block_tables, rows, positions, out, scales)
        if reason is not None:
            raise ValueError(reason)
        if q.device != torch.device("cuda", self.device):
            raise ValueError(f"q is on {q.device}, this is for cuda:{self.device}")
        if window is not None and window < 0:
            raise ValueError(f"window is {window}")
        entries, variant, a = q.size(0), self.variant(q.size(0)), self.arguments
        if entries == 0:
            return
        fill_arguments(a, q, k_pages, v_pages, block_tables, rows, positions, out, scale, window, scales, pdl)
        grid = entries * self.shape.kv_heads * variant.cluster
        kernel = self._kernel(variant)
        kernel.launch(grid, variant.warps * 32, self.addresses, cluster=variant.cluster, pdl=pdl)


def fill_arguments(
    arguments: _Arguments,
    q: torch.Tensor,
    k_pages: torch.Tensor,
    v_pages: torch.Tensor,
    block_tables: torch.Tensor,
    rows: torch.Tensor,
    positions: torch.Tensor,
    out: torch.Tensor,
    scale: float,
    window: int | None,
    scales: Scales | None,
    pdl: bool,
) -> None:
    """Writes a launch's parameters; the tensors have been checked and must stay alive."""
    a = arguments
    fill_tensors(a, q, k_pages, v_pages, block_tables, out, scales)
    a.rows, a.positions = rows.data_ptr(), positions.data_ptr()
    a.window = -1 if window is None else window
    a.scale, a.flags = scale * LOG2_E, _DEPENDENT if pdl else 0


def fill_tensors(
    arguments: ctypes.Structure,
    q: torch.Tensor,
    k_pages: torch.Tensor,
    v_pages: torch.Tensor,
    block_tables: torch.Tensor,
    out: torch.Tensor,
    scales: Scales | None,
) -> None:
    """What kernels of decode attention have in common, under the same names: addresses and strides."""
    a = arguments
    a.q, a.k_pages, a.v_pages = q.data_ptr(), k_pages.data_ptr(), v_pages.data_ptr()
    a.block_tables, a.table_stride = block_tables.data_ptr(), block_tables.stride(0)
    a.out, a.out_stride = out.data_ptr(), out.stride(0)
    a.q_stride, a.q_head = q.stride(0), q.stride(1)
    a.k_block, a.k_head = k_pages.stride(0), k_pages.stride(2)
    a.v_block, a.v_head = v_pages.stride(0), v_pages.stride(2)
    if scales is not None:
        a.k_scales, a.v_scales = (tensor.data_ptr() for tensor in scales)
        a.s_block, a.s_head = scales[0].stride(0), scales[0].stride(2)
    a.kv_heads = k_pages.size(2)


def mismatch(
    shape: Shape,
    q: torch.Tensor,
    k_pages: torch.Tensor,
    v_pages: torch.Tensor,
    block_tables: torch.Tensor,
    rows: torch.Tensor,
    positions: torch.Tensor,
    out: torch.Tensor,
    scales: Scales | None = None,
) -> str | None:
    """What speaks against a call, or None."""
    entries = q.size(0)
    page = (shape.block_size, shape.kv_heads, shape.head_dim)
    numbers = {"q": q, "k_pages": k_pages, "v_pages": v_pages, "out": out}
    if scales is None and shape.fp8_kv:
        return "keys and values in fp8 come with scales"
    if scales is not None:
        if not shape.fp8_kv:
            return "scales come with keys and values in fp8"
        numbers |= {"k_scales": scales[0], "v_scales": scales[1]}
        if any(x.shape != k_pages.shape[:3] or x.stride() != scales[0].stride() for x in scales):
            return f"scales must both be {list(k_pages.shape[:3])}, with the same strides"
        if scales[0].stride(0) >= MOST_APART:
            return f"blocks of k_scales are {scales[0].stride(0)} apart, must be less than {MOST_APART}"
    indices = {"block_tables": block_tables, "rows": rows, "positions": positions}
    if q.shape != (entries, shape.heads, shape.head_dim):
        return f"q is {list(q.shape)}, must be [entries, {shape.heads}, {shape.head_dim}]"
    for name, pages in (("k_pages", k_pages), ("v_pages", v_pages)):
        if pages.dim() != 4 or pages.shape[1:] != page:
            return f"{name} is {list(pages.shape)}, must be [blocks, {', '.join(map(str, page))}]"
        if pages.stride(1) != shape.head_dim:
            return f"keys of {name} are {pages.stride(1)} numbers apart; a head's keys must follow each other"
        if pages.stride(0) >= MOST_APART:
            return f"blocks of {name} are {pages.stride(0)} numbers apart, must be less than {MOST_APART}"
    if out.shape != (entries, shape.heads * shape.head_dim):
        return f"out is {list(out.shape)}, must be [{entries}, {shape.heads * shape.head_dim}]"
    if rows.shape != (entries,) or positions.shape != (entries,) or block_tables.dim() != 2:
        return f"rows and positions must be [{entries}], block_tables [rows, blocks of a row]"
    for name, tensor in numbers.items():
        wanted = FORMAT if shape.fp8_kv and name in ("k_pages", "v_pages") else torch.bfloat16
        if tensor.dtype != wanted:
            return f"{name} is {tensor.dtype}, must be {str(wanted).removeprefix('torch.')}"
        # Every row, head, page and key must start at a multiple of what is read or written at once.
        wide, inside = 8 if name == "out" else 16, 1 if name.endswith("scales") else -1
        outside = [step for number, step in enumerate(tensor.stride()) if number != inside % tensor.dim()]
        steps = [tensor.data_ptr(), *(step * tensor.element_size() for step in outside)]
        if tensor.stride(inside) != 1 or any(step % wide for step in steps):
            return f"{name} must have unit stride inside and start at multiples of {wide} bytes everywhere"
    for name, tensor in indices.items():
        if tensor.dtype != torch.int32 or tensor.stride(-1) != 1:
            return f"{name} must be contiguous int32"
    if len({tensor.device for tensor in (*numbers.values(), *indices.values())}) > 1:
        return "all tensors must be on one device"
    return None
