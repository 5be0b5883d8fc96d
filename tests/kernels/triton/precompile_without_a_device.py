"""Compiles for a device that is not there, for test_precompile.py, which runs it in a process of its own:
Triton's driver and its hooks are the process's. Prints what happened.
"""

from types import SimpleNamespace

import torch
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget

from kernels.triton.precompile import compile_all, missing

events: list[str] = []


class Launcher:
    def __init__(self, src: object, metadata: object) -> None:
        events.append("loaded")

    def __call__(self, *arguments: object) -> None:
        events.append("launched")


class Device:
    """What the compiler asks of a driver, for an H200."""

    launcher_cls = Launcher
    utils = SimpleNamespace(
        load_binary=lambda *arguments: (object(), 0, 32, 0, 1024),
        get_device_properties=lambda device: {"max_shared_mem": 232_448},
    )

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)


@triton.jit
def add(x, y, count, SIZE: tl.constexpr, TWICE: tl.constexpr):
    index = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    value = tl.load(x + index, mask=index < count)
    if TWICE:
        value = value * 2
    tl.store(y + index, value, mask=index < count)


def launch(size: int, twice: bool) -> None:
    x = torch.zeros(100)
    add[(1,)](x, x, 100, SIZE=size, TWICE=twice, num_warps=2)


@triton.jit
def wrong(x, SIZE: tl.constexpr):
    tl.static_assert(SIZE > 100, "too small")
    tl.store(x + tl.arange(0, SIZE), 1.0)


def main() -> None:
    triton.runtime.driver.set_active(Device())
    with missing() as found:
        for size, twice in ((32, False), (64, False), (32, True), (32, False)):
            launch(size, twice)
        wrong[(1,)](torch.zeros(100), SIZE=64)
    print("noted", len(found), *events)
    print("compiled", compile_all(found, torch.device("cpu")), *events)
    events.clear()
    for size, twice in ((32, False), (64, False), (32, True)):
        launch(size, twice)
    print("launched", *events)
    try:
        wrong[(1,)](torch.zeros(100), SIZE=64)
    except triton.CompilationError as error:
        print("refused", "too small" in str(error))


if __name__ == "__main__":
    main()
