"""Products of some dozens of rows with a weight, on the tensor cores, with what stands around them.

For 17 to 256 rows: there kernels.skinny reads x too often, and the library leaves the norm, the activation
and the sum over parts of K to kernels of their own. A row's result does not depend on the other rows, nor on
their number while the configuration stays the same: each output is summed in steps of `depth` channels, the
parts of K one after the other. Another configuration may round the sums differently.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

import torch
from triton.tools.tensor_descriptor import TensorDescriptor

from kernels.nvrtc import CompileError
from kernels.skinny import Activation, misplaced
from kernels.triton.gemm_config import (
    WORKSPACE_SUMS,
    WORKSPACE_TILES,
    GemmConfig,
    configs,
    unsupported,
)
from kernels.triton.gemm_kernel import gemm_kernel
from kernels.triton.precompile import Compiling, at_once

__all__ = ["GemmConfig", "GemmWorkspace", "configs", "fused_gemm", "prepare", "prepare_all", "unsupported"]

# What distinguishes compiled kernels: how, a norm inside, a swiglu, overlap with the kernel in front.
Kind = tuple[GemmConfig, bool, bool, bool]


@dataclass(frozen=True, slots=True)
class GemmWorkspace:
    """Sums of parts of K on their way to the last program of a tile. One for all products of a stream.

    sums, squares: float32. counters: int32, zero between two products.
    """

    sums: torch.Tensor
    squares: torch.Tensor
    counters: torch.Tensor

    @classmethod
    def allocate(cls, device: torch.device, sums: int = WORKSPACE_SUMS) -> "GemmWorkspace":
        """sums: the most that a product splits into, 16 MiB of them unless given."""
        floats = {"dtype": torch.float32, "device": device}
        counters = torch.zeros(WORKSPACE_TILES if sums else 0, dtype=torch.int32, device=device)
        # A tile has at least 32 columns.
        return cls(torch.zeros(sums, **floats), torch.zeros(sums // 32, **floats), counters)  # type: ignore[call-overload]

    @property
    def bytes(self) -> int:
        return 4 * (self.sums.numel() + self.squares.numel() + self.counters.numel())


def fused_gemm(
    x: torch.Tensor,
    weight: torch.Tensor,
    out: torch.Tensor,
    *,
    eps: float | None = None,
    activation: Activation = "none",
    accumulate: bool = False,
    config: GemmConfig,
    workspace: GemmWorkspace,
    pdl: bool = False,
) -> None:
    """out = act(norm(x) W^T), or out += norm(x) W^T. All bf16 on one device, sums in float32.

    x: [m, k], unit stride inside a row, rows 16-byte aligned. weight: [n, k], contiguous. out: [m, n]; for
    swiglu [m, n / 2], weight being 8 gate rows, 8 up rows and so on. eps: for an RMS norm without weight,
    only with a configuration that has it inside; None for none. pdl: may start before the previous kernel
    has ended. Raises ValueError for what the kernel cannot do.
    """
    reason = _mismatch(x, weight, out, activation, accumulate, config)
    if reason is None and eps is not None and not config.norm_inside:
        reason = "this configuration wants the norm as a kernel in front"
    parts = config.programs(x.size(0), weight.size(0)) * config.rows * config.columns
    if reason is None and config.split > 1 and parts > workspace.sums.numel():
        reason = f"the workspace holds {workspace.sums.numel()} sums, {parts} are needed"
    if reason is not None:
        raise ValueError(reason)
    _launch(x, weight, out, eps, activation, accumulate, config, workspace, pdl)


def prepare(kind: Kind, device: torch.device) -> None:
    """Compiles and loads a kernel, which a graph capture could not do. Raises CompileError."""
    try:
        _dummy_launch(kind, device, warmup=False)
    except Exception as error:  # Triton's compiler raises a dozen kinds, RuntimeError among them
        raise CompileError(f"{type(error).__name__}: {error}"[:600]) from error


def prepare_all(kinds: Iterable[Kind], device: torch.device) -> None:
    """Compiles and loads on all cores; `prepare` finds the results. What cannot be compiled is left to it."""
    unique = list(dict.fromkeys(kinds))
    at_once([partial(_dummy_launch, kind, device, warmup=True) for kind in unique], device)


def _dummy_launch(kind: Kind, device: torch.device, warmup: bool) -> Compiling | None:
    """Compiles, and unless it is a warm-up loads; an empty grid runs nothing. The kernel of a warm-up."""
    config, norm, swiglu, pdl = kind
    x = torch.empty(16, 16, dtype=torch.bfloat16, device=device)
    workspace = GemmWorkspace.allocate(device, 32)
    activation: Activation = "swiglu" if swiglu else "none"
    eps = 1.0 if norm else None
    return _launch(x, x, x, eps, activation, False, config, workspace, pdl, 0, warmup)


def _launch(
    x: torch.Tensor,
    weight: torch.Tensor,
    out: torch.Tensor,
    eps: float | None,
    activation: Activation,
    accumulate: bool,
    config: GemmConfig,
    workspace: GemmWorkspace,
    pdl: bool,
    programs: int | None = None,
    warmup: bool = False,
) -> Compiling | None:
    (m, k), n = x.shape, weight.size(0)
    x_tiles = weight_tiles = None
    if config.tiles:
        x_tiles = TensorDescriptor(x, [m, k], [x.stride(0), 1], [config.rows, config.depth])
        weight_tiles = TensorDescriptor(weight, [n, k], [k, 1], [config.columns, config.depth])
    if programs is None:
        programs = config.programs(m, n)
    # Loaded before the first is added; all of a thread's share must fit its registers.
    at_once = 4 if config.sums_per_thread <= 32 else 2 if config.sums_per_thread <= 64 else 1
    arguments = (
        x,
        weight,
        x_tiles,
        weight_tiles,
        out,
        workspace.sums,
        workspace.squares,
        workspace.counters,
        m,
        n,
        k,
        x.stride(0),
        out.stride(0),
        eps or 0.0,
        config.split,
        int(activation == "relu2"),
        int(accumulate),
    )
    options = {
        "ROWS": config.rows,
        "COLUMNS": config.columns,
        "DEPTH": config.depth,
        "SWAPPED": config.swapped,
        "SPLIT": config.split > 1,
        "NORM": eps is not None,
        "SWIGLU": activation == "swiglu",
        "TILES": config.tiles,
        "STAGES": config.stages,
        "AT_ONCE": at_once,
        "AHEAD": config.ahead if pdl else 0,
        "PDL": pdl,
        "num_warps": config.warps,
        "launch_pdl": pdl,
    }
    if warmup:
        kernel: Compiling | None = gemm_kernel.warmup(*arguments, grid=(1,), **options)
        return kernel
    gemm_kernel[(programs,)](*arguments, **options)
    return None


def _mismatch(
    x: torch.Tensor,
    weight: torch.Tensor,
    out: torch.Tensor,
    activation: Activation,
    accumulate: bool,
    config: GemmConfig,
) -> str | None:
    (m, k), (n, inputs) = x.shape, weight.shape
    if inputs != k:
        return f"x has {k} channels, the weight {inputs}"
    misfit = config.misfit(m, n, k)
    if misfit is not None:
        return misfit
    if activation == "swiglu" and accumulate:
        return "no swiglu that adds to its output"
    return misplaced(x, weight, weight.dtype, out, activation)
