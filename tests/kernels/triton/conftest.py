"""Kernels run on the GPU where there is one, else in Triton's interpreter on the CPU.

Triton decides when it is imported, so this must come first: it is the folder's conftest for that reason.
"""

import importlib.util
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.optional import missing

TRITON = importlib.util.find_spec("triton") is not None

if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
    if "triton.language" in sys.modules:
        raise RuntimeError("triton was imported before TRITON_INTERPRET could be set")
    os.environ["TRITON_INTERPRET"] = "1"


def _mend_interpreter() -> None:
    """What Triton's interpreter does otherwise than the GPU.

    It cuts float32 off where bfloat16 or e4m3 is nearest, takes e4m3's NaN for a number, multiplies matrices
    of bfloat16 as the 16-bit integers that it keeps them as, knows no assembly, and with today's numpy cannot
    take a loop's bound from a tensor.
    """
    import numpy as np
    import triton.language as tl
    from triton.runtime import interpreter

    convert, patch_tensor = interpreter._convert_float, interpreter._patch_lang_tensor

    def nearest(values: Any, source: Any, target: Any, mode: Any) -> Any:
        numbers = np.array(values)
        if source.name == "fp8e4nv":
            exact = torch.from_numpy(numbers.view(np.uint8)).view(torch.float8_e4m3fn).float()
            if target.name == "fp32":
                return exact.numpy().view(np.uint32)
        elif source.name == "fp32":
            exact = torch.from_numpy(numbers.view(np.float32))
        else:
            return convert(values, source, target, mode)
        if target.name == "bf16":
            return exact.bfloat16().view(torch.int16).numpy().view(np.uint16)
        if target.name == "fp8e4nv":
            return exact.to(torch.float8_e4m3fn).view(torch.uint8).numpy()
        return convert(values, source, target, mode)

    def with_index(tensor: Any, scope: Any) -> None:
        patch_tensor(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    def assembled(self: Any, text: str, constraints: str, values: Any, *about: Any) -> Any:
        """What `kernels.triton.parts.four_channels` writes in PTX, the only assembly there is."""
        assert text.count("cvt.rn.f16x2.e4m3x2") == 2 and constraints == "=f,=f,=f,=f,r"
        words = np.ascontiguousarray(values[0].data)
        numbers = torch.from_numpy(words.view(np.uint8)).view(torch.float8_e4m3fn).float().numpy()
        parts = numbers.reshape(*words.shape, 4)
        return SimpleNamespace(
            get_result=lambda i: interpreter.TensorHandle(parts[..., i].copy(), tl.float32)
        )

    multiply = interpreter.InterpreterBuilder.create_dot

    def widened(handle: Any) -> Any:
        if handle.dtype.scalar != tl.bfloat16:
            return handle
        data = interpreter._convert_float(handle.data, tl.bfloat16, tl.float32, None)
        return interpreter.TensorHandle(data.view("float32"), tl.float32)

    def create_dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        return multiply(self, widened(a), widened(b), *rest)

    interpreter.InterpreterBuilder.create_dot = create_dot
    interpreter.InterpreterBuilder.create_inline_asm = assembled
    interpreter._convert_float = nearest
    interpreter._patch_lang_tensor = with_index


if TRITON and os.environ.get("TRITON_INTERPRET") == "1":
    from tests.kernels.triton.quick_interpreter import quicken_interpreter

    quicken_interpreter()
    _mend_interpreter()


class _Absent(pytest.File):
    def collect(self) -> list[pytest.Item]:
        return [_AbsentItem.from_parent(self, name="needs_triton")]


class _AbsentItem(pytest.Item):
    def runtest(self) -> None:
        missing("triton is not installed")


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.File | None:
    """Stands for a test module that could not even be imported."""
    return None if TRITON else _Absent.from_parent(parent, path=module_path)
