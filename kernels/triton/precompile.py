"""Compiles a program's Triton kernels on all cores, before it runs them one after the other.

Triton compiles a kernel where it is first launched, half a second to two seconds each, and a start with empty
caches needs dozens. So the program runs once for nothing: kernels that are not there yet are noted instead of
launched (`missing`), and then all of them are compiled at once (`compile_all`).

Both stand on hooks of Triton 3.6 that it does not promise to keep: without them nothing is noted, launches
run as ever, and kernels compile one by one.
"""

import os
import threading
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

Compiling: TypeAlias = object  # Triton's FutureKernel, or a CompiledKernel
Function: TypeAlias = JITFunction[object]

CAN_NOTE = (
    hasattr(getattr(getattr(triton, "knobs", None), "runtime", None), "jit_cache_hook")
    and hasattr(triton, "AsyncCompileMode")
    and hasattr(JITFunction, "preload")
)
_one_at_a_time = threading.Lock()


@dataclass(slots=True)
class Missing:
    """Kernels that were wanted: each with what Triton needs to compile it, in the order they came."""

    kernels: dict[tuple[str, str], Function] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.kernels)


@contextmanager
def missing() -> Iterator[Missing]:
    """While it lasts, this thread's launches of kernels that are not compiled do nothing but note them.

    What is computed meanwhile is worthless. Other threads launch and compile as ever.
    """
    found = Missing()
    if not CAN_NOTE:
        yield found
        return
    me = threading.get_ident()

    def note(*, fn: object, compile: dict[str, str], **others: object) -> bool:
        if threading.get_ident() != me:
            return False
        function: Function = fn.jit_function  # type: ignore[attr-defined]
        found.kernels[function.__qualname__, compile["specialization_data"]] = function
        return True  # tells Triton to leave it

    with _one_at_a_time:
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
    if not workers or not CAN_NOTE:
        return 0
    with ThreadPoolExecutor(workers, "compile", _choose, (device,)) as pool:
        with triton.AsyncCompileMode(pool, ignore_errors=True):
            started = [_begin(compilation) for compilation in compilations]
        seen: set[int] = set()
        for number, kernel in enumerate(started):
            if kernel is not None and id(kernel) in seen:
                # Another's twin in all but the key that it is launched by; by now Triton's cache has it.
                started[number] = _begin(compilations[number])
            seen.add(id(kernel))
        return sum(pool.map(_load, started))


def _begin(compilation: Callable[[], Compiling | None]) -> Compiling | None:
    try:
        return compilation()
    except Exception:  # met again where it is launched
        return None


def _choose(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.set_device(device)


def _load(kernel: Compiling | None) -> bool:
    """Builds what launches a kernel, which takes a C compiler, and puts it on the device."""
    result = getattr(kernel, "result", None)
    compiled: object = result(ignore_errors=True) if callable(result) else kernel
    if not isinstance(compiled, CompiledKernel):
        return False
    try:
        return compiled.run is not None
    except Exception:  # met again where it is launched, for which it must begin anew
        compiled._run = compiled.module = None
        return False
