"""Attention backends behind one interface, and the choice among them."""

from typing import get_args

import torch

from kernels.backends import flash
from kernels.backends.base import AttentionBackend, AttentionSpec
from kernels.backends.pair import PairBackend
from kernels.backends.reference import TorchBackend
from kernels.backends.selftest import fault
from kernels.caps import DeviceCaps, FlashName
from kernels.registry import Choice, Op, Unavailable, select

Row = tuple[str, str, str, str]  # of a start-up table: operation, asked for, used, why
FLAG = "--attention-backend"
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
    caps: DeviceCaps | None = None,
) -> tuple[AttentionBackend, list[Row]]:
    """The backend for a model on a device, and what to say about it.

    asked: auto, triton, fa2, fa3, fa4 or torch. A library must agree with the reference on a small problem
    before it is used. Unavailable (a ValueError): what was asked for cannot be had, with the flag's name and
    the reason; under auto a library that fails is passed over instead.
    """
    spec = AttentionSpec(heads, kv_heads, head_dim, block_size, dtype, max_rows, max_context, device)
    caps = caps or DeviceCaps.of(device)
    built: dict[str, AttentionBackend] = {}
    parts: list[AttentionBackend] = []
    rows: list[Row] = []
    for op in OPS:
        try:
            choice = select(op, caps, spec, asked)
        except Unavailable as error:
            raise Unavailable(f"{FLAG} {asked}: {error}") from None
        backend, why = _first_that_works(choice, spec, built, asked)
        parts.append(backend)
        rows.append((op, asked, f"{backend.name} {backend.version}", why))
    if parts[0] is parts[1]:
        return parts[0], rows
    return PairBackend(parts[0], parts[1]), rows


def _first_that_works(
    choice: Choice, spec: AttentionSpec, built: dict[str, AttentionBackend], asked: str
) -> tuple[AttentionBackend, str]:
    """What was chosen, or under auto the next one that is no library; and the reason."""
    outcome = built.get(choice.name) or build(choice.name, spec)
    if not isinstance(outcome, str):
        built[choice.name] = outcome
        against = [f"{name}: {reason}" for name, reason in choice.rejected if "behind" not in reason]
        return outcome, "; ".join([choice.why, *against[:2]])
    if asked != "auto":
        raise Unavailable(f"{FLAG} {asked}: {outcome}")
    name = next(name for name, reason in choice.rejected if reason == f"behind {choice.name}")
    fallback = built.get(name) or build(name, spec)
    if isinstance(fallback, str):
        raise Unavailable(f"{choice.op}: {name}: {fallback}")
    built[name] = fallback
    return fallback, f"{choice.name}: {outcome}"


def build(name: str, spec: AttentionSpec) -> AttentionBackend | str:
    """A backend by its name, or why there is none. A library is imported and tried out."""
    if name == "triton":
        from kernels.backends.triton import TritonBackend

        return TritonBackend(spec)
    if name == "torch":
        return TorchBackend(spec)
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


__all__ = ["AttentionBackend", "AttentionSpec", "Unavailable", "build", "select_backend"]
