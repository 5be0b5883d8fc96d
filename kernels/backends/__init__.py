"""Attention backends behind one interface, and the choice among them."""

from typing import Literal, get_args

import torch

from kernels.backends import flash
from kernels.backends.base import AttentionBackend, AttentionSpec, Row
from kernels.backends.clustered import ClusteredBackend, ClusterRule, with_clusters
from kernels.backends.pair import PairBackend
from kernels.backends.reference import TorchBackend
from kernels.backends.sdpa import SdpaBackend
from kernels.backends.selftest import fault
from kernels.caps import DeviceCaps, FlashName
from kernels.cuda_driver import DriverError
from kernels.nvrtc import CompileError
from kernels.registry import REQUIRED, Choice, Op, Unavailable, first_library, select

FLAG, FLASH_FLAG = "--attention-backend", "--use-flash3"
CUDA, ROTATING = "cuda", "triton-rotating"
OURS = (CUDA, ROTATING, "triton")
# Up to so many tokens of a step our tiles with shared keys beat FlashAttention 3, which gives a tile to one
# block: 25 to 29 us against 33 for 128 to 256 queries over 2,048 keys; 42 against 34 for 512.
FEW_TOKENS = 256
NO_CLUSTERS = "cuda shares a row's keys out, too, and rotates for itself"
FlashUse = Literal["off", "auto", "required"]
OPS: tuple[Op, Op] = ("attention.decode", "attention.prefill")
LIBRARIES: tuple[FlashName, ...] = get_args(FlashName)


def select_backend(
    asked: str,
    *,
    heads: int,
    kv_heads: int,
    head_dim: int,
    block_size: int,
    dtype: torch.dtype,
    max_rows: int,
    max_context: int,
    device: torch.device,
    fp8_kv: bool = False,
    caps: DeviceCaps | None = None,
    flash: FlashUse = "auto",
    flash_sdp: bool = True,
    clusters: ClusterRule | None = None,
) -> tuple[AttentionBackend, list[Row]]:
    """The backend for a model on a device, and what to say about it.

    asked: auto, cuda, triton, triton-rotating, fa2, fa3, fa4, sdpa or torch. A library must agree with the
    reference on a small problem before it is used. flash: "off" leaves the libraries out under auto;
    "required" takes the best of them for prefill and nothing else. flash_sdp: see SdpaBackend. clusters: for
    decode steps of few rows; where they are merely welcome, and another backend was asked for or cuda is
    there, that one serves them all.
    Unavailable (a ValueError): what was asked for cannot be had, with the flag's name and the reason; under
    auto a library that fails is passed over instead.
    """
    spec = AttentionSpec(heads, kv_heads, head_dim, block_size, dtype, max_rows, max_context, device, fp8_kv)
    caps = caps or DeviceCaps.of(device)
    built: dict[str, AttentionBackend] = {}
    parts: list[AttentionBackend] = []
    rows: list[Row] = []
    if flash == "required" and asked not in ("auto", *LIBRARIES):
        raise Unavailable(f"{FLASH_FLAG} and {FLAG} {asked} exclude each other")
    if clusters is not None and not clusters.required and asked != "auto":
        clusters = None  # they would stand in the place of what was asked for
    for op in OPS:
        try:
            if flash == "required" and asked == "auto" and op == "attention.prefill":
                choice = first_library(op, caps, spec)
            else:
                choice = select(op, caps, spec, asked, libraries=flash != "off")
        except Unavailable as error:
            flag = FLASH_FLAG if flash == "required" and asked == "auto" else f"{FLAG} {asked}"
            raise Unavailable(f"{flag}: {error}") from None
        name, backend, why = _first_that_works(choice, spec, built, asked, flash_sdp)
        parts.append(backend)
        rows.append((op, asked, f"{name} {backend.version}", why))
    single, chunked = parts
    if clusters is not None and not clusters.required and single.name == CUDA:
        clusters, rows[0] = None, _adding(rows[0], f"clusters: {NO_CLUSTERS}")
    whole = single
    if single is not chunked:
        shared = flash == asked == "auto" and single.name in OURS and chunked.name == "fa3"
        if shared:
            rows[1] = _adding(rows[1], f"triton shares out the keys of up to {FEW_TOKENS} tokens")
        whole = PairBackend(single, chunked, FEW_TOKENS if shared else 0)
    return (with_clusters(whole, rows, spec, caps, clusters) if clusters else whole), rows


def _adding(row: Row, reason: str) -> Row:
    what, wanted, used, why = row
    return what, wanted, used, f"{why}; {reason}"


def _first_that_works(
    choice: Choice,
    spec: AttentionSpec,
    built: dict[str, AttentionBackend],
    asked: str,
    flash_sdp: bool,
) -> tuple[str, AttentionBackend, str]:
    """What was chosen, by name; else under auto the next one that is no library, or where a library is
    required the next library; and the reason.
    """
    outcome = _built(choice.name, spec, built, flash_sdp)
    if not isinstance(outcome, str):
        against = [f"{name}: {reason}" for name, reason in choice.rejected if "behind" not in reason]
        return choice.name, outcome, "; ".join([choice.why, *against[:2]])
    if asked != "auto":
        raise Unavailable(f"{FLAG} {asked}: {outcome}")
    behind = [name for name, reason in choice.rejected if reason == f"behind {choice.name}"]
    if choice.why == REQUIRED:
        failed = [f"{choice.name}: {outcome}"]
        for name in behind:
            next_one = _built(name, spec, built)
            if not isinstance(next_one, str):
                return name, next_one, "; ".join([REQUIRED, *failed])
            failed.append(f"{name}: {next_one}")
        raise Unavailable(f"{FLASH_FLAG}: {'; '.join(failed)}")
    name = behind[0]
    fallback = _built(name, spec, built)
    if isinstance(fallback, str):
        raise Unavailable(f"{choice.op}: {name}: {fallback}")
    return name, fallback, f"{choice.name}: {outcome}"


def _built(
    name: str, spec: AttentionSpec, built: dict[str, AttentionBackend], flash_sdp: bool = True
) -> AttentionBackend | str:
    """A backend, or why there is none: that of an earlier operation where it serves this one, too, so that
    they share buffers.
    """
    if name == "triton":
        name = next((own for own in OURS if own in built), name)  # with chunks they do the same
    outcome = built.get(name) or build(name, spec, flash_sdp)
    if not isinstance(outcome, str):
        built[name] = outcome
    return outcome


def build(name: str, spec: AttentionSpec, flash_sdp: bool = True) -> AttentionBackend | str:
    """A backend by its name, or why there is none. A library is imported and tried out."""
    if name == CUDA:
        return _cuda(spec)
    if name in ("triton", ROTATING):
        from kernels.backends.triton import RotatingTritonBackend, TritonBackend

        return TritonBackend(spec) if name == "triton" else RotatingTritonBackend(spec)
    if name == "torch":
        return TorchBackend(spec)
    if name == "sdpa":
        return SdpaBackend(spec, flash_sdp)
    library = next((known for known in LIBRARIES if known == name), None)
    if library is None:
        raise ValueError(f"there is no backend {name}")
    loaded = flash.load(library)
    if isinstance(loaded, str):
        return loaded
    # Each with buffers of its own: what the test leaves has the test's sizes.
    reason = fault(flash.FlashBackend(library, spec, *loaded), spec)
    if reason is not None:
        return f"the self-test failed: {reason}"
    return flash.FlashBackend(library, spec, *loaded)


def _cuda(spec: AttentionSpec) -> AttentionBackend | str:
    from kernels.backends.cuda import CudaBackend
    from kernels.backends.cuda_selftest import cuda_fault

    try:
        reason = cuda_fault(spec)
        return CudaBackend(spec) if reason is None else f"the self-test failed: {reason}"
    except (CompileError, DriverError, ValueError) as error:
        return str(error)


__all__ = [
    "AttentionBackend",
    "AttentionSpec",
    "ClusterRule",
    "ClusteredBackend",
    "FlashUse",
    "Unavailable",
    "build",
    "select_backend",
]
