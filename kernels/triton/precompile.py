"""Compiles a program's Triton kernels on all cores, before it runs them one after the other.

Triton compiles a kernel where it is first launched, half a second to two seconds each, and a start with empty
caches needs dozens. So the program runs once for nothing: kernels that are not there yet are noted instead of
launched (`missing`), and then all of them are compiled at once (`compile_all`).
"""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TypeAlias

import torch
import triton
from triton.compiler import CompiledKernel
from triton.runtime import JITFunction
from triton.runtime._async_compile import FutureKernel

Compiling: TypeAlias = FutureKernel | CompiledKernel


@dataclass(slots=True)
class Missing:
    """Kernels that were wanted: each with what Triton needs to compile it, in the order they came."""

    kernels: dict[tuple[str, str], JITFunction[object]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.kernels)


@contextmanager
def missing() -> Iterator[Missing]:
    """While it lasts, launches of kernels that are not compiled do nothing but note them.

    What is computed meanwhile is worthless. For one thread: the hook is Triton's own and there is one.
    """
    found = Missing()

    def note(*, key: str, fn: object, compile: dict[str, str], **others: object) -> bool:
        function = fn.jit_function  # type: ignore[attr-defined]
        found.kernels[function.__qualname__, compile["specialization_data"]] = function
        return True  # tells Triton to leave it

    before = triton.knobs.runtime.jit_cache_hook
    triton.knobs.runtime.jit_cache_hook = note
    try:
        yield found
    finally:
        triton.knobs.runtime.jit_cache_hook = before


def compile_all(wanted: Missing, device: torch.device) -> int:
    """Compiles and loads them; returns how many now need nothing more. One that fails is left to its first
    launch, which says why.
    """
    return at_once(
        [partial(function.preload, data) for (_, data), function in wanted.kernels.items()], device
    )


def at_once(compilations: Sequence[Callable[[], Compiling | None]], device: torch.device) -> int:
    """Calls what starts a compilation each (a warm-up, say); they run on all cores, and the kernels are
    loaded. The rest as in `compile_all`.
    """
    workers = min(len(compilations), len(os.sched_getaffinity(0)))
    if not workers:
        return 0
    with ThreadPoolExecutor(workers, "compile", _choose, (device,)) as pool:
        with triton.AsyncCompileMode(pool, ignore_errors=True):
            started = [compilation() for compilation in compilations]
        kernels = [
            kernel.result(ignore_errors=True) if isinstance(kernel, FutureKernel) else kernel
            for kernel in started
        ]
        return sum(pool.map(_load, kernels))


def _choose(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.set_device(device)


def _load(kernel: CompiledKernel | None) -> bool:
    """Builds what launches a kernel, which takes a C compiler, and puts it on the device."""
    if kernel is None:
        return False
    try:
        return kernel.run is not None
    except Exception:  # met again where it is launched
        return False
