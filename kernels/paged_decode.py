"""Decode attention over units of keys, by tensor cores (kernels/cuda/paged_decode.cu).

kernels.triton.decode plans: it cuts a batch's keys into units, of which a block takes one for one kv head.
bf16, or bf16 over keys and values in e4m3 (kernels.kv8), on a Hopper or newer.
"""

import ctypes
from dataclasses import dataclass
from itertools import product

import torch

from kernels.cluster import LOG2_E, TILE, Shape, fill_tensors, mismatch, refusal, tile_bytes
from kernels.cuda_driver import Kernel, architecture, load_kernel
from kernels.kv8 import Scales
from kernels.nvrtc import compile_many, read_source
from kernels.triton.decode import DecodeWorkspace, Fresh
from kernels.triton.decode_config import DecodeConfig, config_for

ORDERS = ("rope", "rope_norm", "norm_rope")
_DEPENDENT, _AHEAD, _FRESH = 1, 2, 4
RESIDENT_WARPS = 16  # on a multiprocessor
MANY = 8  # pairs of an entry and a kv head for each multiprocessor
# Up to so many keys of each row, with about a pair for each multiprocessor, a step is faster if a block
# leaves memory to its neighbours instead of having two tiles in flight: 8 rows of a d32 on an H200 1.308
# instead of 1.328 ms at 192 keys, 1.842 instead of 1.702 at 1,088.
SHORT_KEYS = 320


@dataclass(frozen=True, slots=True)
class Variant:
    """warps: of a block. stages: tiles in flight of a warp. units: blocks' shares of the work that a step
    aims at for each multiprocessor. tiles: of each warp, at least, before a row's keys are cut in two."""

    warps: int
    stages: int
    units: int
    tiles: int = 1

    @property
    def blocks(self) -> int:
        """That a multiprocessor's registers suffice for: other kernels' blocks shall find room beside."""
        return RESIDENT_WARPS // self.warps

    @property
    def plan(self) -> DecodeConfig:
        """How the keys are cut."""
        chunk = TILE * self.warps * self.tiles
        return DecodeConfig(block_keys=TILE, min_chunk=chunk, units_per_sm=self.units)

    def shared_bytes(self, shape: Shape) -> int:
        """Dynamic shared memory of a block: `Memory` of paged_decode.cu."""
        quads = shape.group * shape.head_dim // 4
        room = max(self.stages * tile_bytes(shape), quads * 16)
        new = 2 * shape.head_dim * (1 if shape.fp8_kv else 2)
        small = (self.warps + 1) * shape.group * 8 + 8
        return self.warps * room + quads * 16 + shape.group * shape.head_dim * 2 + new + small


def variant_for(shape: Shape, entries: int, multiprocessors: int, short: bool = False) -> Variant | None:
    """How a batch is run; None where kernels.triton.decode is faster. As measured in whole steps of a d32 on
    an H200 (docs/architecture.md): up to a pair of an entry and a kv head for each multiprocessor many warps
    share one's keys, and one block is all that a multiprocessor takes beside those of the kernels around;
    with many pairs blocks are small, so that one's beginning hides behind another's work. short: rows have up
    to SHORT_KEYS keys; the bits are the same, for keys are cut and added up in one way.
    """
    pairs = entries * shape.kv_heads
    if pairs <= multiprocessors:
        few = short and 2 * pairs > multiprocessors and not shape.fp8_kv
        return Variant(warps=8, stages=1 if few else 2, units=1)
    if pairs <= 2 * multiprocessors:
        return Variant(8, 2, 1) if shape.fp8_kv else Variant(8, 1, 2)
    if pairs <= MANY * multiprocessors or shape.group > 1:
        return Variant(4, 3, 1) if shape.fp8_kv else Variant(2, 3, 4)
    return Variant(1, 4, 4) if shape.fp8_kv else None


def variants_for(shape: Shape, max_entries: int, multiprocessors: int) -> list[Variant]:
    """All that batches of up to `max_entries` are run by, short or not."""
    every = product(range(1, max_entries + 1), (False, True))
    found = (variant_for(shape, entries, multiprocessors, short) for entries, short in every)
    return [variant for variant in dict.fromkeys(found) if variant is not None]


def defines(shape: Shape, variant: Variant) -> dict[str, int]:
    """Compile-time constants of paged_decode.cu."""
    return {
        "D": shape.head_dim,
        "GROUP": shape.group,
        "BLOCK_SIZE": shape.block_size,
        "WARPS": variant.warps,
        "BLOCKS": variant.blocks,
        "STAGES": variant.stages,
        **({"KV_FP8": 1} if shape.fp8_kv else {}),
    }


def source() -> str:
    """CUDA C++ of the kernel."""
    tiles = ("attention_tile.cu", "new_token.cu", "attention_stream.cu")
    return read_source("primitives.cu", *tiles, "paged_decode.cu")


class Launch(ctypes.Structure):
    """The kernel's parameter, of the same name there. Strides count numbers."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("q", "k_pages", "v_pages", "k_scales", "v_scales")),
        *((name, ctypes.c_void_p) for name in ("block_tables", "out", "items", "live")),
        *((name, ctypes.c_void_p) for name in ("partials", "stats", "counters", "own", "other")),
        *((name, ctypes.c_void_p) for name in ("bias", "q_weight", "k_weight", "slots")),
        *((name, ctypes.c_longlong) for name in ("q_stride", "q_head", "k_block", "k_head")),
        *((name, ctypes.c_longlong) for name in ("v_block", "v_head", "s_block", "s_head")),
        *((name, ctypes.c_longlong) for name in ("table_stride", "out_stride", "own_stride", "other_stride")),
        *((name, ctypes.c_int) for name in ("kv_heads", "flags", "order")),
        *((name, ctypes.c_float) for name in ("scale", "eps", "qk_scale")),
    )


class PagedDecode:
    """Decode attention of one model on one device. Used by one thread at a time.

    Launches may be captured into graphs: what a launch looks like depends on the number of entries and on
    `short`, and the device reads the plan. A kernel's first use compiles and loads it, which must not happen
    during a capture: `prepare` does it beforehand.
    """

    def __init__(
        self,
        shape: Shape,
        device: torch.device,
        *,
        dtype: torch.dtype = torch.bfloat16,
        forced: Variant | None = None,
    ) -> None:
        """forced: for every number of entries, instead of `variant_for`'s. ValueError: what
        `kernels.cluster.refusal` says, or no CUDA device.
        """
        if device.type != "cuda":
            raise ValueError(f"needs a CUDA device, not {device}")
        about = torch.cuda.get_device_properties(device)
        reason = refusal(shape, dtype, (about.major, about.minor))
        if reason is not None:
            raise ValueError(reason)
        self.shape, self.forced = shape, forced
        self.multiprocessors = int(about.multi_processor_count)
        self.device = torch.cuda.current_device() if device.index is None else device.index
        self.launch = Launch()
        self.arguments = (ctypes.c_void_p * 1)(ctypes.addressof(self.launch))
        self.kernels: dict[Variant, Kernel] = {}

    def variant(self, entries: int, short: bool = False) -> Variant | None:
        """How a batch of `entries` is run; None: it is not for this kernel. short: see `variant_for`."""
        return self.forced or variant_for(self.shape, entries, self.multiprocessors, short)

    def plan(self, entries: int) -> DecodeConfig:
        """How the keys of such a batch must have been cut, for whichever kernel has it."""
        variant = self.variant(entries)
        if variant is not None:
            return variant.plan
        shape = self.shape
        return config_for(shape.group, shape.head_dim, entries, 1 if shape.fp8_kv else 2)

    def variants(self, max_entries: int) -> list[Variant]:
        """All that batches of up to `max_entries` are run by."""
        if self.forced is not None:
            return [self.forced]
        return variants_for(self.shape, max_entries, self.multiprocessors)

    def prepare(self, max_entries: int) -> None:
        """Compiles and loads all that batches of up to `max_entries` need. CompileError, DriverError."""
        variants = self.variants(max_entries)
        constants = [defines(self.shape, variant) for variant in variants]
        compile_many(source(), "paged_decode", architecture(self.device), constants)()
        for variant in variants:
            self._kernel(variant)

    def _kernel(self, variant: Variant) -> Kernel:
        found = self.kernels.get(variant)
        if found is None:
            constants, shared = defines(self.shape, variant), variant.shared_bytes(self.shape)
            found = load_kernel(source(), "paged_decode", self.device, constants, shared)
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
        workspace: DecodeWorkspace,
        *,
        scale: float,
        window: int | None,
        scales: Scales | None = None,
        fresh: Fresh | None = None,
        ahead: bool = False,
        short: bool = False,
        pdl: bool = False,
    ) -> None:
        """As kernels.triton.decode.paged_decode, over pages in which a head's keys of a block lie one behind
        the other.

        workspace: planned by `plan(entries)`. pdl: launched before the previous kernel ends. ahead: the plan,
        the tables and all keys but the fresh ones are read before that; a launch without `ahead` must lie
        between this one and what wrote them (paged_decode.cu says why that is enough). ValueError: tensors
        that do not fit the model, the kernel or each other, or a batch that `variant` has nothing for.
        """
        reason = mismatch(self.shape, q, k_pages, v_pages, block_tables, rows, positions, out, scales)
        if reason is None and fresh is not None:
            reason = fresh_mismatch(self.shape, fresh, q)
        if reason is not None:
            raise ValueError(reason)
        if q.device != torch.device("cuda", self.device):
            raise ValueError(f"q is on {q.device}, this is for cuda:{self.device}")
        entries, work = q.size(0), workspace.work_list(window)
        if entries == 0:
            return
        fill(self.launch, q, k_pages, v_pages, block_tables, out, workspace, window, scale, scales, fresh)
        self.launch.flags |= (_DEPENDENT if pdl else 0) | (_AHEAD if pdl and ahead else 0)
        variant = self.variant(entries, short)
        if variant is None:
            raise ValueError(f"{entries} entries are not for this kernel")
        if workspace.units(entries) > work.items.size(0):
            raise ValueError(f"the workspace has no room for what {entries} entries can be cut into")
        grid = workspace.units(entries) * self.shape.kv_heads
        self._kernel(variant).launch(grid, variant.warps * 32, self.arguments, pdl=pdl)


def fill(
    launch: Launch,
    q: torch.Tensor,
    k_pages: torch.Tensor,
    v_pages: torch.Tensor,
    block_tables: torch.Tensor,
    out: torch.Tensor,
    workspace: DecodeWorkspace,
    window: int | None,
    scale: float,
    scales: Scales | None,
    fresh: Fresh | None,
) -> None:
    """Writes a launch's parameter; the tensors have been checked and must stay alive."""
    a, work = launch, workspace.work_list(window)
    fill_tensors(a, q, k_pages, v_pages, block_tables, out, scales)
    a.items, a.live = work.items.data_ptr(), work.live.data_ptr()
    a.partials, a.stats = workspace.partials.data_ptr(), workspace.stats.data_ptr()
    a.counters = workspace.counters.data_ptr()
    a.scale, a.flags = scale * LOG2_E, 0
    if fresh is None:
        return
    a.flags = _FRESH
    a.own, a.own_stride = fresh.own.data_ptr(), fresh.own.stride(0)
    a.other, a.other_stride = fresh.other.data_ptr(), fresh.other.stride(0)
    a.slots = fresh.slots.data_ptr()
    weights = (fresh.bias, fresh.q_weight, fresh.k_weight)
    a.bias, a.q_weight, a.k_weight = (None if x is None else x.data_ptr() for x in weights)
    spec = fresh.spec
    a.order, a.eps, a.qk_scale = ORDERS.index(spec.order), spec.eps, spec.qk_scale


def fresh_mismatch(shape: Shape, fresh: Fresh, q: torch.Tensor) -> str | None:
    """What speaks against a step's projections, or None."""
    spec, dim, entries = fresh.spec, shape.head_dim, q.size(0)
    if (spec.heads, spec.kv_heads, spec.head_dim) != (shape.heads, shape.kv_heads, dim):
        return f"{spec.heads} heads of {spec.head_dim} over {spec.kv_heads} are not the model's"
    width = (shape.heads + 2 * shape.kv_heads) * dim
    if fresh.qkv.shape != (entries, width) or fresh.qkv.stride(1) != 1:
        return f"qkv is {list(fresh.qkv.shape)}, must be [{entries}, {width}] with unit stride inside"
    own = fresh.query
    if (q.data_ptr(), q.shape, q.stride()) != (own.data_ptr(), own.shape, own.stride()):
        return "the queries are not those of what is fresh"
    if fresh.slots.shape != (entries,) or fresh.slots.dtype != torch.int32 or not fresh.slots.is_contiguous():
        return f"slots must be [{entries}] contiguous int32"
    for name, table in (("own", fresh.own), ("other", fresh.other)):
        if (
            table.dtype != torch.float32
            or table.size(1) != dim
            or table.stride(1) != 1
            or table.stride(0) % 2
        ):
            return f"{name} must be [positions, {dim}] float32"
    for name, weight, size in (
        ("bias", fresh.bias, width),
        ("q_weight", fresh.q_weight, dim),
        ("k_weight", fresh.k_weight, dim),
    ):
        if weight is None:
            continue
        fits = weight.dtype == torch.bfloat16 and weight.shape == (size,) and weight.is_contiguous()
        if not fits or weight.data_ptr() % 4:
            return f"{name} must be [{size}] contiguous bfloat16 from a multiple of 4 bytes on"
    return None
