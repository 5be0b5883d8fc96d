"""Which implementation of an operation a device gets, and why not another."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch

from kernels.caps import FLASH_MODULES, DeviceCaps, FlashName
from kernels.cluster import unsupported
from kernels.spec import AttentionSpec

Op = Literal[
    "attention.decode", "attention.prefill", "linear", "norm", "rope", "activation", "sampling", "kv write"
]
Refusal = Callable[[DeviceCaps, AttentionSpec | None], str | None]
SKINNY_COMPUTE = (9, 0)
TRITON_COMPUTE = (8, 0)
FA2_PAGE = 256
REQUIRED = "use_flash3 was asked for"
# Asked about a device alone, the answers are for such a model.
COMMON = AttentionSpec(16, 16, 128, 16, torch.bfloat16, 256, 4096, torch.device("cuda"))


@dataclass(frozen=True, slots=True)
class Candidate:
    """refuses: the reason why a device or model cannot have it, None if it can. why: what speaks for it.
    manual: only taken when asked for. Candidates stand in order of preference."""

    name: str
    refuses: Refusal
    why: str
    manual: bool = False


@dataclass(frozen=True, slots=True)
class Choice:
    """rejected: candidates that were preferred, or would have been, and what was against them."""

    op: Op
    name: str
    why: str
    rejected: list[tuple[str, str]] = field(default_factory=list)


class Unavailable(ValueError):
    """What was asked for cannot be had here."""


def _triton(caps: DeviceCaps, spec: AttentionSpec | None) -> str | None:
    if caps.compute is None:
        return "needs a CUDA device"
    if caps.triton_version is None:
        return "triton is not installed"
    if caps.compute < TRITON_COMPUTE:
        return f"needs compute capability {TRITON_COMPUTE[0]}.{TRITON_COMPUTE[1]}"
    if spec is not None and (spec.head_dim & (spec.head_dim - 1) or spec.block_size & (spec.block_size - 1)):
        return f"head_dim {spec.head_dim} and blocks of {spec.block_size} must be powers of two"
    return None


def _skinny(caps: DeviceCaps, spec: AttentionSpec | None) -> str | None:
    if caps.compute is None:
        return "needs a CUDA device"
    if caps.compute < SKINNY_COMPUTE:
        return f"needs compute capability {SKINNY_COMPUTE[0]}.{SKINNY_COMPUTE[1]}"
    return None if caps.nvrtc else "libnvrtc is not there"


def _paged(caps: DeviceCaps, spec: AttentionSpec | None) -> str | None:
    if (reason := _triton(caps, spec) or _skinny(caps, spec)) is not None:
        return reason  # Triton's plan cuts up the keys
    if spec is None or caps.compute is None:
        return None
    group = spec.heads // max(1, spec.kv_heads)
    return unsupported(spec.head_dim, group, spec.dtype, caps.compute, spec.block_size)


def _flash_unsupported(name: FlashName, spec: AttentionSpec, caps: DeviceCaps) -> str | None:
    """Why this library cannot serve, by what is known without importing it; None if it can."""
    if caps.compute is None:
        return "needs a CUDA device"
    if not any(module in caps.packages for module in FLASH_MODULES[name]):
        return f"not installed ({', '.join(FLASH_MODULES[name])})"
    if spec.dtype not in (torch.bfloat16, torch.float16):
        return f"{str(spec.dtype).removeprefix('torch.')} is not supported"
    if spec.fp8_kv:
        return "reads no keys and values with a scale for each token (kv_dtype fp8)"
    major = caps.compute[0]
    if name == "fa3" and major != 9:
        return f"runs on compute capability 9.x, not {caps.compute[0]}.{caps.compute[1]}"
    if name == "fa4" and major not in (9, 10, 11):
        return f"runs on compute capability 9.x to 11.x, not {caps.compute[0]}.{caps.compute[1]}"
    if name == "fa2" and major < 8:
        return "needs compute capability 8.0"
    if name == "fa2" and spec.block_size % FA2_PAGE:
        return f"needs KV blocks of a multiple of {FA2_PAGE} tokens, not {spec.block_size}"
    if spec.head_dim > 256 or spec.head_dim % 8:
        return f"head_dim {spec.head_dim} is not supported"
    return None


def _flash(name: FlashName) -> Refusal:
    def refuses(caps: DeviceCaps, spec: AttentionSpec | None) -> str | None:
        if spec is None:
            spec = COMMON
        return _flash_unsupported(name, spec, caps)

    return refuses


def _cuda(caps: DeviceCaps, spec: AttentionSpec | None) -> str | None:
    return None if caps.compute is not None else "needs a CUDA device"


def _cpu(caps: DeviceCaps, spec: AttentionSpec | None) -> str | None:
    return None if caps.compute is None else "is for the CPU"


def _never(caps: DeviceCaps, spec: AttentionSpec | None) -> str | None:
    return None


def _elementwise(what: str) -> tuple[Candidate, ...]:
    return (
        Candidate("triton", _triton, f"{what} in one launch"),
        Candidate("torch", _never, "reference"),
    )


_SDPA = Candidate("sdpa", _never, "torch's scaled_dot_product_attention, row by row", manual=True)
_TORCH = Candidate("torch", _never, "reference, row by row")
CANDIDATES: dict[Op, tuple[Candidate, ...]] = {
    "attention.decode": (
        Candidate(
            "cuda",
            _paged,
            "split over keys by a plan made on the device, rotates for itself, reads keys early",
        ),
        Candidate(
            "triton-rotating", _triton, "split over keys by a plan made on the device, rotates for itself"
        ),
        Candidate("triton", _triton, "split over keys by a plan made on the device"),
        Candidate("fa3", _flash("fa3"), "FlashAttention 3", manual=True),
        Candidate("fa2", _flash("fa2"), "FlashAttention 2", manual=True),
        Candidate("fa4", _flash("fa4"), "FlashAttention 4, unsplit on Hopper", manual=True),
        _SDPA,
        _TORCH,
    ),
    "attention.prefill": (
        Candidate("fa3", _flash("fa3"), "FlashAttention 3 is the fastest on Hopper"),
        Candidate("triton", _triton, "tiles over paged keys"),
        Candidate("fa4", _flash("fa4"), "FlashAttention 4; compiles for seconds at first use", manual=True),
        Candidate("fa2", _flash("fa2"), "FlashAttention 2", manual=True),
        Candidate("triton-rotating", _triton, "triton's, for decode steps that rotate", manual=True),
        Candidate("cuda", _paged, "triton's, for decode steps", manual=True),
        _SDPA,
        _TORCH,
    ),
    "linear": (
        Candidate(
            "skinny",
            _skinny,
            "few rows; each projection's product is measured at start, beside streamed ones, cuBLAS and "
            "Triton's",
        ),
        Candidate("cublas", _cuda, "the library"),
        Candidate("onednn", _cpu, "packed weights, rows independent of each other"),
    ),
    "norm": _elementwise("norm and residual"),
    "rope": _elementwise("bias, rotation, norm and the write of keys and values"),
    "activation": _elementwise("gate and product"),
    "sampling": _elementwise("filters and the draw"),
    "kv write": _elementwise("part of rope"),
}


def first_library(op: Op, caps: DeviceCaps, spec: AttentionSpec) -> Choice:
    """The best FlashAttention that is installed for this device; those behind it are among what it rejected.
    Unavailable: there is none, with reasons.
    """
    chosen: str | None = None
    rejected: list[tuple[str, str]] = []
    for name in ("fa3", "fa4", "fa2"):
        candidate = next(known for known in CANDIDATES[op] if known.name == name)
        reason = candidate.refuses(caps, spec)
        if reason is None and chosen is None:
            chosen = name
        else:
            rejected.append((name, reason or f"behind {chosen}"))
    if chosen is None:
        raise Unavailable("; ".join(f"{name}: {reason}" for name, reason in rejected))
    return Choice(op, chosen, REQUIRED, rejected)


def select(
    op: Op,
    caps: DeviceCaps,
    spec: AttentionSpec | None = None,
    asked: str | None = None,
    *,
    libraries: bool = True,
) -> Choice:
    """The first candidate that nothing speaks against, or the one that is asked for.

    spec: the model's attention; without one, that of a common model. asked: a candidate's name, or None or
    "auto". libraries: False leaves FlashAttention out unless it is asked for. Unavailable: what was asked for
    does not exist or cannot serve here, with the reason.
    """
    candidates = CANDIDATES[op]
    if asked not in (None, "auto"):
        for candidate in candidates:
            if candidate.name == asked:
                reason = candidate.refuses(caps, spec)
                if reason is not None:
                    raise Unavailable(f"{op}: {asked} was asked for, but {reason}")
                return Choice(op, candidate.name, "asked for")
        names = ", ".join(candidate.name for candidate in candidates)
        raise Unavailable(f"{op}: {asked} is not one of {names}")
    chosen: Candidate | None = None
    rejected: list[tuple[str, str]] = []
    for candidate in candidates:
        reason = candidate.refuses(caps, spec)
        if not libraries and candidate.name in FLASH_MODULES:
            reason = "use_flash3 is off"
        if reason is not None:
            rejected.append((candidate.name, reason))
        elif candidate.manual:
            rejected.append((candidate.name, "only when asked for"))
        elif chosen is None:
            chosen = candidate
        else:
            rejected.append((candidate.name, f"behind {chosen.name}"))
    if chosen is None:
        raise Unavailable(f"{op}: nothing can serve here: {rejected}")
    return Choice(op, chosen.name, chosen.why, rejected)


def explain(caps: DeviceCaps, spec: AttentionSpec | None = None) -> list[Choice]:
    """The choice for every operation."""
    return [select(op, caps, spec) for op in CANDIDATES]
